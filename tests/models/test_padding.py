"""No logits depend on what else is in the batch: a row's are those of its text alone, for every verb that reads."""

import copy

import pytest
import torch
from architectures import EOS, LONG, PAD, WITH_NEURONS, build, rows, word_tokenizer
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import hfcompress as hfc
from hfcompress import CompressionError
from hfcompress.distill.layer_losses import ForwardRecorder
from hfcompress.distill.teachers import Teachers
from hfcompress.models.inputs import read_examples
from hfcompress.models.padding import fill_padding, padded_with, reading, unpadded_batches, without_padding
from hfcompress.report.benchmark import predict_logits
from hfcompress.shrink.importance import labelled_batches

LENGTHS = (3, 9, 4, 9, 6)
LAST_TOKEN = ("gpt2", "llama", "qwen2", "opt", "gpt-neo", "bloom", "gptj", "falcon", "phi", "phi3", "gemma", "ctrl")
LAST_TOKEN += ("gpt-neox", "persimmon")
# No padding token, two outside of the vocabulary, one that is in the texts, and the one at their end.
NAMED = [
    (name, pad)
    for name in LAST_TOKEN
    for pad in (None, -1, 500, 5, EOS)
    if LONG or pad in (None, EOS) or name in ("gpt2", "llama")
]
CLOSE = {"rtol": 0, "atol": 1e-4}
MODEL, STUDENT = build("bert", 3), build("bert", 3, seed=9)


def make_texts(lengths=LENGTHS, seed=0):
    """Return texts as ids, each with one token for its end."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randint(5, 100, (length,), generator=generator) for length in lengths]
    for text in made:
        text[-1] = EOS
    return made


def padded(made, side, index):
    """Return texts as one batch, padded with an id."""
    longest = max(map(len, made))
    batch = {"input_ids": torch.full((len(made), longest), index), "attention_mask": torch.zeros(len(made), longest)}
    for row, text in enumerate(made):
        place = slice(0, len(text)) if side == "right" else slice(longest - len(text), longest)
        batch["input_ids"][row, place], batch["attention_mask"][row, place] = text, 1
    return batch | {"attention_mask": batch["attention_mask"].long()}


def alone(model, made):
    """Return the logits of each text by itself."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return torch.cat([model(text[None], attention_mask=torch.ones_like(text[None])).logits for text in made])


def measured(model, given, size=16, tokenizer=None):
    with without_padding(model):
        return predict_logits("model", model, read_examples("data", model, given, tokenizer), size).float()


def as_teacher(model, batch):
    return Teachers(STUDENT, [model], None).outputs(batch, ForwardRecorder()).logits


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", WITH_NEURONS)
def test_the_logits_of_a_row_are_those_of_its_text_alone(architecture, side, tmp_path):
    """The padding has an id that the model does not take for padding."""
    model, made = build(architecture, 3), make_texts()
    expected, config = alone(model, made), model.config.to_dict()
    batch, spread = padded(made, side, 7), expected.std()
    assert spread > 1e-2
    for size in (1, 2, 16):
        torch.testing.assert_close(measured(model, batch, size), expected, **CLOSE)
        torch.testing.assert_close(measured(model, rows(batch), size), expected, **CLOSE)
    data = Dataset.from_list([{"input_ids": text.tolist()} for text in made])
    for size in (2, 16) if side == "right" else ():  # no padding is in these rows
        cached = hfc.cache_teacher_logits(model, data, batch_size=size, cache_dir=tmp_path / str(size))
        torch.testing.assert_close(torch.tensor(cached["teacher_logits"]), expected, **CLOSE)
    torch.testing.assert_close(as_teacher(model, batch), expected, **CLOSE)
    assert model.config.to_dict() == config


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("architecture", "pad"), NAMED)
def test_the_last_token_is_found_whatever_the_config_names(architecture, pad, side):
    model, made = build(architecture, 3, pad_token_id=PAD), make_texts()
    model.config.pad_token_id = pad
    made[1][-1] = made[2][0] = 5
    expected = alone(model, made)
    for index in (7, EOS, 5):
        batch = padded(made, side, index)
        torch.testing.assert_close(measured(model, batch), expected, **CLOSE)
        torch.testing.assert_close(as_teacher(model, batch), expected, **CLOSE)
    assert model.config.pad_token_id == pad


@pytest.mark.parametrize("summary", ["last", "first", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_summary_of_xlnet_is_of_the_text_alone(summary, side):
    model, made = build("xlnet", 3, summary_type=summary), make_texts()
    batch = padded(made, side, PAD)
    for found in (measured(model, batch), as_teacher(model, batch)):
        torch.testing.assert_close(found, alone(model, made), **CLOSE)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9), size=st.integers(1, 10), seed=st.integers(0, 99))
