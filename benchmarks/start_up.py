"""How long it takes to start: `hfcompress --help`, `import hfcompress`, and what each verb imports.

Every figure is of new processes, in turn: Python alone and then the help; in one process first torch and
`transformers.modeling_utils` and then hfcompress; and of each verb what it takes the first time less what it takes the
second time in the same process, with a tiny BERT and 40 texts: that is what it imports. Beside it stands, measured
likewise, what loading that BERT and its tokenizer with plain transformers takes, for a verb that trains with the
Trainer imported. CPU time does not grow by waiting on a busy machine. Bytecode must have been written: the first,
unmeasured round does that, unless PYTHONDONTWRITEBYTECODE is set.

    python -m benchmarks.start_up > benchmarks/results/start_up.md
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from benchmarks.prune_global import machine

_IMPORTS = """
import json, time
marks = [(time.perf_counter(), time.process_time())]
import torch, transformers.modeling_utils
marks.append((time.perf_counter(), time.process_time()))
import hfcompress
marks.append((time.perf_counter(), time.process_time()))
print(json.dumps(marks))
"""
_LOADING = """
import transformers
def work():
    {imports}
    transformers.AutoModelForSequenceClassification.from_pretrained("bert")
    transformers.AutoTokenizer.from_pretrained("bert")
"""
_VERB = """
import contextlib, io
from hfcompress_cli import main
def work():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main({words}) == 0
"""
_TWICE = """
import json, time
marks = [(time.perf_counter(), time.process_time())]
{program}
for _ in range(2):
    work()
    marks.append((time.perf_counter(), time.process_time()))
first, second = ([b - a for a, b in zip(marks[n], marks[n + 1])] for n in range(2))
print(json.dumps([one - other for one, other in zip(first, second)]))
"""
_TRAINER = "from transformers import HfArgumentParser, Trainer, TrainingArguments"
_SHORT = "--data texts.csv --max-steps 1 -o out --overwrite"
_LOADS = {
    "report": "report bert",
    "prune": "prune bert --amount 20% -o out --overwrite",
    "shrink": "shrink bert --heads 0.5 --data texts.csv -o out --overwrite",
    "compare": "compare bert --data texts.csv --repeats 1",
    "pack": "pack bert out --overwrite",
}
_TRAINS = {
    "finetune": f"finetune bert {_SHORT}",
    "distill": f"distill bert --student-layers 1 {_SHORT}",
    "prune --data": f"prune bert --amount 20% {_SHORT}",
}
_COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "hfcompress --help": ["-m", "hfcompress_cli", "--help"],
    "hfcompress distill --help": ["-m", "hfcompress_cli", "distill", "--help"],
    "hfcompress finetune --help": ["-m", "hfcompress_cli", "finetune", "--help"],
}
_PLAIN, _WITH_TRAINER = "load with transformers", "load with transformers, and its Trainer"
_LIMITS = {"hfcompress --help": "300", "import hfcompress": "50"}


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        _write_inputs(Path(folder))
        for repeat in range(repeats + 1):
            for name, seconds in (_measure_all() | _measure_verbs(folder)).items():
                if repeat:
                    found.setdefault(name, []).append(seconds)
    print("# Starting\n")
    print(f"{machine()}, Python {sys.version.split()[0]}; medians of {repeats} new processes in turn.\n")
    starts = [name for name in found if name not in {_PLAIN, _WITH_TRAINER, *_LOADS, *_TRAINS}]
    print(_table({name: found[name] for name in starts}, _LIMITS))
    print("\nWhat verbs import, beside what transformers needs to load the model (allowed: 10 % more):\n")
    for plain, verbs in ((_PLAIN, _LOADS), (_WITH_TRAINER, _TRAINS)):
        allowed = f"{1100 * statistics.median(cpu for _, cpu in found[plain]):.0f} of CPU"
        print(_table({name: found[name] for name in (plain, *verbs)}, dict.fromkeys(verbs, allowed)) + "\n")


def _table(found: dict[str, list[tuple[float, float]]], limits: dict[str, str]) -> str:
    rows = []
    for name, times in found.items():
        wall, cpu = ([1000 * one for one in part] for part in zip(*times, strict=True))
        rows.append(
            {
                "": name,
                "ms": f"{statistics.median(wall):.0f}",
                "fastest": f"{min(wall):.0f}",
                "ms of CPU": f"{statistics.median(cpu):.0f}",
                "allowed": limits.get(name, "-"),
            }
        )
    return str(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def _write_inputs(folder: Path) -> None:
    """Write a tiny BERT with a tokenizer, and a table of texts."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "good", "bad", "film"]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(vocab_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    BertForSequenceClassification(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    rows = "".join(f"{words[2 + n % 2]} film,{n % 2}\n" for n in range(40))
    (folder / "texts.csv").write_text("text,label\n" + rows)


def _measure_verbs(folder: str) -> dict[str, tuple[float, float]]:
    """Return the wall and CPU seconds of what each verb imports, and plain transformers, measured once."""
    programs = {_PLAIN: _LOADING.format(imports="pass"), _WITH_TRAINER: _LOADING.format(imports=_TRAINER)}
    programs |= {name: _VERB.format(words=words.split()) for name, words in (_LOADS | _TRAINS).items()}
    found = {}
    for name, program in programs.items():
        command = [sys.executable, "-c", _TWICE.format(program=program)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
        wall, cpu = json.loads(output.splitlines()[-1])
        found[name] = wall, cpu
    return found


def _measure_all() -> dict[str, tuple[float, float]]:
    """Return the wall and CPU seconds of each command and import, measured once."""
    times = {name: _time_process(arguments) for name, arguments in _COMMANDS.items()}
    output = subprocess.run([sys.executable, "-c", _IMPORTS], check=True, capture_output=True, text=True).stdout
    start, others, ours = json.loads(output.splitlines()[-1])
    times["import torch, transformers.modeling_utils"] = (others[0] - start[0], others[1] - start[1])
    times["import hfcompress"] = (ours[0] - others[0], ours[1] - others[1])
    return times


def _time_process(arguments: list[str]) -> tuple[float, float]:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ)
    elapsed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
