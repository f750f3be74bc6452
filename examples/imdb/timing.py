"""Times all systems of a finished run side by side, without their weights; run it where nothing else runs.

    python -m examples.imdb.timing results/paper

Each model is built from the config in ``results.json``, which holds the shapes that pruning left, with new random
weights: how long a dense model takes does not depend on their values, zeros included. So systems that were trained on
another machine can be timed on this one. The texts are made up, as long as the run's batches are on the average once
padded. ``results.json`` and the pages are written again, with the machine beside the times.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, PreTrainedModel

import hfcompress as hfc
from examples.imdb.environment import describe_machine, name_machine, silence_libraries
from examples.imdb.files import Result, read_json, write_json

REPEATS = 10
TIMED = ("parameters", "bytes", "flops", "latency_ms", "latency_iqr_ms", "threads")  # of what is measured


def build(config: dict[str, Any]) -> PreTrainedModel:
    """Build a model of this config with random weights, in the shapes that pruning left."""
    made = AutoConfig.for_model(**config)
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(made)]
    model: PreTrainedModel = kind.from_pretrained(None, config=made, state_dict={})
    return model.float().eval()


def time_systems(content: Result) -> Result:
    """Time the systems of a ``results.json`` in turn on the processor, in float32, and return what is measured."""
    batch_size = content["settings"]["preset"]["batch_size"]
    results = {entry["key"]: next(iter(entry["by_seed"].values())) for entry in content["systems"]}
    tokens = round(mean(result["padded_tokens"] for result in results.values()))
    models = {key: build(result["config"]) for key, result in results.items()}
    inputs = {}
    for key, model in models.items():
        ids = torch.randint(200, model.config.vocab_size, (batch_size, tokens))
        inputs[key] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    measured = hfc.compare(models, inputs, batch_size=batch_size, repeats=REPEATS).to_dict()
    return {
        "machine": name_machine(describe_machine()),
        "batch_size": batch_size,
        "tokens": tokens,
        "systems": {key: {name: one[name] for name in TIMED} for key, one in measured.items()},
    }


def is_timed(content: Result) -> bool:
    """Whether all systems were timed together."""
    return set((content["timing"] or {"systems": {}})["systems"]) == {entry["key"] for entry in content["systems"]}


def main() -> None:
    """Time what a folder of results holds, and write its pages again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+", help="folder with a results.json")
    arguments = parser.parse_args()
    silence_libraries()
    from examples.imdb.report import write_pages

    for folder in arguments.folder:
        content = read_json(folder / "results.json")
        if not content:
            sys.exit(f"error: {folder} holds no results.json; run python -m examples.imdb --output {folder} first.")
        content["timing"] = time_systems(content)
        write_json(folder / "results.json", content)
        write_pages(folder, content)
        print(f"Timed {len(content['timing']['systems'])} systems of {folder}.")


if __name__ == "__main__":
    main()
