"""Every verb on a GPU, compared with the same on the processor: GPU=0 python -m pytest tests/test_gpu.py."""

import copy
import json
import math

import pytest
import torch
from architectures import ARCHITECTURES, SHRINKABLE, arguments, batch, build, rows, texts, word_tokenizer
from datasets import Dataset
from pruned_training import count_revived, pruned, train, zero_masks
from tokenizer_kinds import make_tokenizer
from transformers import AutoModelForSequenceClassification, TrainerCallback

import hfcompress as hfc
from hfcompress.models.weights import select_matrices

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device, or GPU=0 is not set")

DATA = batch(96, 10)
ROWS = rows(DATA)
INPUTS = {name: value for name, value in DATA.items() if name != "labels"}
half_and_full = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def _float32_is_float32():
    """No TF32, so that both devices compute the same."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def both(architecture="bert", dtype=torch.float32, **settings):
    """The same model on both devices."""
    model = build(architecture, **settings).to(dtype)
    return model, copy.deepcopy(model).cuda()


@torch.no_grad()
def logits(model):
    model = copy.deepcopy(model).eval()
    return model(**{name: value.to(model.device) for name, value in INPUTS.items()}).logits.float().cpu()


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def is_on_gpu(model):
    return {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"cuda"}


# Zeros


@half_and_full
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_weights_are_pruned(architecture, dtype):
    for amount in (0.2, 0.9, 100):
        host, device = both(architecture, dtype)
        expected, found = hfc.prune_global_l1(host, amount), hfc.prune_global_l1(device, amount)
        assert is_on_gpu(device)
        assert found.zeros == expected.zeros == hfc.sparsity_report(device).zeros
        for one, other in zip(select_matrices(host).matrices, select_matrices(device).matrices, strict=True):
            assert one.weight.equal(other.weight.cpu())


@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"fp16": True}, {"gradient_accumulation_steps": 2}])
def test_zeros_survive_training(settings, tmp_path):
    model = pruned(amount=0.5).cuda()
    zeros = zero_masks(model)
    trainer = train(model, tmp_path, hfc.KeepSparsity(), use_cpu=False, **settings)
    assert trainer.model.device.type == "cuda"
    assert count_revived(model, zeros) == 0


def test_gradual_pruning_reaches_its_amount(tmp_path):
    model = build()
    train(model, tmp_path, hfc.GradualPruning(0.6), use_cpu=False, bf16=True)
    report = hfc.sparsity_report(model)
    assert model.device.type == "cuda"
    assert report.zeros == round(0.6 * report.weights)


# Smaller models


@pytest.mark.parametrize("importance", ["l1", "fisher", "taylor", "obs"])
@pytest.mark.parametrize("architecture", SHRINKABLE)
def test_the_same_model_is_made(architecture, importance):
    host, device = both(architecture)
    settings = {"flops": 0.6, "importance": importance, "dataset": ROWS, "round_to": 1}
    expected, found = hfc.prune_structured(host, **settings), hfc.prune_structured(device, **settings)
    assert is_on_gpu(device)
    assert found.flops[1] <= 0.6 * found.flops[0]
    assert found.accuracy is not None
    if found.blocks == expected.blocks and importance == "l1":  # the others' scores may be equal but for rounding
        close(logits(device), logits(host), 5e-3)


@pytest.mark.parametrize("architecture", SHRINKABLE)
def test_outputs_are_reconstructed(architecture):
    host, device = both(architecture)
    settings = {"neurons": 0.5, "importance": "l1", "dataset": ROWS, "reconstruct": True}
    hfc.prune_structured(host, **settings)
    report = hfc.prune_structured(device, **settings)
    assert report.reconstruction is not None
    close(logits(device), logits(host), 2e-2)


def test_models_in_bfloat16_shrink():
    model = build().bfloat16().cuda()
    report = hfc.prune_structured(model, flops=0.5, dataset=ROWS)
    assert report.reconstruction is not None
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert logits(model).isfinite().all()


def test_plain_shapes_and_dropped_layers(tmp_path):
    host, device = both(layers=4)
    settings = {"drop_layers": 1, "neurons": 0.5, "plain": True, "dataset": ROWS}
    hfc.prune_structured(host, **settings)
    hfc.prune_structured(device, **settings)
    device.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    close(logits(loaded), logits(device))


def test_a_student_is_on_its_teachers_device():
    assert is_on_gpu(hfc.student_from_teacher(build(layers=4).cuda(), 2))


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_vocabulary_is_pruned(kind):
    tokenizer = make_tokenizer(kind, model_max_length=60)
    model = build(vocab_size=len(tokenizer), pad_token_id=1).cuda().eval()
    batch_before = tokenizer("a film with a good plot", return_tensors="pt").to("cuda")
    batch_before.pop("token_type_ids", None)
    before = model(**batch_before).logits
    report = hfc.prune_vocabulary(model, tokenizer, ["a film with a good plot"])
    batch_after = report.tokenizer("a film with a good plot", return_tensors="pt").to("cuda")
    batch_after.pop("token_type_ids", None)
    assert is_on_gpu(model)
    assert model(**batch_after).logits.equal(before)


# Students


class Losses(TrainerCallback):
    def __init__(self):
        self.losses = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.losses += [logs["loss"]] if "loss" in logs else []


def distill(device, tmp_path, teacher_on_gpu, **settings):
    student, teacher = build(seed=1), build(seed=2, layers=3)
    if teacher_on_gpu:
        teacher.cuda()
    watch = Losses()
    quiet = {"use_cpu": device == "cpu", "logging_strategy": "steps", "logging_steps": 1, "optim": "sgd"}
    args = arguments(hfc.DistillationArguments, tmp_path, **quiet | settings)
    trainer = hfc.DistillationTrainer(
        model=student, args=args, teacher=teacher, train_dataset=ROWS, eval_dataset=ROWS, callbacks=[watch]
    )
    trainer.train()
    return watch.losses, trainer.evaluate()


@pytest.mark.parametrize("teacher_on_gpu", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"teacher_loss": "kl", "temperature": 2.0, "label_loss": "cross_entropy"},
        {"hidden_weight": 1.0},
        {"relation_weight": 1.0},
        {"gradient_accumulation_steps": 5},
    ],
    ids=str,
)
def test_losses_are_those_of_the_processor(settings, teacher_on_gpu, tmp_path):
    expected, quality = distill("cpu", tmp_path / "cpu", False, **settings)
    found, on_gpu = distill("cuda", tmp_path / "cuda", teacher_on_gpu, **settings)
    assert len(found) == math.ceil(len(ROWS) / (8 * settings.get("gradient_accumulation_steps", 1)))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert on_gpu["eval_loss"] == pytest.approx(quality["eval_loss"], rel=1e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_in_half_precision_are_near(precision, tmp_path):
    expected, _ = distill("cpu", tmp_path / "cpu", False)
    found, _ = distill("cuda", tmp_path / "cuda", True, **{precision: True})
    assert found == pytest.approx(expected, rel=0.1, abs=0.02)


def test_cached_logits_are_those_of_the_processor(tmp_path):
    host, device = both(num_labels=3)
    tokenizer = word_tokenizer()
    found = [
        torch.tensor(
            hfc.cache_teacher_logits(model, texts(), processing_class=tokenizer, cache_dir=tmp_path / name)[
                "teacher_logits"
            ]
        )
        for name, model in {"cpu": host, "cuda": device}.items()
    ]
    close(found[1], found[0])


# Reports


def test_figures_are_those_of_the_processor():
    host, device = both()
    settings = {"inputs": Dataset.from_list(ROWS), "batch_size": 8, "repeats": 2}
    expected, found = hfc.measure(host, **settings), hfc.measure(device, **settings)
    for name in ("parameters", "bytes", "flops", "accuracy"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.latency_ms > 0
    assert found.peak_bytes >= found.bytes


def test_models_are_compared_on_the_gpu():
    model = build().cuda()
    smaller = copy.deepcopy(model)
    hfc.prune_structured(smaller, flops=0.5, dataset=ROWS)
    found = hfc.compare({"BERT": model, "half": smaller}, Dataset.from_list(ROWS), batch_size=8, repeats=2)
    assert "half" in str(found)
    assert json.loads(found.to_json())


# Folders


@half_and_full
def test_saved_and_packed_folders_reload(dtype, tmp_path):
    model = build().to(dtype).cuda()
    hfc.prune_structured(model, flops=0.6, dataset=ROWS)
    hfc.prune_global_l1(model, 0.5)
    hfc.save_compressed(model, tmp_path)
    expected = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    for loaded in (
        hfc.load_compressed(tmp_path),
        AutoModelForSequenceClassification.from_pretrained(tmp_path, device_map="cuda", dtype="auto"),
    ):
        found = loaded.state_dict()
        assert list(found) == list(expected)
        assert all(found[name].cpu().equal(expected[name]) for name in expected)
    assert is_on_gpu(loaded)


def test_a_model_on_the_gpu_is_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = build().bfloat16().cuda()
    hfc.prune_structured(model, flops=0.6, dataset=ROWS)
    hfc.export(model, tmp_path / "onnx", processing_class=word_tokenizer())
    assert is_on_gpu(model)
    close(hfc.load_exported(tmp_path / "onnx")(**INPUTS).logits, logits(copy.deepcopy(model).cpu().float()))


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_ladder_is_trained_on_the_gpu(device, tmp_path):
    model = build("bert", layers=3).cuda()
    args = arguments(hfc.DistillationArguments, tmp_path / "args", use_cpu=False, num_train_epochs=1)
    ladder = hfc.compress(
        model,
        ROWS,
        processing_class=word_tokenizer(),
        speedup=1.5 if device else 1.05,
        device=device,
        output_dir=tmp_path / "ladder",
        args=args,
        batch_size=8 if device else 256,
        evaluations=3,
    )
    assert is_on_gpu(model)
    assert all(rung.original.device.startswith(device or "cuda") for rung in ladder.rungs)
    assert ladder.rungs or "cannot be reached" in ladder.notes[0]
