"""Budgets of FLOPs, parameters and latency: met as counted and as measured."""

import pytest
from architectures import SHRINKABLE, build
from shrinking import LABELLED, refused

from hfcompress import prune_structured
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.profiling import count_flops, milliseconds
from hfcompress.shrink import budget

BUDGETS = {
    "fisher": {"flops": 0.6, "importance": "fisher", "dataset": LABELLED},
    "taylor": {"parameters": 0.8, "importance": "taylor", "dataset": LABELLED},
    "l1": {"flops": 0.6},
}


@pytest.mark.parametrize(
    ("architecture", "importance"),
    [(name, "fisher") for name in SHRINKABLE]
    + [(name, kind) for name in ("bert", "gpt2") for kind in ("taylor", "l1")],
)
def test_a_budget_is_met(architecture, importance):
    model, settings = build(architecture, layers=3), BUDGETS[importance]
    report = prune_structured(model, **settings)
    name = "flops" if "flops" in settings else "parameters"
    before, after = getattr(report, name)
    assert 0.7 * settings[name] * before < after <= settings[name] * before


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_a_budget_is_met_where_costs_are_known_roughly(share):
    report = prune_structured(build("deberta-v2"), flops=share)
    assert report.flops[1] <= share * report.flops[0]


def test_a_budget_of_latency_is_met_as_it_was_measured(monkeypatch):
    """The clock is a stand-in: milliseconds that grow with the FLOPs."""
    monkeypatch.setattr(budget, "milliseconds", lambda model: 5 + count_flops(model, dummy_inputs(model)) / 1e5)
    model = build("bert", layers=3)
    report = prune_structured(model, latency=0.6)
    before, after = report.latency_ms
    assert after == 5 + report.flops[1] / 1e5
    assert 0.5 * before < after <= 0.6 * before
    assert "ms of 64 tokens" in str(report)  # all that the model reads
    assert "FLOPs of 64 tokens" in str(report)
    refused(build("bert"), r"latency=0\.1 cannot be met.*of the time is left", latency=0.1)


def test_a_table_that_is_far_off_costs_no_more_than_it_must(monkeypatch):
    """Where the time falls late, halfway to all that can be removed is tried before all."""

    def late(model):
        share = count_flops(model, dummy_inputs(model)) / whole
        return 100 * (share if share < 0.35 else max(share, 0.62))

    model = build("bert", layers=3)
    whole = count_flops(model, dummy_inputs(model))
    fewest = prune_structured(build("bert", layers=3), heads=0.75, neurons=0.875).flops[1]
    monkeypatch.setattr(budget, "milliseconds", late)
    report = prune_structured(model, latency=0.6)
    assert report.latency_ms[1] <= 60
    assert report.flops[1] > fewest


def test_the_time_of_a_text_is_positive():
    assert milliseconds(build("bert")) > 0


@pytest.mark.parametrize("architecture", ["gptj", "xlnet"])
def test_a_budget_is_met_by_neurons_where_heads_are_unknown(architecture):
    report = prune_structured(build(architecture), flops=0.9)
    assert report.flops[1] <= 0.9 * report.flops[0]
    assert {block.kind for block in report.blocks} == {"neurons"}
