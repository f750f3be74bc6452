"""Size, time and quality of a classifier where it is served: torch, ONNX Runtime and OpenVINO, in float32 and less.

BERT-base from its config, and the packaged MiniLM; each whole and with half of its FLOPs. Each model is run by torch in
float32, in bfloat16 (where the processor computes it) and with torch's own dynamic int8; by ONNX Runtime in float32 and
in int8 with dynamic and static scales, as `hfcompress.export` makes them for this machine; and by OpenVINO, where it is
installed: float32, bfloat16 as it chooses where the processor has it, int8 with dynamic and static scales by NNCF, as
`hfcompress.export` makes them too, and the file with static scales of ONNX Runtime.

All systems of a model are timed in turn, with one thread, on batches of random ids. In its turn each reads the batch
twice, and the second time counts: a model that is served runs again and again, and does not find its weights evicted
from the cache by twenty others. A time is the CPU time of the process, which others disturb little; the median of all
rounds. With ``--classifier``, a MiniLM fine-tuned on sentences
or reviews as by `examples.imdb.reconstruction`, its accuracy on texts that no training has seen is measured too, each
read alone, and half of its FLOPs are removed with its outputs reconstructed. ``--repeats 0`` measures that alone.

    python -m benchmarks.export --classifier FOLDER --output benchmarks/results --page docs/serve.md
    python -m benchmarks.export --classifier FOLDER --texts reviews --models MiniLM --repeats 0 --output FOLDER
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from datasets import Dataset
from tabulate import tabulate
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

import hfcompress as hfc
from benchmarks.prune_global import machine
from examples.imdb.data import encode, load_reviews
from examples.imdb.models import load, starting_models
from examples.imdb.reconstruction import CALIBRATION_TEXTS, TEXTS, Texts
from hfcompress.compat import mixed_precision, processor_features
from hfcompress.deploy.formats import count_bytes
from hfcompress.deploy.onnx_graph import GraphInputs, build_graph
from hfcompress.deploy.openvino_model import compress_weights, convert, quantize_static
from hfcompress.deploy.quantization import find_operators, quantize, save_for_quantizer, weight_bits
from hfcompress.deploy.runtime import open_session
from hfcompress.models.tensors import stored_bytes

SHAPES = ((1, 32), (1, 128), (16, 32), (16, 128))  # texts and their tokens
REFERENCE = "torch float32"
MARKS = "<!-- written by benchmarks/export.py -->", "<!-- until here -->"
GOALS = {True: 5.0, False: 2.8}  # times as fast with one text of 128 tokens, with VNNI and without
Batch = dict[str, Tensor]
Run = Callable[[Batch], Any]
Row = dict[str, Any]


def main() -> None:
    """Measure, and write the figures and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("MiniLM", "BERT-base"), default=("MiniLM", "BERT-base"))
    parser.add_argument("--classifier", metavar="FOLDER", help="a fine-tuned MiniLM; else its head is random")
    parser.add_argument("--texts", choices=tuple(TEXTS), default="sentences", help="that it was fine-tuned on")
    parser.add_argument("--seed", type=int, default=0, help="of the texts that it was fine-tuned on (default: 0)")
    parser.add_argument("--count", type=int, default=600, help="of the texts that measure its accuracy (default: 600)")
    parser.add_argument("--repeats", type=int, default=8, help="rounds of one text; 16 have a quarter (default: 8)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="gets a .json and a .md file")
    parser.add_argument("--page", type=Path, metavar="FILE", help="gets the tables, between its two marks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch announces that its dynamic int8 will move to another package
    packaged, tokenizer = starting_models("packaged", {}, [], 512)["bert"].make()
    rows = []
    for name in arguments.models:
        torch.manual_seed(0)
        model, train, test = packaged, None, None
        if name == "BERT-base":
            model = BertForSequenceClassification(BertConfig())
        elif arguments.classifier:
            model, tokenizer = load(arguments.classifier)
            train, test = _texts(TEXTS[arguments.texts], arguments.seed, arguments.count, tokenizer)
        for share in ("whole", "half the FLOPs"):
            start = time.perf_counter()
            if share != "whole":
                how: Any = {"importance": "l1", "scope": "layer"} if train is None else {"importance": "obs"}
                hfc.prune_structured(model, flops=0.5, dataset=train, **how)
            with tempfile.TemporaryDirectory() as folder:
                systems = make_systems(model.float().eval(), tokenizer, Path(folder), train)
            for row in measure(systems, arguments.repeats, test):
                rows.append({"model": name, "share": share, **row})
            print(f"{name}, {share}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    packages = [name for name in ("torch", "transformers", "onnxruntime", "openvino") if find_spec(name)]
    result: Row = {"machine": machine(), "versions": {name: version(name) for name in packages}}
    result |= {"features": processor_features(), "repeats": arguments.repeats, "rows": rows}
    result["texts"] = f"{arguments.count} {arguments.texts}"
    print(render(result))
    write(result, arguments.output, arguments.page)


def write(result: Row, output: Path | None, page: Path | None) -> None:
    """Write the figures and the tables to a folder, and the tables into a page."""
    text = render(result)
    if output is not None:
        name = "export" if result["repeats"] else "export_accuracy"
        (output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (output / f"{name}.md").write_text(f"# What serves a classifier\n\n{text}\n", encoding="utf-8")
    if page is not None:
        before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
        _, mark, after = rest.partition(MARKS[1])
        page.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{mark}{after}", encoding="utf-8")


def _texts(texts: Texts, seed: int, count: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset]:
    drawn = load_reviews(texts.source, texts.count, texts.test_count, seed)
    parts = drawn["train"].select(range(CALIBRATION_TEXTS)), drawn["test"].select(range(count))
    train, test = (encode(part, tokenizer, texts.max_length) for part in parts)
    return train, test


def _random_batch(count: int, tokens: int) -> Batch:
    ids = torch.randint(1000, 20000, (count, tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def _text_batches(data: Dataset) -> list[Batch]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return [{name: torch.tensor([row[name]]) for name in names} for row in data]


def make_systems(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, data: Dataset | None
) -> dict[str, tuple[Run, int]]:
    """Return by name what runs the model, and the bytes of its file.

    Args:
        model: In float32 and eval mode.
        tokenizer: Makes its inputs.
        folder: For files, which need not stay.
        data: Texts that set static scales; random ids if None.
    """
    made = {REFERENCE: (_run_torch(model), stored_bytes(model))}
    if mixed_precision("cpu").name == "bf16":
        half = copy.deepcopy(model).bfloat16()
        made["torch bfloat16"] = _run_torch(half), stored_bytes(half)
    int8 = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})  # type: ignore[no-untyped-call]
    torch.save(int8.state_dict(), folder / "torch.pt")
    made["torch int8"] = _run_torch(int8), (folder / "torch.pt").stat().st_size

    files = {name: folder / f"{name}.onnx" for name in ("source", "float32", "int8", "static")}
    with torch.no_grad():
        graph = build_graph(model, GraphInputs(model, tokenizer))
    onnx.save(graph, files["float32"])
    save_for_quantizer(graph, files["source"])
    batches = [_random_batch(1, 128)] if data is None else _text_batches(data)[:64]
    quantize(files["source"], files["int8"], bits=weight_bits("this"))
    quantize(files["source"], files["static"], bits=weight_bits("this"), calibration=batches)
    for name, kind in {"float32": "float32", "int8": "int8", "static": "int8 static"}.items():
        made[f"ONNX Runtime {kind}"] = _run_session(files[name]), files[name].stat().st_size
    if find_spec("openvino"):
        made["OpenVINO float32"] = _run_openvino(files["float32"], "f32"), files["float32"].stat().st_size
        if mixed_precision("cpu").name == "bf16":
            made["OpenVINO bfloat16"] = _run_openvino(files["float32"], "bf16"), files["float32"].stat().st_size
        if find_spec("nncf"):
            source, dynamic, static = (folder / f"{name}.xml" for name in ("converted", "compressed", "scaled"))
            convert(files["float32"], source)
            compress_weights(source, dynamic)
            scales: Any = {"bits": weight_bits("this"), "int8": find_operators(graph), "calibration": batches}
            quantize_static(source, static, **scales)
            for name, file in {"OpenVINO int8": dynamic, "OpenVINO int8 static by NNCF": static}.items():
                made[name] = _run_openvino(file, "f32"), count_bytes(file)
        made["OpenVINO int8 static"] = _run_openvino(files["static"], "f32"), files["static"].stat().st_size
    return made


def _run_torch(model: nn.Module) -> Run:
    return lambda batch: model(**batch).logits.float().numpy()


def _run_session(file: Path) -> Run:
    session = open_session(file, threads=1)
    return lambda batch: session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]


def _run_openvino(file: Path, precision: str) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    return lambda batch: compiled({name: value.numpy() for name, value in batch.items()})[0]


@torch.inference_mode()
def measure(systems: dict[str, tuple[Run, int]], repeats: int, test: Dataset | None) -> list[Row]:
    """Time all systems in turn, and compare their predictions for each text alone; one row a system."""
    rows: dict[str, Row] = {name: {"system": name, "bytes": size, "ms": {}} for name, (_, size) in systems.items()}
    for count, tokens in SHAPES if repeats else ():
        batch, times = _random_batch(count, tokens), {name: list[float]() for name in systems}
        for turn in range(-1, repeats if count == 1 else max(1, repeats // 4)):
            for name, (run, _) in systems.items():
                run(batch)
                start = time.process_time()
                run(batch)
                if turn >= 0:
                    times[name].append(1000 * (time.process_time() - start))
        for name, those in times.items():
            rows[name]["ms"][f"{count}x{tokens}"] = statistics.median(those)
    if test is not None:
        batches, labels = _text_batches(test), np.array(test["labels"])
        predicted = {
            name: np.array([int(run(batch).argmax()) for batch in batches]) for name, (run, _) in systems.items()
        }
        for name, row in rows.items():
            row["accuracy"] = float((predicted[name] == labels).mean())
            row["agreement"] = float((predicted[name] == predicted[REFERENCE]).mean())
    return list(rows.values())


def render(result: Row) -> str:
    """Return a table a model, and whether the goals are reached."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    alike = f"the agreement is with torch float32 of the same model, on {result['texts']} that no training has seen.\n"
    lines = [
        f"{result['machine']}; {versions}. One thread; CPU-milliseconds, medians of {result['repeats']} rounds in turn",
        f"of one text, {max(1, result['repeats'] // 4)} of 16. The speed-up is against all FLOPs in torch float32;",
        alike,
    ]
    if not result["repeats"]:
        lines = [f"{result['machine']}; {versions}.", f"{alike[0].upper()}{alike[1:]}"]
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["model"] == model]
        lines += [
            f"### {model}\n",
            tabulate(_cells(rows), headers="keys", tablefmt="github", disable_numparse=True),
            "",
        ]
        if result["repeats"]:
            lines += [_judge(model, rows, "AVX-512 VNNI" in result["features"] or "AMX" in result["features"]), ""]
    return "\n".join(lines).rstrip()


def _cells(rows: Sequence[Row]) -> list[Row]:
    first, cells = rows[0], []
    for row in rows:
        cell = {
            "FLOPs": "half" if row["share"] != "whole" else "all",
            "run by": row["system"],
            "MB": f"{row['bytes'] / 1e6:.1f}",
        }
        cell |= {f"{shape.replace('x', ' x ')}, ms": f"{value:.1f}" for shape, value in row["ms"].items()}
        if row["ms"]:
            cell["speed-up, 1 x 128"] = f"{first['ms']['1x128'] / row['ms']['1x128']:.2f}"
            cell["16 x 128"] = f"{first['ms']['16x128'] / row['ms']['16x128']:.2f}"
        if "accuracy" in row:
            cell |= {"accuracy": f"{row['accuracy']:.3f}", "agreement": f"{row['agreement']:.3f}"}
        cells.append(cell)
    return cells


def _judge(model: str, rows: Sequence[Row], exact: bool) -> str:
    """Say whether the best runtime with half of the FLOPs reaches the goal, among the files of a fifth of the size."""
    first = rows[0]
    half = [row for row in rows if row["share"] != "whole"]
    small = [row for row in half if row["bytes"] <= first["bytes"] / 5]
    best = min(small or half, key=lambda row: row["ms"]["1x128"])
    ratio, goal = first["ms"]["1x128"] / best["ms"]["1x128"], GOALS[exact]
    return (
        f"{model} with half of its FLOPs, by {best['system']}, a text of 128 tokens: a speed-up of {ratio:.2f} over\n"
        f"the whole model in torch float32, in a file of 1/{first['bytes'] / best['bytes']:.1f} of its size. "
        f"The goal is {goal:g} {'with' if exact else 'without'} VNNI\nor AMX, and a fifth: "
        f"{'reached' if small and ratio >= goal else 'missed'}."
    )


if __name__ == "__main__":
    main()
