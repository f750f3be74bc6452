"""Models that return tuples or plain tensors give the same figures as those that return mappings."""

import copy
import dataclasses
from typing import NamedTuple

import pytest
import torch
from architectures import WITH_NEURONS, arguments, batch, build, rows, same_bits, state_of
from datasets import Dataset
from torch import Tensor, nn

import hfcompress as hfc
from hfcompress.models.classifier import get_logits


class Named(NamedTuple):
    loss: Tensor
    logits: Tensor


@dataclasses.dataclass
class Record:
    logits: Tensor


LOGITS = torch.zeros(4, 2)
OUTPUTS = {
    "mapping": {"loss": torch.tensor(1.0), "logits": LOGITS},
    "tensor": LOGITS,
    "tuple": (LOGITS, torch.zeros(4, 6, 32)),
    "tuple with the loss": (torch.tensor(1.0), LOGITS),
    "tuple with None": (None, LOGITS),
    "list": [LOGITS],
    "named tuple": Named(torch.zeros(4), LOGITS),
    "record": Record(LOGITS),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_the_logits_are_found_in_every_kind_of_output(case):
    assert get_logits(OUTPUTS[case]) is LOGITS


@pytest.mark.parametrize("outputs", [{"scores": LOGITS}, None, (), "logits", {"logits": None}])
def test_outputs_without_logits_are_refused(outputs):
    with pytest.raises(hfc.CompressionError, match="returns no logits"):
        get_logits(outputs)


@pytest.mark.parametrize("architecture", WITH_NEURONS)
def test_every_verb_reads_a_model_that_returns_tuples(architecture, tmp_path):
    full, other = build(architecture), build(architecture)
    other.config.return_dict = False
    inputs = batch()
    data = Dataset.from_list(rows(inputs))
    found, expected = (hfc.measure(model, inputs, repeats=1) for model in (other, full))
    assert (found.cross_entropy, found.flops) == (expected.cross_entropy, expected.flops)
    kept = [hfc.cache_teacher_logits(model, data, cache_dir=tmp_path)["teacher_logits"] for model in (other, full)]
    assert kept[0] == kept[1]
    reconstruct = architecture in ("bert", "gpt2", "t5", "xlnet")  # which takes longest, and reads all in one way
    for model in (other, full):
        hfc.prune_structured(model, neurons=0.5, importance="taylor", dataset=rows(inputs), reconstruct=reconstruct)
    assert same_bits(other.state_dict(), full.state_dict())
    assert other.config.return_dict is False


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_a_student_and_teacher_that_return_tuples_train_alike(architecture, tmp_path):
    states = []
    for returns in (True, False):
        student, teacher = build(architecture), build(architecture, seed=1)
        student.config.return_dict = teacher.config.return_dict = returns
        args = arguments(hfc.DistillationArguments, tmp_path)
        trainer = hfc.DistillationTrainer(model=student, teacher=teacher, args=args, train_dataset=rows(batch()))
        trainer.train()
        states.append(state_of(student))
    assert same_bits(*states)


class ReturnsLogits(nn.Module):
    def __init__(self, model, form):
        super().__init__()
        self.model, self.config, self.form = model, copy.deepcopy(model.config), form

    def forward(self, input_ids=None, attention_mask=None):
        return self.form(self.model(input_ids=input_ids, attention_mask=attention_mask).logits)


@pytest.mark.parametrize("form", [lambda logits: logits, lambda logits: (logits,), lambda logits: (None, logits)])
def test_a_class_of_the_users_own_may_return_the_logits_alone(form, tmp_path):
    model, inputs = build().eval(), batch()
    own = ReturnsLogits(model, form)
    assert hfc.measure(own, inputs, repeats=1).cross_entropy == hfc.measure(model, inputs, repeats=1).cross_entropy
    args = arguments(hfc.DistillationArguments, tmp_path)
    trainer = hfc.DistillationTrainer(model=build(seed=1), teacher=own, args=args, train_dataset=rows(inputs))
    assert trainer.train().training_loss > 0


class PassesOn(nn.Module):
    """Around a model, with none of its names."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, *args, **kwargs):
        return tuple(self.model(*args, **kwargs).values())


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("around", [True, False])
def test_a_forward_that_passes_its_inputs_on_is_read(architecture, around, tmp_path):
    """A subclass, or a module around a model, with ``forward(*args, **kwargs)``: the names are those further in."""
    inputs, full = batch(), build(architecture).eval()
    data = Dataset.from_list(rows(inputs))
    model = copy.deepcopy(full)
    if around:
        model = PassesOn(model)
    else:

        def forward(self, *args, **kwargs):
            return tuple(type(full).forward(self, *args, **kwargs).values())

        model.__class__ = type("Tuples", (type(full),), {"forward": forward})
    found, expected = (hfc.measure(one, inputs, repeats=1) for one in (model, full))
    assert (found.cross_entropy, found.flops) == (expected.cross_entropy, expected.flops)
    kept = [hfc.cache_teacher_logits(one, data, cache_dir=tmp_path)["teacher_logits"] for one in (model, full)]
    assert kept[0] == kept[1]
    losses = []
    for one in (model, full):
        args = arguments(hfc.DistillationArguments, tmp_path)
        trainer = hfc.DistillationTrainer(model=one, teacher=build(architecture, seed=1), args=args, train_dataset=data)
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[1]
    if not around:
        report = hfc.prune_structured(model, neurons=0.5, importance="taylor", dataset=rows(inputs))
        assert report is not None


class WithoutHiddenStates(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids, attention_mask=None):
        return self.model(input_ids, attention_mask).logits


def test_a_teacher_that_takes_no_request_for_hidden_states_is_refused(tmp_path):
    args = arguments(hfc.DistillationArguments, tmp_path, hidden_weight=1.0)
    trainer = hfc.DistillationTrainer(
        model=build(), teacher=WithoutHiddenStates(build(seed=1)), args=args, train_dataset=rows(batch())
    )
    with pytest.raises(hfc.CompressionError, match="WithoutHiddenStates takes no output_hidden_states; set hidden_w"):
        trainer.train()
