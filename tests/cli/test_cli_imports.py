"""What the verbs import, beside what transformers needs to load the model; counted, as time depends on the machine."""

import json
import os
import subprocess
import sys

import pytest
from command_line import COLUMNS

PROGRAM = """
import contextlib, io, json, sys
folder, commands, trains = json.loads(sys.argv[1])
from transformers import AutoModelForSequenceClassification, AutoTokenizer
AutoModelForSequenceClassification.from_pretrained(folder)
AutoTokenizer.from_pretrained(folder)
if trains:
    from transformers import DataCollatorWithPadding, HfArgumentParser, Trainer, TrainingArguments, set_seed
before = set(sys.modules)
from hfcompress_cli import main
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(command) == 0, command
print(json.dumps(sorted(set(sys.modules) - before)))
"""
# Modules of a few lines each that transformers does not load: to count FLOPs, to pad, to save a model's weights.
SMALL = ("torch.utils.", "transformers.data", "torch.profiler.", "transformers.modelcard")
OWN = ("hfcompress", "tqdm")


def commands_of(kind, models, data, folder):
    bert, rows = str(models / "bert"), ["--data", str(data / "test.jsonl"), *COLUMNS]
    if kind == "trains":
        short = [*rows, "--max-steps", "1", "-o"]
        return [
            ["finetune", bert, *short, f"{folder}/finetuned"],
            ["distill", bert, "--student-layers", "1", *short, f"{folder}/distilled"],
            ["prune", bert, "--amount", "20%", *short, f"{folder}/pruned"],
        ]
    return [
        ["report", bert],
        ["prune", bert, "--amount", "20%", "-o", f"{folder}/pruned"],
        ["shrink", bert, "--heads", "0.25", *rows, "-o", f"{folder}/shrunken"],
        ["compare", bert, *rows, "--repeats", "1"],
        ["pack", bert, f"{folder}/packed"],
    ]


@pytest.mark.parametrize("kind", ["loads", "trains"])
def test_a_verb_imports_little_beside_transformers(kind, models, data, tmp_path):
    given = json.dumps([str(models / "bert"), commands_of(kind, models, data, tmp_path), kind == "trains"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, given], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    others = [name for name in found if not name.startswith((*OWN, *SMALL)) and "." in name]
    packages = {name for name in found if "." not in name} - sys.stdlib_module_names - {"hfcompress", "hfcompress_cli"}
    heavy = {"accelerate", "datasets", "matplotlib", "onnx", "pandas", "scipy", "sklearn", "sympy", "torch_pruning"}
    assert not packages & heavy
    assert len([name for name in others if name.partition(".")[0] not in sys.stdlib_module_names]) <= 10, others
    if kind == "loads":
        assert "transformers.trainer" not in found
