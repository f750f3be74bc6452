"""Labels that are no numbers, and texts that are too long, are refused in a sentence."""

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
@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("kind", [list, Dataset.from_list])
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


@pytest.mark.parametrize("limit", [int(1e30), -1, 32])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "bloom", "xlnet"])
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
