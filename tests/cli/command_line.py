"""What the tests of the command share: columns of their data, and figures by plain loops."""

import json
import shlex

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

VERBS = ("finetune", "report", "prune", "shrink", "distill", "compress", "compare", "pack", "unpack", "export")
WORDS = ("a", "film", "good", "fine", "bad", "dull", "not", "so")
NUMBERS = ("--text-column", "review", "--label-column", "number")
COLUMNS = ("--text-column", "review", "--label-column", "sentiment")


def make_tokenizer(words=WORDS, pad="[PAD]", **settings):
    """Return a tokenizer of these words, for 16 tokens at most unless the settings say otherwise."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *words])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    settings = {"model_max_length": 16} | settings
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, unk_token="[UNK]", eos_token="[UNK]", **settings
    )


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def read_reviews(data):
    """Return the rows of the test file."""
    return [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]


def predict(folder, data):
    """Return the logits by a plain loop, one text at a time, and the accuracy."""
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    rows = read_reviews(data)
    with torch.no_grad():
        logits = torch.cat([model(**tokenizer(row["review"], return_tensors="pt")).logits for row in rows])
    labels = torch.tensor([int(row["sentiment"] == "YES") for row in rows])
    return logits, (logits.argmax(-1) == labels).double().mean().item()


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def all_next_of(printed, width=80):
    """Return the words of each command at the end of what was printed."""
    paragraph = printed.rstrip("\n").rpartition("\n\n")[2]
    assert paragraph.startswith("next, ")
    assert max(map(len, paragraph.splitlines())) <= width
    parts = (line for line in paragraph.replace("\\\n", "").splitlines() if line.startswith("  "))
    commands = [shlex.split(part) for part in parts]
    assert all(words.pop(0) == "hfcompress" for words in commands)
    return commands


def next_of(printed, width=80):
    """Return the words of the last command at the end of what was printed."""
    return all_next_of(printed, width)[-1]
