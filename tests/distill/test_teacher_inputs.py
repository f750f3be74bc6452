"""What a teacher reads: the student's ids, or the text with a tokenizer of its own."""

import copy

import pytest
import torch
from architectures import arguments, build, rows, same_bits, state_of, word_tokenizer
from datasets import Dataset
from plain_distillation import (
    DATA,
    LABELS,
    assert_same_weights,
    compute_logits,
    make,
    model_inputs,
    plain_training,
    student_and_teacher,
)
from transformers import AutoTokenizer, BertJapaneseTokenizer, DataCollatorWithPadding, default_data_collator

from hfcompress import CompressionError, DistillationArguments, DistillationTrainer
from hfcompress.models.tokenizers import same_tokenizer


def test_teacher_logits_are_not_removed_as_an_unused_column(tmp_path):
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    targets = compute_logits(teacher, DATA)
    plain_training(expected, targets, DATA, steps=2)
    data = Dataset.from_list(rows(DATA | {"teacher_logits": targets, "row": torch.arange(40)}))
    make(student, None, tmp_path, data, args={"max_steps": 2}).train()
    assert_same_weights(student, expected)


def test_with_teacher_logits_the_vocabularies_may_differ(tmp_path):
    student, _ = student_and_teacher()
    teacher = build("bert", LABELS, vocab_size=50)
    data = Dataset.from_list(rows(DATA | {"teacher_logits": torch.randn(40, LABELS)}))
    make(student, teacher, tmp_path, data, args={"max_steps": 1}).train()


