"""Plans applied to models, over the architectures; the loss of a plan against a solution by NumPy; the clock."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import EOS, SHRINKABLE, WITH_NEURONS, build, same_bits, state_of
from transformers import AutoModelForSequenceClassification

from hfcompress.losses import teacher_loss
from hfcompress.models.heads_and_neurons import find_groups
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.profiling import count_flops
from hfcompress.search import clock as clocks
from hfcompress.search.clock import Clock, typical_length
from hfcompress.search.loss_table import predicted_time
from hfcompress.search.stitching import StitchedModel
from hfcompress.search.structure import apply_plan, find_structure
from hfcompress.shrink.layers import student_from_teacher
from hfcompress.shrink.reconstruction import read_calibration

IDS = torch.randint(5, 100, (40, 7), generator=torch.Generator().manual_seed(0))
IDS[:, -1] = EOS
TEXTS = [{"input_ids": row} for row in IDS]
LEAVE_OUT = ("bert", "gpt2", "roberta", "distilbert", "electra", "deberta-v2", "llama", "opt", "mpnet")


def in_order(structure):
    return {group: list(range(group.count)) for group in structure.groups}


def logits(model, text):
    with torch.no_grad():
        return model.eval()(**text).logits


@pytest.mark.parametrize("architecture", SHRINKABLE)
def test_a_plan_is_what_is_left(architecture, tmp_path):
    model = build(architecture, layers=3)
    structure = find_structure(model)
    plan = [(2, 24)] * len(structure.blocks)
    if architecture in LEAVE_OUT:
        assert structure.removable == [True] * 3
        plan[1] = None
    if architecture in ("llama", "qwen2"):  # of two key-value heads
        plan = [shape and (1, 24) for shape in plan]
    apply_plan(model, structure, plan, in_order(structure), read_calibration(model, TEXTS, 8))
    left = find_structure(model)
    assert [block.shape for block in left.blocks] == [shape for shape in plan if shape]
    text = dummy_inputs(model, 12)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, text), logits(model, text))


@pytest.mark.parametrize("architecture", sorted(set(WITH_NEURONS) - set(SHRINKABLE)))
def test_models_of_which_only_neurons_are_known_have_a_structure(architecture):
    model = build(architecture)
    before = state_of(model)
    structure = find_structure(model)
    assert len(structure.removable) == len(structure.blocks)
    assert same_bits(state_of(model), before)
    heads = structure.blocks[0].shape[0]
    apply_plan(model, structure, [(heads, 16)] * len(structure.blocks), in_order(structure), None)
    assert {block.shape for block in find_structure(model).blocks} == {(heads, 16)}


def test_a_plan_that_fails_leaves_the_model(monkeypatch):
    model = build("bert", layers=3)
    structure, before, config = find_structure(model), state_of(model), model.config.to_dict()
    monkeypatch.setattr("hfcompress.search.structure.write_plan", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        apply_plan(model, structure, [(2, 24), None, (4, 64)], in_order(structure), None)
    assert same_bits(state_of(model), before)
    assert model.config.to_dict() == config


def stitched(model, structure):
    calibration = read_calibration(model, TEXTS, 8)
    return StitchedModel(model, structure, in_order(structure), [*calibration.fit, *calibration.held_out])


@pytest.mark.parametrize("architecture", SHRINKABLE)
def test_the_full_plan_loses_nothing_and_fewer_lose_more(architecture):
    model = build(architecture, layers=3)
    before, structure = state_of(model), find_structure(model)
    find = stitched(model, structure)
    full = tuple(block.shape for block in structure.blocks)
    assert find.loss(full) == pytest.approx(0, abs=1e-6)
    losses = [find.loss(tuple((heads, count) for heads, _ in full)) for count in (56, 8)]
    assert 0 < losses[0] < losses[1]
    assert same_bits(state_of(model), before)
    assert find.loss(full) == pytest.approx(0, abs=1e-6)


def test_a_layer_left_out_loses_what_the_model_without_it_does():
    model = build("bert", layers=3).eval()
    structure = find_structure(model)
    found = stitched(model, structure).loss(((4, 64), None, (4, 64)))
    text = {"input_ids": IDS}
    expected, without = logits(model, text), logits(student_from_teacher(model, [0, 2]), text)
    assert found == pytest.approx(float(teacher_loss(without, expected, "kl").mean()), rel=1e-4)


def test_fewer_neurons_are_solved_for_as_by_numpy():
    model = build("bert", layers=1).eval()
    structure = find_structure(model)
    found = stitched(model, structure).loss(((4, 24),))
    group = find_groups(model, "neurons")[0]
    down = model.get_submodule(group.consumers[0].module)
    seen = []
    hook = down.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    text = {"input_ids": IDS}
    expected = logits(model, text)
    hook.remove()
    x = seen[0].flatten(0, 1).double().numpy()
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    target = x @ np.concatenate([down.weight.detach().double().numpy().T, down.bias.detach().double().numpy()[None]])
    kept = [*range(40, 64), 64]
    gram = x.T @ x
    damped = gram[np.ix_(kept, kept)] + 0.01 * gram.diagonal().mean() * np.eye(25)
    solved = np.zeros((65, 32))
    solved[kept] = np.linalg.solve(damped, x[:, kept].T @ target)
    down.weight.data, down.bias.data = torch.tensor(solved[:-1].T).float(), torch.tensor(solved[-1]).float()
    assert found == pytest.approx(float(teacher_loss(logits(model, text), expected, "kl").mean()), rel=1e-3)


# The clock


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "modernbert", "bart", "gptj"])
def test_times_that_follow_the_flops_are_predicted(architecture, monkeypatch):
    """The stopwatch is a stand-in: seconds that grow with the FLOPs, counted once for all rounds."""
    model = build(architecture, layers=3)
    text = dummy_inputs(model, 16, 4)

    def runner(one, batch):
        seconds = count_flops(one, text) + 5e5
        return lambda: seconds

    monkeypatch.setattr(clocks, "_runner", runner)
    monkeypatch.setattr(clocks, "_seconds", lambda run: run())
    structure = find_structure(model)
    clock, before = Clock(model, None, "torch", 4, 16), state_of(model)
    ticks = []
    times = clock.tabulate(structure, 8, lambda: ticks.append(1))
    assert len(ticks) == clock.count_shapes(structure, 8)
    assert same_bits(state_of(model), before)
    assert predicted_time([block.shape for block in structure.blocks], times) == pytest.approx(1)
    plan = [(block.shape[0] and 2, 24) for block in structure.blocks]
    if any(structure.removable):
        plan[structure.removable.index(True)] = None
    predicted = predicted_time(plan, times)
    apply_plan(model, structure, plan, in_order(structure), None)
    original = build(architecture, layers=3)
    assert predicted == pytest.approx(Clock(original, None, "torch", 4, 16).share(model), rel=0.02)


def test_a_model_runs_in_turns_with_the_original(monkeypatch):
    """The time that passes is that of what runs, two seconds and one."""
    model, own, ran, now = build("bert"), build("bert", seed=1), [], [0.0]
    for one, name, seconds in ((model, "original", 2.0), (own, "other", 1.0)):

        def run(*_, name=name, seconds=seconds):
            ran.append(name)
            now[0] += seconds

        one.register_forward_hook(run)
    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert Clock(model, None, "torch", 2, 8).share(own) == 0.5
    turns = ["original", "other"]
    assert ran == turns * clocks._WARM_UP + [*turns[::-1], *turns] * 2 + turns[::-1]


@pytest.mark.parametrize(("spread", "least", "most"), [(0.0, 7, 7), (0.05, 7, 12), (0.5, 35, 35)])
def test_where_other_programs_run_more_rounds_are_timed(spread, least, most, monkeypatch):
    """The more the times vary, the more rounds, up to five times as many; the median is near the truth."""
    model, own = build("bert"), build("bert", seed=1)
    generator, calls = np.random.default_rng(0), []
    monkeypatch.setattr(clocks, "_runner", lambda one, batch: lambda: 2.0 if one is model else 1.0)

    def seconds(run):
        calls.append(run)
        return run() * float(np.exp(spread * generator.standard_normal()))

    monkeypatch.setattr(clocks, "_seconds", seconds)
    clock = Clock(model, None, "torch", 2, 8)
    clock.rounds = 7
    share = clock.share(own)
    rounds = len(calls) / 2 - clocks._WARM_UP
    assert least <= rounds <= most
    assert share == pytest.approx(0.5, rel=5 * spread / rounds**0.5 + 1e-9)  # three standard errors of the median


def test_the_typical_length_is_the_median_that_the_model_reads():
    model = build("bert")
    assert typical_length(model, [3, 9, 20]) == 9
    assert typical_length(model, [300, 900]) == 64
