"""Labels that are no numbers, and texts that are too long, are refused in a sentence."""

import re

import numpy as np
import pytest
import torch
from architectures import arguments, build, word_tokenizer
from datasets import Dataset
from transformers import DataCollatorWithPadding

import hfcompress as hfc

LABELS = {
    "names": (["good", "bad"], "'good'"),
    "numbers as texts": (["0", "1"], "'0'"),
    "one is missing": ([0, None], "None"),
    "the first is missing": ([None, 0], "None"),
    "one of several is missing": ([[1, None], [0, 1]], r"\[1, None\]"),
}


@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize(("kind", "column"), [(list, "labels"), (Dataset.from_list, "label")])
def test_labels_that_are_no_numbers_are_refused_by_name(case, column, pads, kind, tmp_path):
    labels, shown = LABELS[case]
    data = kind([{"input_ids": [5, 6], "attention_mask": [1, 1], column: label} for label in labels])
    tokenizer = word_tokenizer() if pads else None
    args = arguments(hfc.DistillationArguments, tmp_path)
    model, teacher = build(), build(seed=1)
    trainer = hfc.DistillationTrainer(
        model=model, teacher=teacher, args=args, train_dataset=data, processing_class=tokenizer
    )
    with pytest.raises(hfc.CompressionError, match=f"The label {shown} in the column '{column}' is no number"):
        trainer.train()


NAN, INF = float("nan"), float("inf")
NOT_FIT = {
    "of a regression": ({"num_labels": 1}, [0.5, NAN], "is NaN or infinite: nan, of example 1"),
    "of a regression, infinite": ({"num_labels": 1}, [-INF, 0.5], "is NaN or infinite: -inf, of example 0"),
    "of a class": ({}, [0.0, NAN], "is NaN or infinite: nan, of example 1"),
    "of several": ({"problem_type": "multi_label_classification"}, [[1.0, 0.0], [1.0, NAN]], "NaN or infinite"),
    "-100 of several": ({"problem_type": "multi_label_classification"}, [[1, 0], [-100, 1]], "is not 0 or 1: -100"),
    "2 of several": ({"problem_type": "multi_label_classification"}, [[1.0, 2.0], [1.0, 0.0]], "is not 0 or 1: 2"),
    "as many as others": ({"problem_type": "multi_label_classification"}, [[1.0, 0.0], [1.0]], "is of 1 numbers"),
    "a dict": ({}, [0, {"a": 1}], r"The label \{'a': 1\} in the column 'labels' is no number"),
}


@pytest.mark.parametrize("case", NOT_FIT)
@pytest.mark.parametrize(("verb", "pads"), [("train", True), ("evaluate", False)])
def test_numbers_that_are_no_labels_are_refused_by_name(case, pads, verb, tmp_path):
    """A NaN among them would make the student's weights NaN; others only its figures wrong."""
    settings, labels, message = NOT_FIT[case]
    model = build(**settings)
    before = [p.clone() for p in model.parameters()]
    data = [{"input_ids": [5, 6], "attention_mask": [1, 1], "labels": label} for label in labels]
    args = arguments(hfc.DistillationArguments, tmp_path)
    tokenizer = word_tokenizer() if pads else None
    trainer = hfc.DistillationTrainer(
        model=model,
        teacher=build(**settings, seed=1),
        args=args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )
    with pytest.raises(hfc.CompressionError, match=message):
        getattr(trainer, verb)()
    assert all(map(torch.equal, before, model.parameters()))


def test_a_missing_number_in_tensors_is_refused(tmp_path):
    """datasets makes NaN of None in the format of torch."""
    data = Dataset.from_dict({"input_ids": [[5, 6], [7, 8]], "labels": [0.5, None]}).with_format("torch")
    args, models = arguments(hfc.DistillationArguments, tmp_path), [build(num_labels=1, seed=seed) for seed in (0, 1)]
    trainer = hfc.DistillationTrainer(model=models[0], teacher=models[1], args=args, train_dataset=data)
    with pytest.raises(hfc.CompressionError, match="label in the batch's 'labels' is NaN or infinite: nan"):
        trainer.train()


@pytest.mark.parametrize("pads", [True, False])
def test_true_and_false_are_classes_in_training_and_evaluation(pads, tmp_path):
    losses = []
    for labels in ([True, False, True], [1, 0, 1]):
        data = [{"input_ids": [5, 6 + i], "attention_mask": [1, 1], "label": one} for i, one in enumerate(labels)]
        args, tokenizer = arguments(hfc.DistillationArguments, tmp_path), word_tokenizer() if pads else None
        trainer = hfc.DistillationTrainer(
            model=build(), teacher=build(seed=1), args=args, train_dataset=data, processing_class=tokenizer
        )
        losses.append((trainer.train().training_loss, trainer.evaluate(data)["eval_loss"]))
    assert losses[0] == losses[1]


