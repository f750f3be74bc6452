"""measure and compare with texts."""

import numpy as np
import pandas
import pytest
import torch
from architectures import build, texts, word_tokenizer
from datasets import Dataset

import hfcompress as hfc

TEXTS = ["a good film", "not a very good plot", "bad"]


def dense(model, inputs, **options):
    result = hfc.measure(model, inputs, repeats=1, **options)
    return [(one.batch_size, one.tokens, one.flops) for one in result.passes]


@pytest.mark.parametrize(
    "given",
    [TEXTS, tuple(TEXTS), np.array(TEXTS), Dataset.from_dict({"text": TEXTS})["text"]],
    ids=["list", "tuple", "array", "column"],
)
def test_texts_are_measured_like_their_ids(given):
    tokenizer, model = word_tokenizer(), build()
    expected = [{"input_ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    assert dense(model, given, processing_class=tokenizer) == dense(model, expected, processing_class=tokenizer)


def test_pairs_of_texts_are_measured_like_their_ids():
    tokenizer, model = word_tokenizer(marked=True), build()
    pairs = [("a film", "good"), ("bad", "a plot")]
    expected = [dict(tokenizer(*pair)) for pair in pairs]
    assert dense(model, pairs, processing_class=tokenizer) == dense(model, expected, processing_class=tokenizer)


@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize("kind", [list, Dataset.from_list])
@pytest.mark.parametrize("pairs", [False, True])
def test_labelled_rows_of_texts_are_measured_like_their_ids(pairs, kind, column):
    tokenizer, model = word_tokenizer(marked=True), build().eval()
    rows = [{"text": text, "text_pair": "a plot"} if pairs else {"text": text} for text in texts()["text"]]
    encoded = [tokenizer(*row.values(), return_tensors="pt") for row in rows]
    with torch.no_grad():
        classes = [int(model(**one).logits.argmax()) for one in encoded]
    labelled = [row | {column: index if number % 3 else 1 - index} for number, (row, index) in
                enumerate(zip(rows, classes, strict=True))]  # fmt: skip
    result = hfc.measure(model, kind(labelled), repeats=1, processing_class=tokenizer)
    assert result.accuracy == sum(number % 3 > 0 for number in range(len(rows))) / len(rows)
    with pytest.raises(hfc.CompressionError, match=r"are texts, .* pass their tokenizer as processing_class="):
        hfc.measure(model, labelled, repeats=1)


@pytest.mark.parametrize("limit", [int(1e30), 1e30, -1, None])
@pytest.mark.parametrize(("architecture", "reads"), [("bert", 64), ("roberta", 63), ("gpt2", 64), ("xlnet", 100)])
def test_texts_are_truncated_to_what_the_model_reads(limit, architecture, reads):
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = limit
    passes = hfc.measure(build(architecture), ["good " * 100], repeats=1, processing_class=tokenizer).passes
    assert passes[0].tokens == reads


def test_compare_encodes_the_texts_for_each_model():
    tokenizers = {"one": word_tokenizer(), "other": word_tokenizer(marked=True)}
    result = hfc.compare({name: build() for name in tokenizers}, TEXTS[:1], repeats=1, processing_class=tokenizers)
    assert [result.rows[name].passes[0].tokens for name in tokenizers] == [3, 4]


REFUSED = {
    "no tokenizer": (TEXTS, None, "are texts, such as 'a good film'; pass their tokenizer as processing_class="),
    "not all texts": ([*TEXTS, None], word_tokenizer(), "Number 3 of .* is None, not a text"),
    "no texts": ([None], word_tokenizer(), "hold NoneType examples"),
    "lists of ids": ([[5, 6], [7]], word_tokenizer(), "hold list examples"),
    "a tensor": (torch.ones(2, 3, dtype=torch.long), word_tokenizer(), "hold Tensor examples"),
    "rows without a text": (texts().rename_column("text", "review"), word_tokenizer(), "with input_ids in each row"),
    "a table": (
        pandas.DataFrame({"text": TEXTS, "other": TEXTS}),
        word_tokenizer(),
        "are a DataFrame of several columns",
    ),
    "an empty text": (["good", ""], word_tokenizer(), "has 0 tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_are_no_texts_is_refused_by_name(case):
    inputs, tokenizer, message = REFUSED[case]
    with pytest.raises(hfc.CompressionError, match=message):
        hfc.measure(build(), inputs, processing_class=tokenizer)