def test_batches_hold_every_row_once_and_no_padding(lengths, size, seed):
    made = make_texts(lengths, seed)
    found = {}
    for indices, batch in unpadded_batches(MODEL, [{"input_ids": text} for text in made], size):
        assert 1 <= len(indices) <= size
        found |= dict(zip(indices, batch["input_ids"], strict=True))
    assert sorted(found) == list(range(len(made)))
    assert all(torch.equal(found[index], text) for index, text in enumerate(made))


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_texts_with_several_ends_are_read_by_encoder_decoders(architecture):
    model, made = build(architecture, 3), make_texts((6, 6, 6))
    made[1][2] = EOS
    torch.testing.assert_close(measured(model, padded(made, "right", PAD)), alone(model, made), **CLOSE)
    torch.testing.assert_close(
        as_teacher(model, padded(make_texts(), "right", EOS)), alone(model, make_texts()), **CLOSE
    )


def test_what_a_model_cannot_read_alone_is_refused_in_a_sentence(tmp_path):
    refused = pytest.raises(CompressionError, match="FunnelForSequenceClassification does not read texts of 2 tokens")
    model, batch = build("funnel", 3), padded(make_texts((2, 9)), "right", PAD)
    with refused:
        measured(model, batch)
    with refused:
        hfc.cache_teacher_logits(model, Dataset.from_list(rows(batch)), cache_dir=tmp_path)
    no_end = Dataset.from_dict({"input_ids": [[9, 8, 7]]})
    with pytest.raises(CompressionError, match="T5ForSequenceClassification does not read texts of 3 tokens"):
        hfc.cache_teacher_logits(build("t5", 3), no_end, cache_dir=tmp_path)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "xlnet", "llama"])
def test_scores_do_not_depend_on_the_batch(architecture):
    model, made = build(architecture, 3), make_texts()
    data = [{"input_ids": text.tolist(), "labels": index % 3} for index, text in enumerate(made)]
    for side, size in (("left", 5), ("right", 2)):
        given = [data, [padded(made, side, 7) | {"labels": torch.tensor([0, 1, 2, 0, 1])}]]
        for form in given:
            batches = labelled_batches(model, form, size)
            assert all(batch["attention_mask"].all() for batch in batches)
            found = {
                tuple(ids.tolist()): int(label)
                for b in batches
                for ids, label in zip(b["input_ids"], b["labels"], strict=True)
            }
            assert found == {tuple(row["input_ids"]): row["labels"] for row in data}


@pytest.mark.parametrize("pad", [None, 3])
def test_gpt2_is_measured_as_its_texts_alone_are(pad, tmp_path):
    """The tokenizer pads with another id than the config names, and the config stays as it is."""
    model, tokenizer, made = build("gpt2", 3), word_tokenizer(), make_texts((2, 7, 4, 4, 9, 3, 8, 5))
    model.config.pad_token_id = pad
    labels = alone(model, made).argmax(-1)
    data = [{"input_ids": text.tolist(), "labels": int(label)} for text, label in zip(made, labels, strict=True)]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        for size in (1, 3, 16):
            assert hfc.measure(model, data, batch_size=size, repeats=1, processing_class=tokenizer).accuracy == 1.0
        batch = dict(tokenizer.pad([{"input_ids": text.tolist()} for text in made], return_tensors="pt"))
        found = hfc.measure(model, batch | {"labels": labels}, repeats=1, processing_class=tokenizer)
        assert found.accuracy == 1.0
        found = hfc.compare({"a": model, "b": copy.deepcopy(model)}, data, repeats=1, processing_class=tokenizer)
        assert found.rows["b"].agreement == found.rows["a"].accuracy == 1.0
    assert model.config.pad_token_id == pad


def test_a_token_of_padding_beyond_the_vocabulary_is_not_read():
    model, made = build("gpt2", 3), make_texts()
    model.config.pad_token_id = None
    tokenizer = word_tokenizer([f"word {index}" for index in range(200)])
    tokenizer.pad_token = "word 150"
    labels = alone(model, made).argmax(-1).tolist()
    data = [{"input_ids": text.tolist(), "labels": label} for text, label in zip(made, labels, strict=True)]
    assert hfc.measure(model, data, repeats=1, processing_class=tokenizer).accuracy == 1.0


