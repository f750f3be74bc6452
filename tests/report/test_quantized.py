"""int8 models of quantize_dynamic: measured, cached and taught from; refused where float weights are needed."""

import copy
import warnings

import pytest
import torch
from architectures import arguments, batch, build, rows
from datasets import Dataset
from torch import nn

import hfcompress as hfc

quantize_dynamic = pytest.importorskip("torch.ao.quantization").quantize_dynamic
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]
KINDS = ("bert", "roberta", "distilbert", "albert", "deberta-v2", "modernbert", "llama", "bart", "t5", "xlnet")


def int8(model, dtype=torch.qint8):
    return quantize_dynamic(copy.deepcopy(model).eval(), {nn.Linear}, dtype=dtype)


def logits_alone(model, inputs):
    """Return the logits of each text by itself: in a batch, the scale of a layer's inputs is that of all rows."""
    texts = [row[mask.bool()] for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    with torch.no_grad():
        return torch.cat([model(text[None], attention_mask=torch.ones_like(text[None])).logits for text in texts])


def linear_weights(model):
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("architecture", KINDS)
def test_size_flops_and_predictions_are_measured(architecture):
    model, inputs = build(architecture).eval(), batch(12)
    small = int8(model)
    full, result = hfc.measure(model, inputs, repeats=1), hfc.measure(small, inputs, repeats=1, reference=model)
    saved = sum(weight.numel() * 3 for weight in linear_weights(model))
    extra = 12 * len(linear_weights(model))  # scale and zero point of each
    assert result.bytes == full.bytes - saved + extra
    assert result.bytes_packed <= result.bytes
    assert result.parameters == full.parameters
    assert result.flops == full.flops
    assert "qint8" in result.dtype
    assert result.accuracy == (logits_alone(small, inputs).argmax(-1) == inputs["labels"]).double().mean().item()


def test_the_zeros_of_an_int8_model_are_counted():
    model = build().eval()
    hfc.prune_global_l1(model, 0.5)
    small = int8(model)
    zeros = sum(int((m.weight().int_repr() == 0).sum()) for n, m in small.bert.named_modules() if hasattr(m, "scale"))
    assert hfc.measure(small).zeros == zeros >= hfc.sparsity_report(model).zeros


def test_float16_weights_count_two_bytes():
    model = build().eval()
    weights = sum(weight.numel() for weight in linear_weights(model))
    extra = 12 * len(linear_weights(model))
    assert hfc.measure(int8(model, torch.float16)).bytes == hfc.measure(model).bytes - 2 * weights + extra


def test_compare_takes_an_int8_model_beside_the_full_one():
    model = build().eval()
    result = hfc.compare({"full": model, "int8": int8(model)}, batch(8), repeats=1)
    assert result.rows["int8"].bytes < 0.6 * result.rows["full"].bytes
    assert result.rows["int8"].agreement is not None


def test_its_logits_are_cached_by_its_weights(tmp_path):
    data = Dataset.from_list(rows(batch()))
    one, other = int8(build(seed=0)), int8(build(seed=1))
    for model in (one, other):
        found = torch.tensor(hfc.cache_teacher_logits(model, data, cache_dir=tmp_path)["teacher_logits"])
        torch.testing.assert_close(found, logits_alone(model, batch()))
    assert len(list(tmp_path.iterdir())) == 2
    hfc.cache_teacher_logits(int8(build(seed=0)), data, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_student_learns_from_an_int8_teacher(tmp_path):
    args = arguments(hfc.DistillationArguments, tmp_path)
    trainer = hfc.DistillationTrainer(
        model=build(), teacher=int8(build(seed=1)), args=args, train_dataset=rows(batch())
    )
    assert trainer.train().training_loss > 0


def test_the_logits_of_an_int8_teacher_are_those_of_each_text(tmp_path):
    teacher, inputs = int8(build(seed=1)), batch(8)
    args = arguments(hfc.DistillationArguments, tmp_path, per_device_eval_batch_size=8)
    trainer = hfc.DistillationTrainer(model=build(), teacher=teacher, args=args, eval_dataset=rows(inputs))
    seen = []
    outputs = trainer.teacher_outputs
    trainer.teacher_outputs = lambda *given: seen.append(outputs(*given)) or seen[-1]
    trainer.evaluate()
    torch.testing.assert_close(torch.cat([one.logits for one in seen]).cpu(), logits_alone(teacher, inputs))


@pytest.mark.parametrize("weight", ["hidden_weight", "relation_weight"])
@pytest.mark.parametrize("kind", ["int8", "convbert"])
def test_layers_compared_are_those_of_each_text(kind, weight, tmp_path):
    """Neither the scales of int8 layers nor a convolution over the padding may bring other texts in."""
    teacher = build("convbert", seed=1).eval() if kind == "convbert" else int8(build(seed=1))
    student, inputs, found = build("convbert" if kind == "convbert" else "bert"), batch(8), []
    kept = inputs["attention_mask"].bool()
    for rows_at_once in (8, 1):
        args = arguments(hfc.DistillationArguments, tmp_path, alpha=0.0, **{weight: 1.0})
        trainer = hfc.DistillationTrainer(model=student, teacher=teacher, args=args, train_dataset=rows(inputs))
        parts = zip(*(inputs[name].split(rows_at_once) for name in ("input_ids", "attention_mask")), strict=True)
        outputs = []
        for ids, mask in parts:
            ids, mask = (ids[mask.bool()][None], mask[mask.bool()][None]) if rows_at_once == 1 else (ids, mask)
            one = trainer._take_apart({"input_ids": ids, "attention_mask": mask})
            outputs.append(trainer.teacher_outputs(one))
        vectors = zip(*([*one.hidden, *one.attention] for one in outputs), strict=True)
        found.append([torch.cat([part.flatten(0, 1) for part in parts]) for parts in vectors])
    assert len(found[0]) == 3
    for together, alone in zip(*found, strict=True):
        torch.testing.assert_close(together[kept.flatten()], alone)


def test_a_student_in_bf16_learns_from_an_int8_teacher_in_float32(tmp_path):
    """Its operations take float32 alone."""
    teacher, seen = int8(build(seed=1)), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bf16 is slow on some processors
        args = arguments(hfc.DistillationArguments, tmp_path, bf16=True, relation_weight=1.0)
        trainer = hfc.DistillationTrainer(model=build(), teacher=teacher, args=args, train_dataset=rows(batch(8)))
        outputs = trainer.teacher_outputs
        trainer.teacher_outputs = lambda *given: seen.append(outputs(*given)) or seen[-1]
        trainer.train()
    assert {one.logits.dtype for one in seen} == {torch.float32}


def test_another_dtype_of_an_int8_teacher_is_refused(tmp_path):
    teacher = int8(build(seed=1))
    args = arguments(hfc.DistillationArguments, tmp_path, teacher_dtype="float64")
    with pytest.raises(hfc.CompressionError, match=r"query is quantized .* leave out teacher_dtype='float64'"):
        hfc.DistillationTrainer(model=build(), teacher=teacher, args=args, train_dataset=rows(batch()))
    with pytest.raises(hfc.CompressionError, match=r"query is quantized .* leave out bf16=True"):
        hfc.cache_teacher_logits(teacher, Dataset.from_list(rows(batch())), cache_dir=tmp_path, bf16=True)


def test_a_timed_batch_that_the_model_cannot_read_is_refused():
    """BERT repeats its positions without copying, which torch's int8 embeddings do not read."""
    qconfig = torch.ao.quantization.float_qparams_weight_only_qconfig
    small = quantize_dynamic(build().eval(), {nn.Embedding: qconfig})
    with pytest.raises(hfc.CompressionError, match=r"does not read the timed batch, of shape 4 x 6: .* one text"):
        hfc.measure(small, batch(), repeats=1)
    assert hfc.measure(small, batch(), repeats=1, batch_size=1).accuracy is not None
    with pytest.raises(hfc.CompressionError, match="does not read the timed batch, of shape 1 x 2"):
        hfc.measure(build("funnel").eval(), [{"input_ids": [5, 6]}], repeats=1)


REFUSED = {
    "prune_global_l1": lambda model, folder: hfc.prune_global_l1(model, 0.5),
    "sparsity_report": lambda model, folder: hfc.sparsity_report(model),
    "prune_structured": lambda model, folder: hfc.prune_structured(model, neurons=0.5),
    "student_from_teacher": lambda model, folder: hfc.student_from_teacher(model, 1),
    "save_compressed": lambda model, folder: hfc.save_compressed(model, folder / "model"),
    "KeepSparsity": lambda model, folder: hfc.KeepSparsity().read(model),
    "DistillationTrainer": lambda model, folder: hfc.DistillationTrainer(
        model=model, teacher=build(), args=arguments(hfc.DistillationArguments, folder)
    ),
}


@pytest.mark.parametrize("verb", REFUSED)
def test_what_needs_float_weights_refuses_by_name(verb, tmp_path):
    with pytest.raises(hfc.CompressionError, match=r"bert\.encoder\.layer\.0\.attention\.self\.query is quantized"):
        REFUSED[verb](int8(build()), tmp_path)
    assert not (tmp_path / "model").exists()
