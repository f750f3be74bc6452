"""The one padder: as the tokenizer pads, or on the right with the model's pad token."""

import pytest
import torch
from architectures import PAD, build, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from hfcompress import CompressionError
from hfcompress.models.inputs import Padder, read_examples

BERT = build("bert")
lists_of_ids = st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=20), min_size=1, max_size=6)


@given(lists_of_ids)
def test_rows_are_padded_on_the_right_with_the_models_token(texts):
    batch = Padder(BERT)([{"input_ids": ids} for ids in texts])
    longest = max(map(len, texts))
    for index, ids in enumerate(texts):
        rest = longest - len(ids)
        assert batch["input_ids"][index].tolist() == ids + [PAD] * rest
        assert batch["attention_mask"][index].tolist() == [1] * len(ids) + [0] * rest


@pytest.mark.parametrize("side", ["left", "right"])
@given(texts=lists_of_ids)
def test_a_tokenizer_pads_as_it_does_elsewhere(texts, side):
    tokenizer = word_tokenizer()
    tokenizer.padding_side = side
    expected = tokenizer.pad({"input_ids": texts, "attention_mask": [[1] * len(ids) for ids in texts]})
    batch = Padder(BERT, tokenizer)([{"input_ids": ids} for ids in texts])
    assert {name: values.tolist() for name, values in batch.items()} == {
        k: list(map(list, v)) for k, v in expected.items()
    }


def test_rows_may_be_lists_or_tensors():
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8]}]
    tensors = [{"input_ids": torch.tensor(row["input_ids"])} for row in rows]
    for tokenizer in (None, word_tokenizer()):
        one, other = (Padder(BERT, tokenizer)(given) for given in (rows, tensors))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_mask_that_is_there_is_kept():
    batch = Padder(BERT)([{"input_ids": [5, 6], "attention_mask": [1, 0]}, {"input_ids": [7], "attention_mask": [1]}])
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 0]]


def test_rows_of_one_length_need_no_pad_token():
    model = build("gpt2", pad_token_id=None)
    assert Padder(model)([{"input_ids": [5, 6]}, {"input_ids": [7, 8]}])["input_ids"].shape == (2, 2)


def test_rows_without_a_pad_token_are_refused():
    model = build("gpt2", pad_token_id=None)
    with pytest.raises(CompressionError, match=r"GPT2ForSequenceClassification has no config\.pad_token_id"):
        Padder(model)([{"input_ids": [5, 6]}, {"input_ids": [7]}])


@pytest.mark.parametrize("form", ["rows", "tensors"])
def test_lengths_are_those_of_the_texts_without_padding(form):
    ids, mask = [[5, 6, PAD, PAD], [PAD, 5, 6, 7]], [[1, 1, 0, 0], [0, 1, 1, 1]]
    data = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    given = data if form == "tensors" else [dict(zip(data, row, strict=True)) for row in zip(ids, mask, strict=True)]
    assert read_examples("data", BERT, given).lengths == [2, 3]


@pytest.mark.parametrize("column", ["labels", "label", "label_ids"])
def test_labels_are_read_under_all_names(column):
    examples = read_examples("data", BERT, [{"input_ids": [5], column: 1}, {"input_ids": [6, 7], column: 0}])
    assert examples.labels.tolist() == [1, 0]
    assert examples.lengths == [1, 2]
    assert set(examples.take([1])) == {"input_ids", "attention_mask"}
