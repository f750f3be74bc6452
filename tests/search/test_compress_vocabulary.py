"""`compress` with a smaller vocabulary: rungs read other ids, and the original its own."""

import pytest
import torch
from architectures import WORDS, arguments, build, same_bits, state_of, texts, word_tokenizer
from test_compress import settings, stopwatch  # noqa: F401 # a fixture for all tests
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hfcompress import CompressionError, DistillationArguments
from hfcompress.search import rungs
from hfcompress.search.compressing import compress

MORE = ("zebra", "yak", *WORDS, "xylophone", "seen")  # so that ids change, and one word is in no text to learn from
ROWS = texts(240)
OTHERS = [dict(row) | {"text": row["text"] + " seen"} for row in texts(60)]


def model(**overrides):
    return build("bert", layers=2, vocab_size=3 + len(MORE), **overrides)


def given(folder, **overrides):
    own = {"processing_class": word_tokenizer(MORE), "speedup": 1.5, "vocabulary": True, "eval_dataset": OTHERS}
    return settings(folder, **own | overrides)


def by_hand(one, tokenizer, rows):
    with torch.no_grad():
        logits = [one.eval()(**tokenizer(row["text"], return_tensors="pt")).logits[0] for row in rows]
    return torch.stack(logits)


def test_rungs_keep_the_tokens_of_the_texts(tmp_path, monkeypatch):
    seen, train = [], rungs.train_rung

    def watch(student, teacher, parts, *args, **kwargs):
        seen.append(parts)
        return train(student, teacher, parts, *args, **kwargs)

    monkeypatch.setattr(rungs, "train_rung", watch)
    original = model()
    before = state_of(original)
    rung = compress(original, ROWS, **given(tmp_path))["1.5x"]
    assert same_bits(state_of(original), before)
    assert rung.recipe.startswith("of original; 11 of 15 tokens; ")
    tokenizer = AutoTokenizer.from_pretrained(rung.folder)
    smaller = AutoModelForSequenceClassification.from_pretrained(rung.folder)
    assert sorted(tokenizer.get_vocab()) == sorted(["[PAD]", "[UNK]", "[CLS]", *WORDS])
    assert smaller.config.vocab_size == 11

    (parts,) = seen
    assert tokenizer.decode(parts.train[5]["input_ids"]) == ROWS[5]["text"]
    expected = by_hand(original, word_tokenizer(MORE), ROWS)
    torch.testing.assert_close(torch.tensor(parts.train["teacher_logits"]), expected, rtol=1e-4, atol=1e-5)

    measured = [OTHERS[n] for n, row in enumerate(OTHERS) if n not in _checked(parts, tokenizer)]
    assert len(parts.measure) == len(measured) == 40
    labels = torch.tensor([row["labels"] for row in measured])
    for one, words, found in ((original, word_tokenizer(MORE), rung.original), (smaller, tokenizer, rung.measured)):
        right = by_hand(one, words, measured).argmax(-1) == labels
        assert found.accuracy == pytest.approx(right.float().mean().item())


def _checked(parts, tokenizer):
    """The places in OTHERS of the rows that check the training."""
    rows = [(tokenizer(row["text"])["input_ids"], row["labels"]) for row in OTHERS]
    places = []
    for row in parts.check:
        same = (n for n, one in enumerate(rows) if one == (row["input_ids"], row["labels"]) and n not in places)
        places.append(next(same))
    return places


def test_rows_that_were_encoded_with_their_texts(tmp_path):
    tokenizer = word_tokenizer(MORE)
    encoded = [dict(row) | dict(tokenizer(row["text"])) for row in ROWS]
    found = [
        compress(model(), rows, **given(tmp_path / name))["1.5x"] for name, rows in (("ids", encoded), ("texts", ROWS))
    ]
    assert found[0].shapes == found[1].shapes
    assert same_bits(*(state_of(rung.model) for rung in found))


def test_rows_so_few_that_none_checks_the_training(tmp_path):
    rung = compress(model(), ROWS, **given(tmp_path, eval_dataset=OTHERS[:2]))["1.5x"]
    assert rung.measured.examples == rung.original.examples == 2
    assert rung.model.config.vocab_size == 11


def test_layers_are_compared_with_the_original(tmp_path):
    args = arguments(DistillationArguments, tmp_path / "args", hidden_weight=0.1, max_steps=2)
    assert compress(model(), ROWS, **given(tmp_path, args=args))["1.5x"].model.config.vocab_size == 11


@pytest.mark.parametrize(
    ("rows", "asked", "message"),
    [
        ([{"input_ids": [3, 4], "labels": n % 2} for n in range(90)], {}, "train_dataset has no column 'text'"),
        ([{"text": "good", "input_ids": [3, 4], "labels": n % 2} for n in range(90)], {}, "other input_ids than"),
        (ROWS, {"vocabulary": "all"}, "vocabulary='all'"),
        (ROWS, {"eval_dataset": [{"input_ids": [3], "labels": 0}] * 30}, "eval_dataset has no column 'text'"),
    ],
    ids=["no texts", "other ids", "kind", "no texts to measure"],
)
def test_what_cannot_be_read_anew_is_refused(rows, asked, message, tmp_path):
    with pytest.raises(CompressionError, match=message):
        compress(model(), rows, **given(tmp_path, **asked))
    assert list(tmp_path.iterdir()) == []


def test_another_teacher_has_no_layers_for_new_tokens(tmp_path):
    args = arguments(DistillationArguments, tmp_path / "args", hidden_weight=0.1)
    with pytest.raises(CompressionError, match="the models read other tokens than teacher="):
        compress(model(), ROWS, **given(tmp_path, args=args, teacher=model(seed=2)))