def test_labels_between_0_and_1_are_soft(tmp_path):
    settings = {"problem_type": "multi_label_classification"}
    data = [{"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [0.25, 1.0]}]
    args = arguments(hfc.DistillationArguments, tmp_path)
    trainer = hfc.DistillationTrainer(
        model=build(**settings), teacher=build(**settings, seed=1), args=args, train_dataset=data
    )
    assert trainer.train().training_loss > 0


def test_an_error_of_the_collator_about_something_else_stays(tmp_path):
    def collate(features):
        raise KeyError("mine")

    args = arguments(hfc.DistillationArguments, tmp_path)
    rows = [{"input_ids": [5, 6], "labels": 0}]
    trainer = hfc.DistillationTrainer(
        model=build(), teacher=build(seed=1), args=args, train_dataset=rows, data_collator=collate
    )
    with pytest.raises(KeyError, match="mine"):
        trainer.train()


@pytest.mark.parametrize(("student", "teacher"), [(64, 64), (128, 64)])
def test_ids_that_are_too_long_are_refused_by_name(student, teacher, tmp_path):
    models = [build(max_position_embeddings=size, seed=size) for size in (student, teacher)]
    models[1] = build(max_position_embeddings=teacher, seed=1)
    rows = [{"input_ids": [5] * 70, "attention_mask": [1] * 70, "labels": 0}]
    args = arguments(hfc.DistillationArguments, tmp_path)
    trainer = hfc.DistillationTrainer(model=models[0], teacher=models[1], args=args, train_dataset=rows)
    with pytest.raises(hfc.CompressionError, match="has 70 tokens, and BertForSequenceClassification reads 1 to 64"):
        trainer.train()


@pytest.mark.parametrize(
    ("architecture", "limit"),
    [(name, int(1e30)) for name in ("bert", "roberta", "gpt2", "bloom", "xlnet")]
    + [(name, limit) for name in ("bert", "roberta") for limit in (-1, 32)],
)
def test_a_teacher_gets_no_more_tokens_than_it_reads(limit, architecture, tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = limit
    teacher = build(architecture, seed=1).eval()
    reads = {"roberta": 63, "bloom": 100, "xlnet": 100}.get(architecture, 64) if limit != 32 else 32
    seen = []
    teacher.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    data = [{"input_ids": [5, 6], "labels": 0, "text": "good " * 100}]
    args = arguments(hfc.DistillationArguments, tmp_path, remove_unused_columns=True)
    trainer = hfc.DistillationTrainer(
        model=build(),
        teacher=teacher,
        args=args,
        train_dataset=data,
        processing_class=word_tokenizer(("good", "other")),
        teacher_processing_class=tokenizer,
    )
    trainer.train()
    assert seen == [reads]


def test_more_tokens_than_the_teacher_reads_are_refused(tmp_path):
    args = arguments(hfc.DistillationArguments, tmp_path, teacher_max_length=64)
    with pytest.raises(hfc.CompressionError, match="teacher_max_length=64 is more than the 63 tokens"):
        hfc.DistillationTrainer(
            model=build(),
            teacher=build("roberta"),
            args=args,
            train_dataset=[{"input_ids": [5], "text": "good"}],
            processing_class=word_tokenizer(("good",)),
            teacher_processing_class=word_tokenizer(),
        )


@pytest.mark.parametrize("limit", [int(1e30), -1, None])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "bloom", "xlnet"])
def test_a_cache_refuses_long_texts_before_the_first_pass(limit, architecture, tmp_path):
    tokenizer, teacher = word_tokenizer(), build(architecture).eval()
    tokenizer.model_max_length = limit
    passes = []
    teacher.register_forward_pre_hook(lambda module, args: passes.append(1))
    data = Dataset.from_dict({"text": ["good", "bad", "good " * 90]})
    if architecture == "xlnet":  # it has no limit
        cached = hfc.cache_teacher_logits(teacher, data, processing_class=tokenizer, cache_dir=tmp_path)
        assert torch.tensor(cached["teacher_logits"]).shape == (3, 2)
        return
    if architecture == "bloom":
        assert len(hfc.cache_teacher_logits(teacher, data, processing_class=tokenizer, cache_dir=tmp_path)) == 3
        return
    with pytest.raises(hfc.CompressionError, match="has 90 tokens"):
        hfc.cache_teacher_logits(teacher, data, processing_class=tokenizer, cache_dir=tmp_path)
    assert passes == []


@pytest.mark.parametrize("wrong", [None, 3, 0.5])
def test_a_cache_refuses_what_is_no_text_by_its_row(wrong, tmp_path):
    column = ["good", None, "bad"] if wrong is None else [wrong, 1, 2]
    data = Dataset.from_dict({"text": column})
    message = f"Row {1 if wrong is None else 0} \\(from 0\\) of the data has {wrong} in the column 'text'"
    with pytest.raises(hfc.CompressionError, match=message):
        hfc.cache_teacher_logits(build(), data, processing_class=word_tokenizer(), cache_dir=tmp_path)


@pytest.mark.parametrize("limit", [np.int64(3), np.float32(3.0), 3.0])
def test_limits_of_numpy_are_limits_too(limit, tmp_path):
    tokenizer, teacher, found = word_tokenizer(), build().eval(), []
    tokenizer.model_max_length = limit
    data, settings = Dataset.from_dict({"text": ["good " * 9]}), {"cache_dir": tmp_path}
    found.append(hfc.cache_teacher_logits(teacher, data, processing_class=tokenizer, **settings))
    found.append(
        hfc.cache_teacher_logits(teacher, data, processing_class=word_tokenizer(), max_length=np.int64(3), **settings)
    )
    assert found[0]["teacher_logits"] == found[1]["teacher_logits"]
    assert hfc.measure(teacher, ["good " * 9], repeats=1, processing_class=tokenizer).passes[0].tokens == 3


@pytest.mark.parametrize("length", [0, -1, "64", 1.5])
def test_a_cache_needs_a_number_of_tokens(length, tmp_path):
    data = Dataset.from_dict({"text": ["good"]})
    with pytest.raises(hfc.CompressionError, match=f"max_length={length!r} must be a whole number of at least 1"):
        hfc.cache_teacher_logits(
            build(), data, processing_class=word_tokenizer(), max_length=length, cache_dir=tmp_path
        )


def test_the_tokenizer_of_the_collator_is_saved(tmp_path):
    args = arguments(hfc.DistillationArguments, tmp_path)
    rows = [{"input_ids": [5, 6], "attention_mask": [1, 1], "labels": 0}]
    trainer = hfc.DistillationTrainer(
        model=build(),
        teacher=build(seed=1),
        args=args,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(word_tokenizer()),
    )
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "tokenizer.json").exists()