@pytest.mark.parametrize("form", ["tensors", "rows"])
def test_padding_without_a_mask_is_refused(form):
    batch = {"input_ids": padded(make_texts(), "right", PAD)["input_ids"], "labels": torch.zeros(5, dtype=torch.long)}
    with pytest.raises(CompressionError, match="begins or ends with the padding token, 0, and has no attention_mask"):
        hfc.measure(MODEL, batch if form == "tensors" else rows(batch))


def test_a_mask_of_zeros_is_a_text_without_tokens():
    batch = padded(make_texts(), "right", PAD)
    batch["attention_mask"][2] = 0
    with pytest.raises(CompressionError, match="has 0 tokens"):
        hfc.measure(MODEL, batch)


def test_a_batch_of_a_teacher_that_nothing_can_pad_is_refused():
    teacher = build("gpt2", 3)
    teacher.config.pad_token_id = None
    with pytest.raises(CompressionError, match=r"no padding token is defined.*config\.pad_token_id"):
        as_teacher(teacher, {"input_ids": torch.full((2, 4), 7)})


def test_the_config_comes_back_after_an_error():
    model, seen = build("gpt2", 3), []
    model.config.pad_token_id = None

    def fail():
        seen.append(model.config.pad_token_id)
        raise KeyError("stop")

    for context in (without_padding(model), padded_with(model, 7)):
        with pytest.raises(KeyError, match="stop"), context:
            fail()
        assert model.config.pad_token_id is None
    assert seen == [-1, 7]


def test_holes_in_a_mask_are_not_padding():
    batch = padded(make_texts(), "right", 7)
    batch["attention_mask"][1, 4] = 0
    filled, index = fill_padding(MODEL, batch)
    assert index == PAD
    assert filled["input_ids"][1].equal(batch["input_ids"][1])


def test_a_known_teacher_runs_once_on_a_padded_batch():
    """That its logits are those without padding is checked at the first batch of each side and length."""
    teacher, batch, calls = build("bert", 3), padded(make_texts(), "right", PAD), []
    run = Teachers(STUDENT, [teacher], None)
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    counts = []
    for _ in range(3):
        run.outputs(batch, ForwardRecorder())
        counts.append(len(calls))
        calls.clear()
    assert counts == [1 + len(set(LENGTHS)), 1, 1]


@pytest.mark.parametrize("architecture", ["bert", "xlnet"])
def test_what_is_recorded_comes_with_the_logits_of_the_texts_alone(architecture):
    model, made = build(architecture, 3), make_texts()
    run = Teachers(STUDENT, [model], None)
    for _ in range(2):
        found = run.outputs(padded(made, "right", 7), ForwardRecorder(hidden=True))
        assert found.hidden[0].shape[:2] == (5, 9)
        torch.testing.assert_close(found.logits, alone(model, made), **CLOSE)


def test_a_teacher_with_a_tokenizer_that_pads_nothing_is_distilled(tmp_path):
    student, teacher, own, other = build("bert", 3), build("gpt2", 3), word_tokenizer(), word_tokenizer(["film", "a"])
    teacher.config.pad_token_id = other.pad_token = None
    texts = ["a film", "a", "film a film a"]
    data = [{**own(text), "text": text, "labels": 0} for text in texts]
    args = hfc.DistillationArguments(str(tmp_path), alpha=1.0, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = hfc.DistillationTrainer(
        student, args, teacher=teacher, teacher_processing_class=other, processing_class=own, eval_dataset=data
    )
    expected = alone(teacher, [torch.tensor(other(text)["input_ids"]) for text in texts]).softmax(-1)
    ours = alone(student, [torch.tensor(row["input_ids"]) for row in data]).softmax(-1)
    found = trainer.evaluate()["eval_distillation_loss"]
    assert found == pytest.approx(float((ours - expected).square().mean()), rel=1e-4)
    assert teacher.config.pad_token_id is None


def test_a_student_finds_its_padding_by_the_mask(tmp_path):
    """Before the training, which takes the tokenizer's token over."""
    student, made = build("gpt2", 3), make_texts()
    args = hfc.DistillationArguments(str(tmp_path), alpha=0.0, use_cpu=True, report_to="none", disable_tqdm=True)
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "film"
    labels = alone(student, made).argmax(-1).tolist()
    data = [{"input_ids": text.tolist(), "labels": label} for text, label in zip(made, labels, strict=True)]
    trainer = hfc.DistillationTrainer(student, args, eval_dataset=data, processing_class=tokenizer)
    assert trainer.evaluate()["eval_accuracy"] == 1.0


def test_memory_that_runs_out_is_no_fault_of_the_texts():
    """So that auto_find_batch_size tries a smaller batch."""
    with pytest.raises(RuntimeError, match="can't allocate memory"), reading(build("bert"), {}):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
