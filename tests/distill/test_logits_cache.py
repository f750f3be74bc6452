"""A teacher's logits from files: the same as online, computed once, and anew when anything changed."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from architectures import arguments, build, texts, word_tokenizer
from datasets import Dataset, load_from_disk

import hfcompress.distill.arguments
import hfcompress.distill.logits_cache
from hfcompress import CompressionError, DistillationArguments, DistillationTrainer, cache_teacher_logits, compat


@pytest.fixture
def tokenizer():
    return word_tokenizer()


@torch.no_grad()
def online(teacher, tokenizer, data, **settings):
    """One text at a time, so without padding."""
    teacher = copy.deepcopy(teacher).eval()
    encoded = [tokenizer(text, return_tensors="pt", truncation=True, **settings) for text in data["text"]]
    return torch.cat([teacher(**{k: v for k, v in one.items() if k != "token_type_ids"}).logits for one in encoded])


class Count:
    """Counts forward passes."""

    def __init__(self, model):
        self.calls = 0
        model.register_forward_hook(self)

    def __call__(self, *_):
        self.calls += 1


def cached_logits(data):
    return torch.tensor(data["teacher_logits"])


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "distilbert"])
@pytest.mark.parametrize("shard", [4, 4096])
def test_the_logits_are_the_teachers_in_the_order_of_the_data(architecture, shard, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(hfcompress.distill.logits_cache, "_SHARD", shard)
    teacher, data = build(architecture, num_labels=3, dropout=True, pad_token_id=0), texts()
    cached = cache_teacher_logits(teacher, data, processing_class=tokenizer, batch_size=5, cache_dir=tmp_path)
    assert cached.column_names == ["text", "labels", "teacher_logits"]
    assert cached["text"] == data["text"]
    torch.testing.assert_close(cached_logits(cached), online(teacher, tokenizer, data), rtol=1e-5, atol=1e-6)
    assert teacher.training
    assert cached.cache_files  # memory-mapped
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_second_call_takes_no_forward_pass(tokenizer, tmp_path):
    teacher = build(num_labels=3)
    first = cache_teacher_logits(teacher, texts(), processing_class=tokenizer, cache_dir=tmp_path)
    count = Count(teacher)
    second = cache_teacher_logits(teacher, texts(), processing_class=tokenizer, cache_dir=tmp_path)
    assert count.calls == 0
    assert cached_logits(second).equal(cached_logits(first))


def test_labels_and_other_columns_do_not_matter(tokenizer, tmp_path):
    teacher, data = build(num_labels=3), texts()
    cache_teacher_logits(teacher, data, processing_class=tokenizer, cache_dir=tmp_path)
    count = Count(teacher)
    relabelled = data.remove_columns("labels").add_column("other", list(range(len(data))))
    cache_teacher_logits(teacher, relabelled, processing_class=tokenizer, cache_dir=tmp_path, batch_size=3)
    assert count.calls == 0


def another_weight(teacher, data, settings):
    with torch.no_grad():
        teacher.classifier.bias[0] += 1e-3
    return teacher, data, settings


def another_text(teacher, data, settings):
    return (
        teacher,
        data.map(lambda row, index: {"text": row["text"] + " good" * (index == 7)}, with_indices=True),
        settings,
    )


def another_order(teacher, data, settings):
    return teacher, data.select(range(len(data) - 1, -1, -1)), settings


def another_activation(teacher, data, settings):
    teacher.config.hidden_act = "relu"
    return teacher, data, settings


def another_length(teacher, data, settings):
    return teacher, data, settings | {"max_length": 3}


def another_precision(teacher, data, settings):
    return teacher, data, settings | {"bf16": True}


def another_tokenizer(teacher, data, settings):
    changed = copy.deepcopy(settings["processing_class"])
    changed.add_tokens(["new"])
    return teacher, data, settings | {"processing_class": changed}


def another_padding_side(teacher, data, settings):
    changed = copy.deepcopy(settings["processing_class"])
    changed.padding_side = "left"
    return teacher, data, settings | {"processing_class": changed}


def another_pad_token(teacher, data, settings):
    changed = copy.deepcopy(settings["processing_class"])
    changed.pad_token = "[UNK]"
    return teacher, data, settings | {"processing_class": changed}


@pytest.mark.parametrize(
    "change",
    [
        another_weight,
        another_text,
        another_order,
        another_activation,
        another_length,
        another_precision,
        another_tokenizer,
        another_padding_side,
        another_pad_token,
    ],
)
def test_the_logits_are_computed_anew_if_anything_changed(change, tokenizer, tmp_path):
    teacher, data = build(num_labels=3), texts()
    settings = {"processing_class": tokenizer, "cache_dir": tmp_path}
    cache_teacher_logits(teacher, data, **settings)
    changed, data, settings = change(copy.deepcopy(teacher), data, settings)
    count = Count(changed)
    cache_teacher_logits(changed, data, **settings)
    assert count.calls > 0


def test_a_file_that_is_not_whole_is_written_anew(tokenizer, tmp_path):
    teacher = build(num_labels=3)
    first = cached_logits(cache_teacher_logits(teacher, texts(), processing_class=tokenizer, cache_dir=tmp_path))
    (file,) = tmp_path.rglob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    second = cache_teacher_logits(teacher, texts(), processing_class=tokenizer, cache_dir=tmp_path)
    assert cached_logits(second).equal(first)


class Pooled(torch.nn.Module):
    def __init__(self, model, mode):
        super().__init__()
        self.model, self.mode, self.config = model, mode, model.config

    def forward(self, input_ids, attention_mask=None):
        logits = self.model(input_ids, attention_mask).logits
        return SimpleNamespace(logits=logits if self.mode == "plain" else -logits)


def test_what_a_teacher_of_ones_own_computes_by_is_told_apart(tokenizer, tmp_path):
    model, found = build(num_labels=3), []
    for mode in ("plain", "other"):
        settings = {"processing_class": tokenizer, "cache_dir": tmp_path}
        found.append(cached_logits(cache_teacher_logits(Pooled(model, mode), texts(), **settings)))
    assert found[1].equal(-found[0])


def test_a_view_of_the_same_rows_is_the_same_data(tokenizer, tmp_path):
    teacher, data = build(num_labels=3), texts()
    cache_teacher_logits(teacher, data, processing_class=tokenizer, cache_dir=tmp_path / "cache")
    data.save_to_disk(tmp_path / "data")
    longer = Dataset.from_dict({"text": ["good", *data["text"], "bad"]}).select(range(1, len(data) + 1))
    count = Count(teacher)
    for same in (load_from_disk(str(tmp_path / "data")), longer, data.select(list(range(len(data))))):
        cache_teacher_logits(teacher, same, processing_class=tokenizer, cache_dir=tmp_path / "cache")
    assert count.calls == 0


def test_an_interrupted_call_goes_on_where_it_stopped(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(hfcompress.distill.logits_cache, "_SHARD", 4)
    teacher, data = build(num_labels=3), texts()

    def interrupt(*_):
        if len(list(tmp_path.rglob("*.arrow"))) == 3:
            raise KeyboardInterrupt

    hook = teacher.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher_logits(teacher, data, processing_class=tokenizer, cache_dir=tmp_path)
    hook.remove()
    assert teacher.training
    count = Count(teacher)
    cached = cache_teacher_logits(teacher, data, processing_class=tokenizer, cache_dir=tmp_path)
    assert count.calls == sum(len({len(one.split()) for one in data["text"][at : at + 4]}) for at in (12, 16, 20))
    torch.testing.assert_close(cached_logits(cached), online(teacher, tokenizer, data), rtol=1e-5, atol=1e-6)


def test_ids_in_the_data_are_read_where_there_is_no_tokenizer(tokenizer, tmp_path):
    teacher, data = build(num_labels=3), texts()
    ids = data.map(lambda row: {"input_ids": tokenizer(row["text"])["input_ids"]})
    cached = cache_teacher_logits(teacher, ids, cache_dir=tmp_path)
    torch.testing.assert_close(cached_logits(cached), online(teacher, tokenizer, data), rtol=1e-5, atol=1e-6)


def test_no_text_is_padded_however_the_tokenizer_pads(tokenizer, tmp_path):
    teacher, data, seen = build(num_labels=3), texts(), []
    tokenizer.padding_side, tokenizer.pad_token = "left", "[UNK]"
    teacher.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs), with_kwargs=True)
    cache_teacher_logits(teacher, data, processing_class=tokenizer, batch_size=len(data), cache_dir=tmp_path)
    assert len(seen) == len({len(text.split()) for text in data["text"]})
    assert sum(len(inputs["input_ids"]) for inputs in seen) == len(data)
    assert all(inputs["attention_mask"].all() for inputs in seen)


def test_without_a_pad_token_the_one_of_the_config_is_used(tokenizer, tmp_path):
    teacher, data = build("gpt2", num_labels=3, pad_token_id=0), texts()
    tokenizer.pad_token = None
    cached = cache_teacher_logits(teacher, data, processing_class=tokenizer, cache_dir=tmp_path)
    torch.testing.assert_close(cached_logits(cached), online(teacher, tokenizer, data), rtol=1e-5, atol=1e-6)


def test_ids_that_nothing_can_pad_are_refused(tmp_path):
    teacher = build(num_labels=3, pad_token_id=None)
    with pytest.raises(CompressionError, match=r"no config\.pad_token_id"):
        cache_teacher_logits(teacher, Dataset.from_dict({"input_ids": [[5], [5, 6]]}), cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("tokens", "found"), [(65, "65 tokens"), (0, "0 tokens")], ids=["long", "empty"])
def test_a_text_of_a_length_that_no_teacher_reads_is_refused(tokens, found, tmp_path, monkeypatch):
    """Before anything is computed, though it is the last one."""
    monkeypatch.setattr(hfcompress.distill.logits_cache, "_SHARD", 2)
    teacher = build(num_labels=3)
    count, data = Count(teacher), Dataset.from_dict({"input_ids": [[5] * 64] * 4 + [[5] * tokens]})
    with pytest.raises(CompressionError, match=f"the data has {found}, and .* reads 1 to 64"):
        cache_teacher_logits(teacher, data, cache_dir=tmp_path)
    assert (count.calls, list(tmp_path.iterdir())) == (0, [])


def test_pairs_of_texts_are_read_together(tokenizer, tmp_path):
    teacher = build(num_labels=3)
    data = Dataset.from_dict({"question": ["good", "not bad"], "answer": ["very good film", "a plot"]})
    cached = cache_teacher_logits(
        teacher,
        data,
        processing_class=tokenizer,
        text_column="question",
        text_pair_column="answer",
        cache_dir=tmp_path,
    )
    joined = Dataset.from_dict({"text": ["good very good film", "not bad a plot"]})
    torch.testing.assert_close(cached_logits(cached), online(teacher, tokenizer, joined), rtol=1e-5, atol=1e-6)


def test_training_from_the_cache_is_training_with_the_teacher(tokenizer, tmp_path):
    teacher, data = build(num_labels=3, seed=1), texts(24)
    encoded = data.map(lambda row: tokenizer(row["text"])).remove_columns("text")
    cached = cache_teacher_logits(teacher, encoded, cache_dir=tmp_path / "cache")
    losses = []
    for one, who in ((encoded, teacher), (cached, None)):
        args = arguments(DistillationArguments, tmp_path, logging_strategy="steps", logging_steps=1, optim="sgd")
        student = build(num_labels=3, seed=2)
        trainer = DistillationTrainer(
            model=student, args=args, teacher=who, train_dataset=one, processing_class=tokenizer
        )
        seen = []
        step = trainer.training_step
        trainer.training_step = lambda *a, step=step, seen=seen: seen.append(step(*a)) or seen[-1]
        trainer.train()
        losses.append(torch.stack(seen))
    assert (losses[0] - losses[1]).abs().max() < 1e-6


def test_data_that_the_teacher_cannot_read_are_refused_by_column(tokenizer, tmp_path):
    teacher = build()
    data = Dataset.from_dict({"review": ["good"]})
    for settings, message in (
        ({}, "columns review: pass its tokenizer"),
        ({"processing_class": tokenizer}, "lack 'text'"),
    ):
        with pytest.raises(CompressionError, match=message):
            cache_teacher_logits(teacher, data, cache_dir=tmp_path, **settings)


def test_data_with_teacher_logits_are_refused(tmp_path):
    data = Dataset.from_dict({"input_ids": [[1]], "teacher_logits": [[0.0, 1.0]]})
    with pytest.raises(CompressionError, match="have a column 'teacher_logits' already"):
        cache_teacher_logits(build(), data, cache_dir=tmp_path)


def test_bfloat16_on_a_processor_without_it_warns_once(tokenizer, tmp_path, monkeypatch):
    slow = compat.MixedPrecision("no", "bf16 is slow here")
    monkeypatch.setattr(hfcompress.distill.arguments, "mixed_precision", lambda device: slow)
    monkeypatch.setattr(hfcompress.distill.logits_cache, "current_accelerator", lambda: None)
    settings = {"processing_class": tokenizer, "bf16": True, "cache_dir": tmp_path}
    with pytest.warns(UserWarning, match="^bf16=True on the processor: bf16 is slow here.$") as warned:
        cache_teacher_logits(build(num_labels=3), texts(), **settings)
    assert [one.filename for one in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is computed again
        cache_teacher_logits(build(num_labels=3), texts(), **settings)


def test_the_mask_says_what_is_padding_to_a_teacher_without_one(tmp_path):
    class Maskless(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build(num_labels=3)
            self.config = self.inner.config

        def forward(self, input_ids):
            return self.inner(input_ids)

    teacher = Maskless().eval()
    data = Dataset.from_dict(
        {"input_ids": [[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]], "attention_mask": [[1] * 3 + [0] * 2, [1] * 5]}
    )
    with torch.no_grad():
        expected = torch.cat([teacher(torch.tensor([ids])).logits for ids in ([5, 6, 7], [5, 6, 7, 8, 9])])
    cached = cache_teacher_logits(teacher, data, cache_dir=tmp_path)
    torch.testing.assert_close(cached_logits(cached), expected)


def test_logits_that_are_no_numbers_are_not_cached(tokenizer, tmp_path):
    teacher, data = build(num_labels=3), texts()
    with torch.no_grad():
        teacher.get_input_embeddings().weight[tokenizer(data["text"][7])["input_ids"][1]] = float("inf")
    with pytest.raises(CompressionError, match=r"logits of row \d+ \(from 0\).*NaN or infinite"):
        cache_teacher_logits(teacher, data, processing_class=tokenizer, cache_dir=tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