def test_a_batch_that_begins_with_a_whole_number_keeps_the_others(tmp_path):
    labels = [1, 2.5, 0.5, 3.9]
    data = [{"input_ids": [5, 6 + i], "attention_mask": [1, 1], "label": one} for i, one in enumerate(labels)]
    args = arguments(hfc.DistillationArguments, tmp_path, alpha=0.0, per_device_eval_batch_size=4)
    trainer = hfc.DistillationTrainer(model=build(num_labels=1), args=args, train_dataset=data)
    np.testing.assert_allclose(trainer.predict(data).label_ids, labels)


@pytest.mark.parametrize("wrong", [{"label_names": ["target"]}, {"label_smoothing_factor": 1.9}])
def test_arguments_that_would_not_be_followed_are_refused(wrong, tmp_path):
    ((name, value),) = wrong.items()
    with pytest.raises(hfc.CompressionError, match=re.escape(f"{name}={value!r}")):
        arguments(hfc.DistillationArguments, tmp_path, **wrong)
    arguments(hfc.DistillationArguments, tmp_path, label_names=["labels"])


def test_a_regression_of_one_logit_without_a_column_is_weighed(tmp_path):
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build(num_labels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
            self.config = self.inner.config

        def forward(self, input_ids, attention_mask=None):
            return {"logits": self.inner(input_ids, attention_mask).logits.squeeze(-1)}

    data = [{"input_ids": [5, 6 + i], "attention_mask": [1, 1], "labels": float(i), "weight": i % 2} for i in range(4)]
    found = []
    for rows in (data, data[1::2]):
        torch.manual_seed(0)
        args = arguments(hfc.DistillationArguments, tmp_path, alpha=0.0, per_device_train_batch_size=4, max_steps=1)
        trainer = hfc.DistillationTrainer(model=Flat(), args=args, train_dataset=rows, eval_dataset=data)
        found.append(trainer.train().training_loss)
        assert "eval_loss" in trainer.evaluate()
    assert found[0] == pytest.approx(found[1], rel=1e-5)
