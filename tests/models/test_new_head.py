"""Heads that ``from_pretrained`` made anew, told from trained ones in Python."""

import copy

import pytest
import torch
from architectures import build
from transformers import AutoModel, AutoModelForSequenceClassification

import hfcompress as hfc
from hfcompress.models.new_head import MARK, mark_new_head, new_head, update_mark

# With the names of what is not in the file of a base model, by the info that from_pretrained gives.
ARCHITECTURES = ("bert", "gpt2", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert", "llama",
                 "xlnet", "bart", "mpnet")  # fmt: skip


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    """A base model of random numbers, none of which is zero: a trained one has no bias of zeros."""
    path = tmp_path_factory.mktemp(request.param)
    body = AutoModel.from_config(build(request.param).config)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.normal_(std=0.02)
    body.save_pretrained(path)
    return path


def base(folder):
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    return model, sorted(info["missing_keys"])


def step(model, fused=False):
    """Train one step; a fused optimizer, Trainer's default, does not count its changes of a parameter."""
    model.config.pad_token_id = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    model(torch.tensor([[5, 6, 4]]), labels=torch.tensor([1])).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_a_head_that_was_not_in_the_file_is_new(fused, folder):
    """Of one without a bias only a mark tells, as the command leaves it."""
    model, missing = base(folder)
    has_bias = any(name.endswith("bias") for name in missing)
    if "modernbert" in folder.name and model.classifier.weight._version > model.classifier.bias._version:
        has_bias = False  # torch 2.6 counts the steps in which trunc_normal_ fills the weight
    assert new_head(model) == (missing if has_bias else [])
    step(model, fused)
    assert new_head(model) == []
    marked, _ = base(folder)
    mark_new_head(marked, missing)
    assert new_head(marked) == missing
    step(marked, fused)
    assert new_head(marked) == []


def test_a_head_that_was_set_without_a_bias_is_not_new(tmp_path):
    build("bert").base_model.save_pretrained(tmp_path)
    model, _ = base(tmp_path)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.ones(2, 32))  # a linear probe without an intercept
    assert new_head(model) == []


def test_a_head_of_an_adapter_is_not_new(tmp_path):
    """PEFT keeps the random one that it replaces beside it."""
    peft = pytest.importorskip("peft")
    build("bert").base_model.save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["classifier"])
    adapted = peft.get_peft_model(base(tmp_path / "base")[0], lora)
    step(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    wrapped = peft.PeftModel.from_pretrained(base(tmp_path / "base")[0], str(tmp_path / "adapter"))
    assert new_head(wrapped) == new_head(wrapped.merge_and_unload()) == []
    plain, _ = base(tmp_path / "base")
    plain.load_adapter(str(tmp_path / "adapter"))
    if not plain.classifier.modules_to_save["default"].bias.any():
        pytest.skip("this transformers does not find the weights of the adapter")
    assert new_head(plain) == []


def test_a_trained_classifier_has_no_new_head(folder, tmp_path):
    model, _ = base(folder)
    model.config.pad_token_id = 0
    step(model)
    model.save_pretrained(tmp_path)
    assert new_head(AutoModelForSequenceClassification.from_pretrained(tmp_path)) == []


def test_the_mark_is_saved_and_outdated_by_training(folder, tmp_path):
    model, missing = base(folder)
    mark_new_head(model, missing)
    hfc.prune_global_l1(model, 0.3)
    model.save_pretrained(tmp_path / "pruned")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
    assert again.config.to_dict()[MARK]["weights"] == missing
    assert new_head(again) == missing
    assert new_head(copy.deepcopy(again)) == missing
    step(again)
    again.save_pretrained(tmp_path / "trained")
    assert new_head(AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")) == []


@pytest.mark.parametrize("dtypes", [["float16"], ["bfloat16"], ["float16", "float32"], ["bfloat16", "float32"]])
def test_another_dtype_trains_no_head(dtypes, folder, tmp_path):
    model, missing = base(folder)
    mark_new_head(model, missing)
    for dtype in dtypes:
        model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
        assert new_head(model) == missing


def shrunken(model):
    hfc.prune_structured(model, neurons=0.5)
    return model


MAKERS = {
    "prune_structured": shrunken,
    "twice": lambda model: shrunken(shrunken(model)),
    "student_from_teacher": lambda model: hfc.student_from_teacher(model, 1),
    "prune_global_l1": lambda model: hfc.prune_global_l1(model, 0.5) and model,
    "the head pruned": lambda model: hfc.prune_global_l1(model, 0.5, include="classifier") and model,
    "save_compressed alone": lambda model: model,
}


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_saved_says_so(make, tmp_path):
    build("bert").base_model.save_pretrained(tmp_path / "base")
    model, missing = base(tmp_path / "base")
    hfc.save_compressed(MAKERS[make](model), tmp_path / "out")
    assert "classification head is new" in (tmp_path / "out" / "README.md").read_text()
    assert new_head(hfc.load_compressed(tmp_path / "out")) == missing


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_trained_is_not_marked(make, tmp_path):
    build("bert").save_pretrained(tmp_path / "full")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "full")
    hfc.save_compressed(MAKERS[make](model), tmp_path / "out")
    assert "classification head is new" not in (tmp_path / "out" / "README.md").read_text()
    assert MARK not in hfc.load_compressed(tmp_path / "out").config.to_dict()


@pytest.mark.parametrize("damaged", [None, 3, [], {}, {"weights": ["x"], "digests": []}, {"weights": 1, "digests": 2}])
def test_a_mark_that_makes_no_sense_marks_nothing(damaged):
    model = build("bert")
    setattr(model.config, MARK, damaged)
    assert new_head(model) == []
    update_mark(model)
    assert MARK not in model.config.to_dict()


def test_a_module_without_a_config_has_no_mark():
    assert update_mark(torch.nn.Linear(2, 2)) == []