def test_a_teacher_of_another_architecture_gets_its_inputs(tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("distilbert", LABELS, seed=2)
    targets = compute_logits(teacher, DATA)
    expected = copy.deepcopy(student)
    plain_training(expected, targets, DATA, steps=2)
    data = DATA | {"token_type_ids": torch.zeros_like(DATA["input_ids"])}
    make(student, teacher, tmp_path, data, args={"max_steps": 2}).train()
    assert_same_weights(student, expected)


def test_a_teacher_gets_inputs_that_the_student_does_not_take(tmp_path):
    student, teacher = build("distilbert", LABELS, seed=1), build("bert", LABELS, seed=2)
    segments = torch.arange(6).expand(40, 6) % 2
    with torch.no_grad():
        targets = copy.deepcopy(teacher).eval()(**model_inputs(DATA), token_type_ids=segments).logits
    assert not torch.allclose(targets, compute_logits(teacher, DATA), atol=1e-3)
    expected = copy.deepcopy(student)
    plain_training(expected, targets, DATA, steps=2)
    data = Dataset.from_list(rows(DATA | {"token_type_ids": segments}))
    make(student, teacher, tmp_path, data, args={"max_steps": 2}).train()
    assert_same_weights(student, expected)


TEXTS = ["a b c d", "b", "D c", "e a a", "C b e", "a", "d d e b", "B a"] * 2
STUDENT_TOKENIZER = word_tokenizer(["a", "b", "c", "d", "e"])
TEXT_LABELS = torch.arange(len(TEXTS)) % LABELS


def text_dataset(column="text", **columns):
    encoded = STUDENT_TOKENIZER(TEXTS)
    return Dataset.from_dict(
        {column: TEXTS, "input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        | {"labels": TEXT_LABELS.tolist()}
        | columns
    )


def assert_teacher_reads_its_own_ids(own, directory, data, args=None, pairs=()):
    """Train two updates; compare with a loop in which the teacher reads what its own tokenizer makes of the texts."""
    student, teacher = student_and_teacher()
    limit = (args or {}).get("teacher_max_length")
    read = own(TEXTS, *pairs, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    mine = STUDENT_TOKENIZER(TEXTS, padding=True, return_tensors="pt")
    expected = copy.deepcopy(student)
    targets = compute_logits(teacher, read)
    plain_training(expected, targets, {**model_inputs(mine), "labels": TEXT_LABELS})
    trainer = make(
        student,
        teacher,
        directory,
        data,
        args=args,
        processing_class=STUDENT_TOKENIZER,
        teacher_processing_class=own,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert_same_weights(student, expected)
    agreement = (compute_logits(student, mine).argmax(-1) == targets.argmax(-1)).float().mean()
    assert trainer.evaluate()["eval_agreement"] == pytest.approx(float(agreement))


OTHER_TOKENIZERS = {
    "other vocabulary": {"words": ["e", "d", "c", "b", "a", "D"]},
    "same vocabulary in lower case": {"words": ["a", "b", "c", "d", "e"], "lowercase": True},
    "same vocabulary with a mark in front": {"words": ["a", "b", "c", "d", "e"], "marked": True},
}


@pytest.mark.parametrize("kind", OTHER_TOKENIZERS)
def test_a_teacher_with_its_own_tokenizer_reads_its_own_ids(kind, tmp_path):
    assert_teacher_reads_its_own_ids(word_tokenizer(**OTHER_TOKENIZERS[kind]), tmp_path, text_dataset())


def test_the_text_may_be_in_a_list_of_examples(tmp_path):
    assert_teacher_reads_its_own_ids(word_tokenizer(["e", "d", "c"]), tmp_path, text_dataset().to_list())


def test_the_text_may_be_in_another_column(tmp_path):
    own = word_tokenizer(["e", "d", "c"])
    assert_teacher_reads_its_own_ids(own, tmp_path, text_dataset("review"), {"text_column": "review"})


def test_the_teachers_texts_can_be_truncated(tmp_path):
    assert_teacher_reads_its_own_ids(
        word_tokenizer(["e", "d", "c"]), tmp_path, text_dataset(), {"teacher_max_length": 2}
    )


def test_the_teacher_reads_pairs_of_texts_with_its_own_tokenizer(tmp_path):
    own, second = word_tokenizer(["e", "d", "c", "b", "a"]), TEXTS[::-1]
    data = text_dataset(second=second)
    assert_teacher_reads_its_own_ids(own, tmp_path, data, {"text_pair_column": "second"}, pairs=[second])


def test_a_missing_second_text_column_is_refused_by_name(tmp_path):
    own, second = word_tokenizer(["e", "d", "c", "b", "a"]), TEXTS[::-1]
    data = text_dataset(second=second)
    with pytest.raises(CompressionError, match=r"no column 'other'.*text_pair_column"):
        assert_teacher_reads_its_own_ids(own, tmp_path, data, {"text_pair_column": "other"}, pairs=[second])


def test_the_same_tokenizer_needs_no_text(tmp_path):
    student, teacher = student_and_teacher()
    twin = word_tokenizer(["a", "b", "c", "d", "e"])
    data = text_dataset().remove_columns("text")
    args = {"max_steps": 1}
    make(
        student, teacher, tmp_path, data, args=args, processing_class=STUDENT_TOKENIZER, teacher_processing_class=twin
    ).train()


def test_a_missing_text_column_is_refused_by_name(tmp_path):
    student, teacher = student_and_teacher()
    own, data = word_tokenizer(["e", "d"]), text_dataset("review")
    tokenizers = {"processing_class": STUDENT_TOKENIZER, "teacher_processing_class": own}
    for examples in (data, data.to_list()):
        with pytest.raises(CompressionError, match=r"no column 'text' \(they have review"):
            make(student, teacher, tmp_path, examples, **tokenizers)


def test_a_text_that_a_transform_lacks_is_refused_in_training(tmp_path):
    student, teacher = student_and_teacher()
    tokenizers = {"processing_class": STUDENT_TOKENIZER, "teacher_processing_class": word_tokenizer(["e", "d"])}
    unknown = text_dataset("review").with_transform(lambda columns: columns)  # which may make the text
    with pytest.raises(CompressionError, match=r"keep the column 'text', or name it with text_column="):
        make(student, teacher, tmp_path, unknown, **tokenizers).train()


def test_evaluation_without_the_text_leaves_the_teacher_out(tmp_path):
    student, teacher = student_and_teacher()
    own, data = word_tokenizer(["e", "d"]), text_dataset()
    tokenizers = {"processing_class": STUDENT_TOKENIZER, "teacher_processing_class": own}
    trainer = make(student, teacher, tmp_path, data, **tokenizers)
    assert "eval_agreement" in trainer.evaluate()
    without = data.remove_columns("text")
    found = trainer.evaluate(without)
    assert found["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])
    assert not {"eval_agreement", "eval_distillation_loss"} & found.keys()
    assert trainer.predict(without).predictions.shape == (len(TEXTS), LABELS)


def test_a_collator_may_encode_the_text_itself(tmp_path):
    def collate(features):
        encoded = STUDENT_TOKENIZER([one["text"] for one in features], padding=True, return_tensors="pt")
        return dict(encoded) | {"labels": torch.tensor([one["labels"] for one in features])}

    states = []
    for data, extra in (
        (text_dataset(), {}),
        (text_dataset().select_columns(["text", "labels"]), {"data_collator": collate}),
    ):
        student, teacher = student_and_teacher()
        tokenizers = {"processing_class": STUDENT_TOKENIZER, "teacher_processing_class": word_tokenizer(["e", "d"])}
        args = {"remove_unused_columns": not extra}
        make(student, teacher, tmp_path, data, args=args, **tokenizers, **extra).train()
        states.append(state_of(student))
    assert same_bits(*states)


def test_a_teacher_never_reads_ids_of_another_vocabulary(tmp_path):
    """The data to train on have its logits, those to evaluate on do not."""
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2, vocab_size=200)
    trainer = make(
        student, teacher, tmp_path, DATA | {"teacher_logits": torch.randn(40, LABELS)}, eval_dataset=rows(DATA)
    )
    trainer.train()
    assert not {"eval_agreement", "eval_distillation_loss"} & trainer.evaluate().keys()


def test_python_tokenizers_are_compared_by_their_rules(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "Good"]))
    kinds = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece"}
    one, same, other = (
        BertJapaneseTokenizer(str(vocabulary), do_lower_case=lower, padding_side=side, **kinds)
        for lower, side in ((False, "right"), (False, "left"), (True, "right"))
    )
    assert same_tokenizer(one, same)
    assert not same_tokenizer(one, other)
    one.save_pretrained(tmp_path / "saved")
    assert same_tokenizer(one, BertJapaneseTokenizer.from_pretrained(tmp_path / "saved"))


def test_vocabularies_that_differ_are_refused_with_both_sizes(tmp_path):
    student, _ = student_and_teacher()
    with pytest.raises(CompressionError, match=r"vocabulary has 100 tokens, the teacher's 50"):
        make(student, build("bert", LABELS, vocab_size=50), tmp_path)


@pytest.mark.parametrize("known", [True, False])
def test_the_teachers_tokenizer_is_not_saved_with_the_student(known, tmp_path):
    student, teacher = build("bert", seed=1), build("gpt2", seed=2)
    own = word_tokenizer(("good", "bad"))
    data = [{"input_ids": [2, 3], "labels": 0, "text": "a film"}, {"input_ids": [2, 4], "labels": 1, "text": "bad"}]
    args = arguments(DistillationArguments, tmp_path, max_steps=1)
    collator = DataCollatorWithPadding(own) if known else default_data_collator
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        args=args,
        train_dataset=data,
        data_collator=collator,
        teacher_processing_class=word_tokenizer(),
    )
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").exists() == known
    if known:
        assert AutoTokenizer.from_pretrained(tmp_path / "saved").get_vocab() == own.get_vocab()


def test_a_teacher_that_tells_pairs_apart_encodes_them_itself(tmp_path):
    """The student's tokenizer has the same backend, and no token types."""
    student, teacher = build("distilbert", LABELS, seed=1), build("bert", LABELS, seed=2)
    own, names = word_tokenizer(["a", "b", "c", "d", "e"]), ["input_ids", "attention_mask"]
    typeless = copy.deepcopy(own)
    typeless.model_input_names = names
    own.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    texts, second = ["a b", "c d e"], ["e", "b a"]
    encoded = [typeless(*pair) for pair in zip(texts, second, strict=True)]
    labels = [{"labels": 0, "text": one, "second": two} for one, two in zip(texts, second, strict=True)]
    pairs = zip(encoded, labels, strict=True)
    data = Dataset.from_list([{name: row[name] for name in names} | label for row, label in pairs])
    args = arguments(DistillationArguments, tmp_path, text_pair_column="second", per_device_eval_batch_size=1)
    trainer = DistillationTrainer(
        model=student, args=args, teacher=teacher, train_dataset=data, processing_class=typeless,
        teacher_processing_class=own,
    )  # fmt: skip
    for row, batch in zip(labels, trainer.get_test_dataloader(data), strict=True):
        inputs = own(row["text"], row["second"], return_tensors="pt", return_token_type_ids=True)
        assert inputs["token_type_ids"].any()
        found = trainer.teacher_outputs(trainer._take_apart(trainer._prepare_inputs(batch))).logits
        torch.testing.assert_close(found, teacher(**inputs).logits)
