"""`compress` end to end on tiny models: what it writes, says, refuses and resumes."""

import gc
import json
import math
import os
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from architectures import WORDS, arguments, build, same_bits, state_of, texts, word_tokenizer
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file
from stopwatch import REST, time_by_flops, time_exports_by_flops
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hfcompress import CompressionError, DistillationArguments, DistillationTrainer
from hfcompress.deploy import exporting
from hfcompress.deploy.exported_model import load_exported
from hfcompress.distill import logits_cache
from hfcompress.distill.layer_losses import LayerLosses
from hfcompress.metrics import predict
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.profiling import count_flops
from hfcompress.report import benchmark
from hfcompress.search import candidates, compressing, deadline, rungs, structure, training
from hfcompress.search import clock as clocks
from hfcompress.search.clock import describe_machine
from hfcompress.search.compressing import compress
from hfcompress.search.deadline import Deadline
from hfcompress.search.ladder import Ladder, Rung, describe_choice, describe_test, side_by_side
from hfcompress.search.reading import UNLABELLED
from hfcompress.search.rows import HeldOut, read_parts, readable, text_lengths, with_logits
from hfcompress.search.state import State, describe_arguments
from hfcompress.search.training import default_arguments

ROWS = texts(240)
HELD_OUT = HeldOut("eval_dataset", [1], [0], 0, 0)


@pytest.fixture(autouse=True)
def stopwatch(monkeypatch):
    time_by_flops(monkeypatch)


def settings(tmp_path, **overrides):
    args = arguments(  # by SGD, since Adam turns differences by rounding into steps
        DistillationArguments, tmp_path / "args", num_train_epochs=1, per_device_train_batch_size=32, optim="sgd"
    )
    defaults = {"processing_class": word_tokenizer(), "speedup": (1.5, 3), "output_dir": tmp_path / "ladder"}
    return defaults | {"args": args, "batch_size": 4, "evaluations": 3} | overrides


def small(**overrides):
    return build("bert", layers=3, vocab_size=3 + len(WORDS), **overrides)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A ladder of two rungs, with the model it is of and its state before."""
    with pytest.MonkeyPatch.context() as patch:
        time_by_flops(patch)
        model, folder = small(), tmp_path_factory.mktemp("made")
        before, gradients = state_of(model), [p.requires_grad for p in model.parameters()]
        config, given = model.config.to_dict(), settings(folder)
        arguments_before = given["args"].to_dict()
        ladder = compress(model, ROWS, **given)
        assert (model.config.to_dict(), given["args"].to_dict()) == (config, arguments_before)
        assert same_bits(state_of(model), before)
        assert model.training
        assert [p.requires_grad for p in model.parameters()] == gradients
        return ladder, model, folder


def test_each_rung_is_as_small_as_was_asked(made):
    ladder, model, _ = made
    assert [rung.name for rung in ladder.rungs] == ["1.5x", "3x"]
    text = dummy_inputs(model, 12, 4)
    for rung in ladder.rungs:
        batch = dummy_inputs(model, rung.measured.passes[0].tokens, 4)
        ratio = (count_flops(model, batch) + 1e5) / (count_flops(rung.model, batch) + 1e5)
        assert rung.target / 1.02 <= ratio <= 1.35 * rung.target
        assert rung.speedup.ratio == pytest.approx(ratio)
        assert rung.predicted == pytest.approx(ratio, rel=0.1)
        assert rung.model(**text).logits.isfinite().all()
    assert not ladder.notes


def test_each_rung_is_a_folder_that_loads(made):
    ladder, _, folder = made
    for rung in ladder.rungs:
        path = folder / "ladder" / rung.name
        loaded = AutoModelForSequenceClassification.from_pretrained(path)
        assert same_bits(state_of(loaded), state_of(rung.model))
        assert (
            AutoTokenizer.from_pretrained(path)("good film")["input_ids"] == word_tokenizer()("good film")["input_ids"]
        )
        card = (path / "README.md").read_text()
        assert f"| {rung.name} |" in card
        assert "original" in card
    assert sorted(one.name for one in (folder / "ladder").iterdir()) == ["1.5x", "3x", "ladder.json"]


def test_figures_are_those_of_the_models(made):
    ladder, *_ = made
    for rung in ladder.rungs:
        assert rung.measured.examples == rung.original.examples == 32
        assert rung.drop == pytest.approx(rung.original.accuracy - rung.measured.accuracy)
        assert rung.kept == pytest.approx(rung.measured.accuracy / rung.original.accuracy)
        assert rung.measured.parameters == sum(p.numel() for p in rung.model.parameters())
        test = rung.measured.mcnemar
        assert rung.drop == pytest.approx((test.only_first - test.only_this) / 32)
        low, high = rung.drop_interval
        assert low <= rung.drop <= high


def test_the_table_shows_what_the_labels_allow(made):
    rows = made[0].to_markdown().splitlines()
    head, original = ([cell.strip() for cell in row.split("|")[1:-1]] for row in (rows[0], rows[2]))
    assert float(original[head.index("F1")]) == pytest.approx(made[0].rungs[0].original.f1, abs=5e-4)
    assert "Pearson" not in head


def test_times_are_shown_as_if_all_were_timed_side_by_side(made):
    """The third rung was timed while the machine was half as fast: the original took twice its time too."""
    first = made[0].rungs[0]

    def timed(one, factor):
        passes = (replace(one.passes[0], times_ms=tuple(factor * ms for ms in (10.0, 11, 12, 13, 14, 15, 16, 17, 18))),)
        return replace(one, passes=passes)

    asked = {"2x": (1.0, 0.5), "4x": (2.0, 0.5)}
    found = [
        replace(first, name=name, original=timed(first.original, slow), measured=timed(first.measured, slow * share))
        for name, (slow, share) in asked.items()
    ]
    rows = Ladder(tuple(found), (), "").to_markdown().splitlines()[2:5]
    cells = [[cell.strip() for cell in row.split("|")[1:5]] for row in rows]
    assert [(row[0], row[1], row[3]) for row in cells] == [
        ("original", "1.00x", "14.00"),
        ("2x", "2.00x", "7.00"),
        ("4x", "2.00x", "7.00"),
    ]
    assert [one.latency_ms for one in side_by_side(found).values()] == [14, 7, 7]


def test_the_ladder_shows_itself(made):
    ladder, *_ = made
    assert "1.5x" in str(ladder)
    assert ladder.to_markdown().startswith("| rung | speed-up |")
    assert json.loads(ladder.to_json())["rungs"]["3x"]["name"] == "3x"
    page = ladder.to_html()
    assert "<svg" in page
    assert "What is left" in page
    assert "<table" in ladder._repr_html_()
    again = Rung.from_dict(json.loads(json.dumps(ladder["3x"].to_dict())))
    assert again == ladder["3x"]


def test_a_rung_by_name_and_the_best(made):
    ladder, *_ = made
    assert ladder["3x"] is ladder.rungs[1]
    assert ladder.best(max_drop=0.99) is max(ladder.rungs, key=lambda rung: rung.speedup.ratio)
    with pytest.raises(CompressionError, match=r"no rung '4x'; it has 1\.5x, 3x"):
        ladder["4x"]
    with pytest.raises(CompressionError, match="No rung loses at most max_drop=0"):
        Ladder((), (), "").best(0.0)
    for points in (2, float("nan"), -0.01):
        with pytest.raises(CompressionError, match=r"max_drop=\S+ must be in \[0, 1\]"):
            ladder.best(points)


def fast_and_lossy(made, *losses):
    """Rungs that are faster one by one, with these losses and ends of their intervals."""
    rung, found = made[0].rungs[0], []
    for number, (drop, most) in enumerate(losses, 1):
        passes = (replace(rung.measured.passes[0], times_ms=(1 / number,) * 8),)
        measured = replace(rung.measured, passes=passes, examples=1000)
        interval = {"drop": drop, "drop_interval": (2 * drop - most, most)}
        found.append(replace(rung, name=f"{number}x", measured=measured, **interval))
    return found


def test_the_best_is_shown_to_lose_so_little(made):
    rungs = fast_and_lossy(made, (0.0, 0.02), (0.002, 0.009), (0.006, 0.016), (0.03, 0.04))
    ladder = Ladder(tuple(rungs), (), "")
    assert ladder.best(0.01).name == "2x"
    assert ladder.best(0.016).name == "3x"
    assert describe_choice(rungs, 0.01) == ["2x is the fastest that is shown to lose at most 1 point."]
    assert describe_test(rungs[1], 0.01) == (
        "It loses at most 1 point: the 95 % interval of the paired difference, of 1,000 rows, ends at 0.90 points."
    )
    text = describe_test(rungs[2], 0.01)
    assert "loses 0.60 points as measured, but 1,000 rows are too few" in text
    # 1,000 times (1 / 0.4) squared measure, and 1,000 check the training
    end = "ends at 1.60 points; at this loss about 7,300 held-out rows would do, with those that check the training."
    assert text.endswith(end)


def test_too_few_rows_for_the_paired_test_are_warned_of(made):
    rungs = fast_and_lossy(made, (0.0, 0.02), (0.01, 0.03), (0.03, 0.05))
    with pytest.warns(UserWarning, match="not shown of any model: 1,000 rows are too few"):
        assert Ladder(tuple(rungs), (), "").best(0.01).name == "2x"
    assert describe_test(rungs[1], 0.01).endswith("more than 1,000 times as many would be needed.")
    assert describe_choice(rungs[2:], 0.01) == []


def test_called_again_it_returns_what_is_done(made, monkeypatch):
    ladder, model, folder = made
    monkeypatch.setattr(compressing, "make_candidate", lambda *args: pytest.fail("made again"))
    monkeypatch.setattr(compressing, "with_logits", lambda *args: pytest.fail("the teacher was asked again"))
    again = compress(model, ROWS, **settings(folder))
    assert again.to_dict() == ladder.to_dict()


def test_numbers_of_numpy_are_the_same_arguments(made, monkeypatch):
    ladder, model, folder = made
    monkeypatch.setattr(compressing, "make_candidate", lambda *args: pytest.fail("made again"))
    given = settings(folder, speedup=np.array([1.5, 3]), seed=np.int64(0))
    given |= {name: np.int64(given[name]) for name in ("batch_size", "evaluations")}
    assert compress(model, ROWS, **given).to_dict() == ladder.to_dict()


def test_other_arguments_need_another_folder(made):
    _, model, folder = made
    with pytest.raises(CompressionError, match=r"other arguments \(evaluations=4, there 3; seed=1, there 0\); name"):
        compress(model, ROWS, **settings(folder, evaluations=4, seed=1))
    args = settings(folder)["args"]
    args.learning_rate = 0.5
    with pytest.raises(CompressionError, match=r"other arguments \(learning_rate=0\.5, there 0\.01\)"):
        compress(model, ROWS, **settings(folder, args=args))
    with pytest.raises(CompressionError, match="made with another model or other data"):
        compress(small(seed=1), ROWS, **settings(folder))
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    with pytest.raises(CompressionError, match="made with another model or other data"):
        compress(small(**names), ROWS, **settings(folder))
    with pytest.raises(CompressionError, match="made with another model or other data"):
        compress(model, ROWS, **settings(folder, processing_class=word_tokenizer((*WORDS, "other"))))


def test_on_another_machine_times_are_measured_again(made):
    file = made[2] / "ladder" / "ladder.json"
    digest, machine = (json.loads(file.read_text())[name] for name in ("digest", "machine"))
    assert machine == made[0].rungs[0].machine == describe_machine(torch.device("cpu"))
    assert machine.endswith(f"threads: {torch.get_num_threads()}")
    assert State.open(file.parent, digest, machine, HELD_OUT, {}).times is not None
    elsewhere = State.open(file.parent, digest, "another", HELD_OUT, {})
    assert (elsewhere.times, len(elsewhere.rungs)) == (None, 2)


def test_rungs_that_were_timed_in_other_numbers_of_rounds_are_drawn(made):
    """As on another machine, where a call goes on; the figures are those of all rounds of each."""
    first, second = made[0].rungs

    def timed(measured, count):
        times = tuple(n + 1.0 for n in range(count))
        return replace(measured, passes=(replace(measured.passes[0], times_ms=times),))

    second = replace(second, **{name: timed(getattr(second, name), 13) for name in ("original", "measured")})
    ladder = Ladder((first, second), (), "")
    assert ladder.to_html().count("<svg") == made[0].to_html().count("<svg")
    figure, axes = ladder.plot()
    plt.close(figure)
    assert len(axes) == 2
    assert second.speedup.ratio == 1


def test_the_table_says_which_rung_was_timed_where(made):
    first, second = made[0].rungs
    assert str(made[0]).count(first.machine.partition(",")[0]) == 1
    notes = " ".join(str(Ladder((first, replace(second, machine="abacus, threads: 1")), (), "")).split())
    assert f"on {first.machine} (1.5x) and abacus, threads: 1 (3x); ms:" in notes


def test_a_ladder_of_another_release_is_refused(made, tmp_path):
    values = json.loads((made[2] / "ladder" / "ladder.json").read_text())
    (tmp_path / "ladder.json").write_text(json.dumps(values | {"version": 1}))
    with pytest.raises(
        CompressionError,
        match=r"^\S+ladder\.json is of a ladder that another release of hfcompress began; name another output_dir\.$",
    ):
        State.open(tmp_path, values["digest"], values["machine"], HELD_OUT, {})


def test_interrupted_it_goes_on_to_the_same_ladder(made, tmp_path, monkeypatch):
    ladder, model, _ = made
    make, calls = compressing.make_candidate, []

    def stop_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(*args)

    rounds, time_rounds = [], benchmark._time_rounds
    monkeypatch.setattr(benchmark, "_time_rounds", lambda *args: (rounds.append(args[2]), time_rounds(*args))[1])
    seconds = 2 * (ladder.rungs[0].original.passes[0].flops + REST)  # of a round of the original and itself
    monkeypatch.setattr(clocks, "_SECONDS", 10 * seconds)  # for which a faster model would have more rounds
    monkeypatch.setattr(compressing, "make_candidate", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        compress(model, ROWS, **settings(tmp_path))
    assert (tmp_path / "ladder" / "1.5x" / "model.safetensors").exists()
    assert not (tmp_path / "ladder" / "3x").exists()
    again = compress(model, ROWS, **settings(tmp_path))
    assert len(calls) == 3
    assert rounds == [41, 41]
    for one, other in zip(again.rungs, ladder.rungs, strict=True):
        assert one.shapes == other.shapes
        assert same_bits(state_of(one.model), state_of(other.model))


def test_what_goes_on_computes_attention_as_the_original_does(made, tmp_path):
    original, seen = small(), []
    original.set_attn_implementation("eager")

    def make(above, *rest):
        seen.append(above.config._attn_implementation)
        raise candidates.TooFastError(0.9)

    progress, args = SimpleNamespace(at=lambda *args: None), SimpleNamespace(device=torch.device("cpu"))
    request = SimpleNamespace(targets=[1.5, 3.0], max_drop=None, refine=False)
    job = SimpleNamespace(
        base=original, deadline=Deadline(), progress=progress, search=None, parts=None, request=request, args=args
    )
    state = State(tmp_path / "ladder.json", "", "", HELD_OUT, {}, [made[0].rungs[0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressing, "make_candidate", make)
        compressing._climb(job, state)
    assert seen == ["eager"]


def test_two_processes_make_the_ladder_that_one_does(made, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    more = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    script = Path(__file__).with_name("two_processes_compress.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*launch, *more, str(script), str(tmp_path)], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["ladder"] == second["ladder"]
    alone = settings(tmp_path, speedup=1.5)
    alone["args"].per_device_train_batch_size //= 2
    assert compress(small(), ROWS, **alone).to_dict() == first["ladder"]  # which one process finds done
    assert done.stderr.count("1.5x: ") == 1
    rung = made[0].rungs[0]
    assert [list(shape) for shape in rung.shapes] == first["ladder"]["rungs"]["1.5x"]["shapes"]
    for name, value in state_of(rung.model).items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5)


def test_what_is_out_of_reach_is_said(tmp_path):
    ladder = compress(small(), ROWS, **settings(tmp_path, speedup=(1.5, 900)))
    assert [rung.name for rung in ladder.rungs] == ["1.5x"]
    assert "900x: cannot be reached" in ladder.notes[0]
    assert "The nearest is 1.5x" in ladder.notes[0]
    assert "900x: cannot be reached" in str(ladder)


def test_the_last_that_loses_little_ends_the_ladder(tmp_path, monkeypatch):
    drops = iter([(0.001, 0.008), (0.004, 0.02), (0.03, 0.04), (0.005, 0.02)])
    monkeypatch.setattr(rungs, "_drop", lambda *args: ((one := next(drops))[0], (2 * one[0] - one[1], one[1])))
    ladder = compress(small(), ROWS, **settings(tmp_path, speedup=None, max_drop=0.01))
    assert [rung.name for rung in ladder.rungs] == ["1.5x", "2x", "2.4x"]
    assert [rung.confirms(0.01) for rung in ladder.rungs] == [True, False, False]
    start = "It loses at most 1 point: the 95 % interval of the paired difference, of 32 rows, ends at "
    assert any(note.startswith(start) for note in ladder["1.5x"].notes)
    assert "32 rows are too few to show that it loses at most 1 point" in ladder["2x"].notes[0]
    assert ladder.best(0.01).name == "1.5x"
    assert ladder.notes[-1] == "1.5x is the fastest that is shown to lose at most 1 point."
    assert "3x: left out, as it loses 3.00 points" in ladder.notes[0]
    assert not (tmp_path / "ladder" / "3x").exists()


def climbed(made, tmp_path, patch, found, *, max_drop=None, refine=False, stopped=(), targets=None, chance=0.001):
    """Climb with rungs of these speed-ups and losses, by what was asked, and without training any.

    A speed-up without either is out of reach, beyond the number that it has.

    Returns:
        The names of the rungs, the notes, and what each rung that was made began with.
    """
    first = made[0].rungs[0]
    own = replace(first.original, passes=(replace(first.original.passes[0], times_ms=(100.0,) * 8),))

    def make(job, candidate, name, target, made_of, begin, unfinished, is_wanted):
        assert made_of == (begun[-1] or "original")
        ratio, drop = found[target]
        passes = (replace(first.measured.passes[0], times_ms=(100.0 / ratio,) * 8),)
        measured = replace(first.measured, passes=passes)
        loss = {"drop": drop, "drop_interval": (drop - chance, drop + chance)}
        own_folder = {"folder": str(tmp_path / name), "name": name, "target": target}
        rung = replace(first, original=own, measured=measured, **loss, **own_folder, stopped=target in stopped)
        if is_wanted(rung):
            (tmp_path / name).mkdir(exist_ok=True)
        return rung, SimpleNamespace(name=name)

    def begin(above, search, parts, share, tick):
        begun.append(getattr(above, "name", None))
        if isinstance(fastest := found[round(1 / share, 6)], float):
            raise candidates.TooFastError(1 / fastest)

    begun, loaded = [], []
    patch.setattr(compressing, "make_candidate", begin)
    patch.setattr(compressing, "make_rung", make)
    patch.setattr(compressing, "_load", lambda job, rung: loaded.append(rung.name) or SimpleNamespace(name=rung.name))
    progress = SimpleNamespace(at=lambda *args: None, say=lambda line: None)
    request = SimpleNamespace(targets=targets or [*found], max_drop=max_drop, refine=refine)
    job = SimpleNamespace(
        base=None, deadline=Deadline(), progress=progress, search=None, parts=None, request=request, args=None
    )
    state = State.open(tmp_path, "", "", HELD_OUT, {})
    try:
        compressing._climb(job, state)
    finally:
        again = State.open(tmp_path, "", "", HELD_OUT, {})
        assert (again.rungs, again.left_out) == ([rung for rung in state.rungs if not rung.stopped], state.left_out)
    assert state.ended != bool(stopped)
    assert len(loaded) <= 1  # only where it goes on
    return [rung.name for rung in state.rungs], [*(one.note for one in state.left_out), *state.notes], begun


def test_a_rung_is_faster_or_better_than_the_one_above(made, tmp_path, monkeypatch):
    found = {2: (2.1, 0.01), 3: (2.0, 0.02), 4: (4.1, 0.03), 5: (4.0, 0.02)}
    names, notes, begun = climbed(made, tmp_path, monkeypatch, found)
    assert names == ["2x", "4x", "5x"]
    assert begun == [None, "2x", "2x", "4x"]
    assert notes == ["3x: left out, as it is neither faster nor better than 2x; the nearest is 2x."]


def test_the_first_rung_is_faster_or_better_than_the_original(made, tmp_path, monkeypatch):
    names, notes, _ = climbed(made, tmp_path, monkeypatch, {2: (0.9, 0.0), 3: (3.1, 0.0)})
    assert names == ["3x"]
    assert notes == ["2x: left out, as it is neither faster nor better than the original; the nearest is the original."]


def test_what_was_left_out_is_not_made_again(made, tmp_path, monkeypatch):
    found = {2: (2.1, 0.01), 3: (2.0, 0.02), 4: (4.1, 0.03), 5: None}
    with pytest.raises(TypeError):  # as if it was interrupted at the last
        climbed(made, tmp_path, monkeypatch, found)
    names, notes, begun = climbed(made, tmp_path, monkeypatch, found | {5: (5.1, 0.04)})
    assert (names, begun) == (["2x", "4x", "5x"], ["4x"])
    assert notes == ["3x: left out, as it is neither faster nor better than 2x; the nearest is 2x."]


@pytest.mark.parametrize("between", [(2.5, 0.01), (2.5, 0.02), (2.0, 0.004)], ids=["kept", "too much", "no better"])
def test_one_between_is_tried_once(between, made, tmp_path, monkeypatch):
    found = {2: (2.1, 0.003), 3: (3.1, 0.03), 2.4: between}
    names, notes, begun = climbed(made, tmp_path, monkeypatch, found, max_drop=0.01, refine=True, targets=[2, 3, 4])
    assert begun == [None, "2x", "2x"]
    assert names == (["2x", "2.4x"] if between == (2.5, 0.01) else ["2x"])
    assert notes[0].startswith("3x: left out, as it loses 3.00 points")
    assert [note[:4] for note in notes[1:]] == ([] if between == (2.5, 0.01) else ["2.4x"])


def test_one_between_that_is_stopped_is_made_again_and_nothing_else(made, tmp_path, monkeypatch):
    found = {2: (2.1, 0.003), 3: (3.1, 0.03), 2.4: (2.5, 0.01)}
    asked = {"max_drop": 0.01, "refine": True, "targets": [2, 3, 4]}
    assert climbed(made, tmp_path, monkeypatch, found, stopped=(2.4,), **asked)[2] == [None, "2x", "2x"]
    names, _, begun = climbed(made, tmp_path, monkeypatch, found, **asked)
    assert (names, begun) == (["2x", "2.4x"], ["2x"])


def test_one_between_that_was_tried_already_is_not_tried_again(made, tmp_path, monkeypatch):
    found = {1.5: (8, 0.0), 2: (7, 0.0), 3: (7, 0.0), 4: (7, 0.0), 6: (9, 0.03)}
    names, _, begun = climbed(made, tmp_path, monkeypatch, found, max_drop=0.01, refine=True)
    assert (names, len(begun)) == (["1.5x"], 5)


def test_a_loss_that_may_be_chance_ends_nothing(made, tmp_path, monkeypatch):
    """Only two one after the other do, or one whose interval is beyond what is allowed."""
    found = {1.5: (1.6, 0.012), 2: (2.1, 0.003), 3: (3.1, 0.02), 4: (4.1, 0.02), 6: (6.1, 0.0), 2.4: (2.5, 0.0)}
    asked = {"max_drop": 0.01, "refine": True, "targets": [1.5, 2, 3, 4, 6], "chance": 0.02}
    names, notes, begun = climbed(made, tmp_path, monkeypatch, found, **asked)
    assert (names, begun) == (["2x", "2.4x"], [None, None, "2x", "2x", "2x"])
    assert [note[:4] for note in notes] == ["1.5x", "3x: ", "4x: "]


def test_one_between_is_tried_below_what_is_out_of_reach(made, tmp_path, monkeypatch):
    found = {2: (2.1, 0.003), 4: (4.1, 0.004), 8: 4.6, 4.5: (4.5, 0.005)}
    names, notes, begun = climbed(made, tmp_path, monkeypatch, found, max_drop=0.01, refine=True, targets=[2, 4, 8, 9])
    assert (names, begun) == (["2x", "4x", "4.5x"], [None, "2x", "4x", "4x"])
    assert notes[0].startswith("8x, 9x: cannot be reached; even the fewest heads, neurons and layers")


def test_one_between_is_tried_where_only_the_last_loses_more(made, tmp_path, monkeypatch):
    found = {2: (2.1, 0.003), 4: (4.1, 0.02), 2.8: (2.9, 0.004)}
    asked = {"max_drop": 0.01, "refine": True, "targets": [2, 4], "chance": 0.05}
    assert climbed(made, tmp_path, monkeypatch, found, **asked)[0] == ["2x", "2.8x"]


def test_the_fastest_that_was_tried_is_said(made, tmp_path, monkeypatch):
    found = {2: (2.1, 0.003), 3: (3.1, 0.004)}
    names, notes, _ = climbed(made, tmp_path, monkeypatch, found, max_drop=0.01, refine=True)
    assert (names, notes) == (["2x", "3x"], ["None faster than 3x was tried; name some in speedup=."])


def test_those_beyond_max_drop_are_named(made, tmp_path, monkeypatch):
    found = {2: (2.1, 0.0), 3: (3.1, 0.02), 4: (4.1, 0.0), 5: (5, 0.0)}
    names, notes, _ = climbed(made, tmp_path, monkeypatch, found, max_drop=0.01)
    assert names == ["2x"]
    assert "3x: left out, as it loses 2.00 points, more than max_drop=0.01 allows; the nearest is 2x." in notes
    assert notes[-1] == "4x, 5x: not tried, as slower ones lose too much already."


@pytest.mark.parametrize("third", [(3.1, 0.02), (2.0, 0.005)], ids=["more than allowed", "slower and worse"])
def test_a_rung_that_is_left_out_since_its_training_was_stopped_ends_nothing(third, made, tmp_path, monkeypatch):
    found = {2: (2.1, 0.001), 3: third, 4: (4.1, 0.0)}
    names, notes, _ = climbed(made, tmp_path, monkeypatch, found, max_drop=0.01, stopped=(3,))
    assert names == ["2x"]
    assert notes[0].startswith("3x: left out, as it ")
    assert notes[1:] == [
        "3x: time_limit stopped its training; the same call makes it again.",
        "4x: not begun within time_limit.",
    ]


def stop_in_training(patch):
    """Let the time be over when the first training begins."""
    patch.setattr(Deadline, "check", lambda deadline: None)
    patch.setattr(Deadline, "is_over", True)


def test_what_is_done_when_the_time_is_over_is_returned_and_goes_on(made, tmp_path, monkeypatch):
    """Each call looks at a clock that stops it later than the one before."""
    model, given, looked = small(), settings(tmp_path, time_limit=1), 0

    def monotonic():
        nonlocal looked
        looked += 1
        return 0.0 if looked <= most else 1e9

    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=monotonic))
    seen = []
    for most in (1, 5, 20, 30, 1000):  # in the logits of the first rows, of others; the table; the second search
        looked = 0
        ladder = compress(model, ROWS, **given)
        late = [name for name in ("1.5x", "3x") if name not in [rung.name for rung in ladder.rungs]]
        assert ladder.notes == ((f"{', '.join(late)}: not begun within time_limit.",) if late else ())
        logits = [*(tmp_path / "ladder" / ".work" / "logits").rglob("*.arrow")]
        table = json.loads((tmp_path / "ladder" / "ladder.json").read_text())["times"]
        seen.append((bool(logits), table is not None, len(ladder)))
        assert looked <= most + 1  # nothing else is begun
    assert seen == [(False, False, 0), (False, False, 0), (True, False, 0), (True, True, 1), (False, True, 2)]
    assert not ladder.notes
    assert same_bits(state_of(ladder["3x"].model), state_of(made[0]["3x"].model))


def test_time_is_left_to_measure_what_is_trained(tmp_path, monkeypatch):
    """As much as it took the last time."""
    now, kept, reserve = 0.0, [], Deadline.reserve
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: now))
    limit = Deadline(1)
    now = 59.0
    assert not limit.is_over
    limit.reserve(2.0)
    assert limit.is_over

    def watch(self, seconds):
        kept.append(seconds)
        reserve(self, seconds)

    clock = iter([10.0, 13.0, 20.0, 24.0])
    monkeypatch.setattr(Deadline, "reserve", watch)
    monkeypatch.setattr(rungs, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    now = 0.0
    compress(small(), ROWS, **settings(tmp_path, time_limit=1))
    assert kept == [3.0, 4.0]


def test_the_teacher_is_not_asked_again(tmp_path, monkeypatch):
    model, given = small(), settings(tmp_path, speedup=1.5, time_limit=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressing, "_tabulate", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compress(model, ROWS, **given)
    monkeypatch.setattr(logits_cache, "_compute_logits", lambda *args: pytest.fail("the teacher was asked again"))
    assert len(compress(model, ROWS, **given)) == 1


def test_a_rung_whose_training_was_stopped_is_made_again(made, tmp_path):
    model, given = small(), settings(tmp_path, speedup=1.5, time_limit=1e6)
    with pytest.MonkeyPatch.context() as patch:
        stop_in_training(patch)
        rung = compress(model, ROWS, **given)["1.5x"]
    assert rung.stopped
    assert rung.notes == ("time_limit stopped its training after 0.17 of 1 epochs; the same call makes it again.",)
    before = state_of(rung.model)
    with pytest.MonkeyPatch.context() as patch:  # interrupted before it is made again, and stopped as early as before
        patch.setattr(compressing, "make_candidate", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compress(model, ROWS, **given)
    file = tmp_path / "ladder" / "ladder.json"
    assert [one["name"] for one in json.loads(file.read_text())["rungs"]] == ["1.5x"]
    with pytest.MonkeyPatch.context() as patch:
        stop_in_training(patch)
        patch.setattr(rungs, "save_compressed", lambda *args, **settings: pytest.fail("replaced by no better one"))
        assert compress(model, ROWS, **given).rungs == (rung,)
    with pytest.MonkeyPatch.context() as patch:  # no time is left behind the search

        def make_late(*args):
            patch.setattr(Deadline, "is_over", True)
            return candidates.make_candidate(*args)

        patch.setattr(compressing, "make_candidate", make_late)
        ladder = compress(model, ROWS, **given)
    assert (ladder.rungs, ladder.notes) == ((rung,), ())
    assert same_bits(state_of(replace(rung).model), before)
    again = compress(model, ROWS, **given)["1.5x"]
    assert (again.stopped, again.notes) == (False, ())
    assert same_bits(state_of(again.model), state_of(made[0]["1.5x"].model))


def test_how_far_a_training_was_is_said_by_what_ends_it(tmp_path):
    args = arguments(DistillationArguments, tmp_path, num_train_epochs=3, max_steps=100)
    text = rungs.describe_stop(args, training.Trained(0.5, 0.5, None, True))
    assert text == "time_limit stopped its training of 100 steps after 0.5 epochs; the same call makes it again."


@pytest.mark.parametrize(
    ("epochs", "kept", "end"),
    [
        (4, 4, "4 epochs on labels and the teacher at 5e-05"),
        (1, 0, "1 epoch on labels and the teacher at 5e-05, which made it worse on held-out rows and was undone"),
        (4, 2, "at 5e-05, the first 2 kept, as it became worse on held-out rows after that"),
    ],
)
def test_a_recipe_says_which_weights_were_kept(epochs, kept, end, tmp_path):
    args = arguments(DistillationArguments, tmp_path, alpha=0.5, learning_rate=5e-5)
    job = SimpleNamespace(args=args, vocabulary=None)
    trained = training.Trained(epochs, kept, None, False)
    text = rungs._recipe(job, SimpleNamespace(evaluated=48), trained, "2x")
    assert text.startswith("of 2x; 48 plans evaluated; ")
    assert text.endswith(end)


def paired_by_hand(model, rung, rows, args):
    """The interval of the loss of a rung, row by row in NumPy."""
    measured = read_parts(model, word_tokenizer(), rows, None, args, None, 0).measure
    labels = np.array(measured["labels"]).reshape(len(measured), -1)
    found = []
    for one in (model.eval(), rung.model):
        with torch.no_grad():
            logits = np.array([one(torch.tensor([ids])).logits[0].numpy() for ids in measured["input_ids"]])
        if model.config.problem_type == "regression":
            found.append(-((logits - labels) ** 2).mean(1) / labels.var())
        else:
            found.append(((logits > 0) == (labels > 0.5)).mean(1))
    losses = found[0] - found[1]
    if model.config.problem_type == "regression":
        error = 1.96 * losses.std(ddof=1) / len(losses) ** 0.5
    else:
        losses = np.array([*losses, 1, -1])
        error = 1.96 * losses.std() / len(losses) ** 0.5
    return losses.mean() - error, losses.mean() + error


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_other_problems(problem, tmp_path):
    outputs = 1 if problem == "regression" else 3
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(len(ROWS), outputs, generator=generator)
    labels = values[:, 0].tolist() if outputs == 1 else (values > 0.5).float().tolist()
    rows = [{"text": row["text"], "labels": label} for row, label in zip(ROWS, labels, strict=True)]
    args = arguments(DistillationArguments, tmp_path / "args", num_train_epochs=1)
    made = small(num_labels=outputs, problem_type=problem)
    ladder = compress(made, rows, **settings(tmp_path, speedup=2, args=args))
    rung = ladder["2x"]
    assert rung.measured.problem_type == problem
    assert rung.measured.sign_flip is not None
    assert rung.drop_interval == pytest.approx(paired_by_hand(made, rung, rows, args), rel=1e-4, abs=1e-6)
    assert Rung.from_dict(json.loads(json.dumps(rung.to_dict()))) == rung
    assert "2x" in str(ladder)
    if problem == "regression":
        assert rung.kept is None
        variance = torch.tensor([row["labels"] for row in rows]).var()
        assert rung.drop * variance == pytest.approx(rung.measured.mse - rung.original.mse, rel=0.5)


@pytest.mark.parametrize("asked", [{"importance": "fisher"}, {"importance": "taylor"}, {"reconstruct": False}], ids=str)
def test_rankings_sizes_and_lengths_are_those_asked_for(asked, tmp_path, monkeypatch):
    scores, reconstruct, ranked, solved = candidates.importance_scores, structure.reconstruct_outputs, [], []

    def watch(model, groups, kind, batches):
        ranked.append((kind, {"labels" in batch for batch in batches}))
        return scores(model, groups, kind, batches)

    monkeypatch.setattr(candidates, "importance_scores", watch)
    monkeypatch.setattr(structure, "reconstruct_outputs", lambda *args: solved.append(1) or reconstruct(*args))
    asked = {"round_to": 32, "length": 7} | asked
    ladder = compress(small(), ROWS, **settings(tmp_path, speedup=1.5, evaluations=1, **asked))
    assert ranked == [(asked.get("importance", "fisher"), {True})]
    assert len(solved) == asked.get("reconstruct", True)
    rung = ladder["1.5x"]
    assert {neurons % 32 for _, neurons in rung.shapes} == {0}
    assert {one.passes[0].tokens for one in (rung.original, rung.measured)} == {7}


@pytest.mark.parametrize("case", ["onnx", "onnx-int8", "int8 is refused"])
def test_another_runtime_serves_the_rungs(case, tmp_path, monkeypatch):
    """The fallback to float32 is forced, and not left to what int8 loses on this processor."""
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    if not hasattr(torch.export, "AdditionalInputs"):
        pytest.skip("torch.export of 2.6 fails on transformers 5")
    runtime, export = "onnx" if case == "onnx" else "onnx-int8", exporting.export

    def judged(model, directory, **given):
        if given.get("dtype") == "int8":
            if case == "int8 is refused":
                raise CompressionError("too much is lost.")
            given["max_drop"] = 0.99
        return export(model, directory, **given)

    monkeypatch.setattr(exporting, "export", judged)
    time_exports_by_flops(monkeypatch)
    monkeypatch.setattr(candidates, "_TRIES", 1)
    monkeypatch.setitem(clocks._POINTS, runtime, (1, 2))
    monkeypatch.setattr(clocks, "grid", lambda most, least, points, step=1: [most] if points == 1 else [least, most])
    model = build("bert", layers=1, vocab_size=3 + len(WORDS))
    ladder = compress(model, ROWS, **settings(tmp_path, speedup=1.3, runtime=runtime, max_length=8))
    rung, folder = ladder["1.3x"], tmp_path / "ladder" / "1.3x"
    exported, precision = load_exported(folder / "onnx"), "int8" if case == "onnx-int8" else "float32"
    notes = ("float32, because int8 was refused: too much is lost.",) if case == "int8 is refused" else ()
    served_by = "onnx-int8" if precision == "int8" else "onnx"
    assert (exported.dtype, rung.runtime, rung.notes) == (precision, served_by, notes)
    in_torch = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = dummy_inputs(model, rung.measured.passes[0].tokens, 4)
    flops = [count_flops(one, batch) + REST for one in (model, in_torch)]
    assert rung.speedup.ratio == pytest.approx(flops[0] / flops[1])
    rows = [word_tokenizer()(ROWS[n]["text"], return_tensors="pt") for n in ladder.measured_on]
    labels = torch.tensor([ROWS[n]["labels"] for n in ladder.measured_on])
    with torch.no_grad():
        found, again, exact = (
            torch.cat([one(**{name: row[name] for name in exported.input_names & {*row}}).logits for row in rows])
            for one in (exported, rung.model, in_torch)
        )
    assert torch.equal(found, again)
    difference = (found - exact).abs().max()
    assert difference < 1e-4 if precision == "float32" else 1e-4 < difference < 0.1
    right = (found.argmax(-1) == labels).double().mean().item()
    assert rung.measured.accuracy == pytest.approx(right, abs=1e-9 if precision == "float32" else 0.1)  # in batches
    for shown in (str(ladder), (folder / "README.md").read_text()):
        assert f"Run by ONNX Runtime in {precision}, and the original by torch" in " ".join(shown.split())
    assert rung.measured.parameters is None
    assert rung.measured.bytes == (folder / "onnx" / "model.onnx").stat().st_size


def test_rows_do_one_thing_each(tmp_path):
    """With other rows, all of train_dataset teaches; without, a fifth of it is held out."""
    model, tokenizer, args = small(), word_tokenizer(), settings(tmp_path)["args"]
    other = [{**row, "text": row["text"] + " a"} for row in texts(60)]
    for given, sizes in ((other, (240, 20, 40)), (None, (192, 16, 32))):
        parts = read_parts(model, tokenizer, ROWS, given, args, None, 0)
        train, check, measure = (list(part["text"]) for part in (parts.train, parts.check, parts.measure))
        assert (len(train), len(check), len(measure)) == sizes
        if given:
            assert sorted(train) == sorted(ROWS["text"])
        assert sorted(train + check + measure) == sorted(row["text"] for row in [*ROWS, *(given or [])])


def test_every_class_is_learned_from(tmp_path):
    """Of a class with a single row that row is not held out; the others are drawn as ever."""
    model, args = small(num_labels=70), settings(tmp_path)["args"]
    labels = [n if n < 70 else n % 3 for n in range(len(ROWS))]
    rows = Dataset.from_dict({"text": list(ROWS["text"]), "labels": labels})
    parts = read_parts(model, word_tokenizer(), rows, None, args, None, 0)
    assert {*parts.train["labels"]} == {*range(70)}
    assert len(parts.check) + len(parts.measure) == len(ROWS) // 5
    few = rows.select(range(60))
    with pytest.raises(CompressionError, match="60 rows with a label in train_dataset have 60 classes"):
        read_parts(model, word_tokenizer(), few, None, args, None, 0)


@pytest.mark.parametrize(("asked", "longest"), [(None, 4), (6, 6), (99, 8)])
def test_texts_are_as_long_as_is_asked_and_the_model_reads(asked, longest, tmp_path):
    """The limit of a tokenizer is a default; that of a model, 8 here, is none."""
    model, tokenizer, args = small(max_position_embeddings=8), word_tokenizer(), settings(tmp_path)["args"]
    tokenizer.model_max_length = 4
    rows = [{"text": "good " * (1 + n % 12), "labels": n % 2} for n in range(60)]
    parts = read_parts(model, tokenizer, rows, None, args, asked, 0)
    assert max(map(len, parts.train["input_ids"])) == longest


@pytest.mark.parametrize("owner", ["train_dataset", "eval_dataset"])
def test_classes_of_the_data_in_another_order_are_refused(owner, tmp_path):
    """Also where only some rows have a label, of which other features are made."""
    model = small(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    features = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    labels = [label if n % 3 or owner == "eval_dataset" else -1 for n, label in enumerate(ROWS["labels"])]
    named = Dataset.from_dict({"text": list(ROWS["text"]), "label": labels}, features=features)
    train, other = (named, None) if owner == "train_dataset" else (ROWS, named)
    with pytest.raises(CompressionError, match=f"'labels' of {owner} calls its classes yes, no, the model no, yes"):
        read_parts(model, word_tokenizer(), train, other, settings(tmp_path)["args"], None, 0)


def test_padding_is_no_part_of_the_length_that_is_timed():
    tokenizer, own = word_tokenizer(), list(ROWS["text"])
    padded = Dataset.from_dict(dict(tokenizer(own, padding="max_length", max_length=32)))
    alone = Dataset.from_dict({"input_ids": tokenizer(own)["input_ids"]})
    lengths = [len(text.split()) for text in own]
    assert text_lengths(padded) == text_lengths(alone) == lengths
    ascending = Dataset.from_dict({"input_ids": [[3] * (n // 1000 + 1) for n in range(12000)]})
    assert np.median(text_lengths(ascending)) == pytest.approx(6.5, abs=0.5)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_a_training_that_diverges_is_undone(problem, tmp_path):
    """Also where always the first class, which NaN is taken for, is as right."""
    model, tokenizer, args = small(problem_type=problem), word_tokenizer(), settings(tmp_path)["args"]
    labels = 0 if problem == "single_label_classification" else [0.0, 0.0]
    rows = [{"text": row["text"], "labels": labels} for row in ROWS]
    parts = readable(read_parts(model, tokenizer, rows, None, args, None, 0), model, args)
    parts = with_logits(model, model, parts, None, args, tmp_path, Deadline())
    args.learning_rate, before = 1e30, state_of(model)
    trained = training.train_rung(model, None, parts, args, tokenizer, deadline=Deadline(), tick=lambda done: None)
    assert trained.kept == 0
    assert same_bits(state_of(model), before)


@pytest.mark.parametrize("after", [0.0, 1.0])
def test_a_training_that_does_harm_is_undone(after, tmp_path, monkeypatch):
    model, tokenizer, args = small(), word_tokenizer(), settings(tmp_path)["args"]
    parts = read_parts(model, tokenizer, ROWS, None, args, None, 0)
    parts = readable(with_logits(model, model, parts, None, args, tmp_path, Deadline()), model, args)
    scores = iter([torch.full((20,), 0.5), torch.full((20,), after)])
    monkeypatch.setattr(training, "_scores", lambda trainer, parts: next(scores))
    before = state_of(model)
    trained = training.train_rung(model, None, parts, args, tokenizer, deadline=Deadline(), tick=lambda done: None)
    assert trained.kept == after
    assert same_bits(state_of(model), before) == (after == 0.0)
    assert (trained.epochs, trained.scores) == (1, (0.5, after))


@pytest.mark.parametrize(
    ("scores", "epochs", "kept"),
    [
        ([0.2, 1.0, 0.0, 0.0, 1.0, 1.0], 3, 1),  # of five: two in a row are worse than the first
        ([0.2, 1.0, 0.0, 1.0, 0.0, 1.0], 5, 5),
        ([0.2, 0.4, 0.8, 0.4, 0.8, 0.0], 5, 2),
        ([0.2, math.nan, 1.0, 1.0, 1.0, 1.0], 1, 0),
        ([], 5, 5),
    ],
    ids=["stopped", "recovered", "worse at the end", "diverged", "no rows"],
)
def test_a_training_is_stopped_where_it_does_harm(scores, epochs, kept, tmp_path, monkeypatch):
    """The student keeps the weights at the end, or those of its best epoch if these are better beyond chance."""
    model, tokenizer = small(), word_tokenizer()
    args = arguments(DistillationArguments, tmp_path / "args", num_train_epochs=5)
    parts = read_parts(model, tokenizer, ROWS, None, args, None, 0)
    parts = readable(with_logits(model, model, parts, None, args, tmp_path, Deadline()), model, args)
    states = []

    def score(trainer, parts):
        states.append(state_of(model))
        return torch.full((20,), scores[len(states) - 1]) if scores else torch.zeros(0)

    monkeypatch.setattr(training, "_scores", score)
    trained = training.train_rung(model, None, parts, args, tokenizer, deadline=Deadline(), tick=lambda done: None)
    assert (trained.epochs, trained.kept, len(states)) == (epochs, kept, epochs + 1)
    assert [same_bits(state_of(model), one) for one in states] == [number == kept for number in range(epochs + 1)]


def test_what_is_worse_than_before_is_undone(tmp_path, monkeypatch):
    """Also where an epoch between, better than either by chance, does not show that the last one is worse."""
    model, tokenizer = small(), word_tokenizer()
    args = arguments(DistillationArguments, tmp_path / "args", num_train_epochs=2)
    parts = read_parts(model, tokenizer, ROWS, None, args, None, 0)
    parts = readable(with_logits(model, model, parts, None, args, tmp_path, Deadline()), model, args)
    row = torch.arange(300)
    right = [row < 240, (row < 205) | (row >= 228) & (row < 265), row < 228]
    assert training.is_worse(right[2].float() - right[0].float(), parts.problem)
    assert not training.is_worse(right[2].float() - right[1].float(), parts.problem)
    states = []

    def score(trainer, parts):
        states.append(state_of(model))
        return right[len(states) - 1].float()

    monkeypatch.setattr(training, "_scores", score)
    trained = training.train_rung(model, None, parts, args, tokenizer, deadline=Deadline(), tick=lambda done: None)
    assert (trained.epochs, trained.kept) == (2, 1)
    assert same_bits(state_of(model), states[1])


def test_a_training_that_begins_again_with_smaller_batches_begins_with_the_best_weights(tmp_path, monkeypatch):
    model, tokenizer = small(), word_tokenizer()
    args = arguments(DistillationArguments, tmp_path / "args", num_train_epochs=2, auto_find_batch_size=True)
    parts = read_parts(model, tokenizer, ROWS, None, args, None, 0)
    parts = readable(with_logits(model, model, parts, None, args, tmp_path, Deadline()), model, args)
    step, states, scores = DistillationTrainer.training_step, [], [0.2, 1.0, 1.0, 0.0, 0.0]

    def run_out_of_memory(self, *given, **named):
        if len(states) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, *given, **named)

    def score(trainer, parts):
        states.append(state_of(model))
        return torch.full((20,), scores[len(states) - 1])

    monkeypatch.setattr(DistillationTrainer, "training_step", run_out_of_memory)
    monkeypatch.setattr(training, "_scores", score)
    trained = training.train_rung(model, None, parts, args, tokenizer, deadline=Deadline(), tick=lambda done: None)
    assert (len(states), trained.kept, trained.scores) == (5, 0, (1.0, 0.0))
    assert same_bits(states[1], states[2])
    assert same_bits(states[1], state_of(model))
    assert not same_bits(states[0], states[1])


def test_a_training_leaves_nothing_behind(tmp_path, monkeypatch):
    """Else the weights that it keeps aside, and a teacher, would take memory while models are timed."""
    model, tokenizer, args, made = small(), word_tokenizer(), settings(tmp_path)["args"], []
    parts = read_parts(model, tokenizer, ROWS, None, args, None, 0)
    parts = readable(with_logits(model, model, parts, None, args, tmp_path, Deadline()), model, args)
    make = training._make_trainer

    def watch(*given):
        trainer = make(*given)
        made.append(weakref.ref(trainer))
        return trainer

    monkeypatch.setattr(training, "_make_trainer", watch)
    gc.disable()
    try:
        training.train_rung(model, None, parts, args, tokenizer, deadline=Deadline(), tick=lambda done: None)
        assert [one() for one in made] == [None]
    finally:
        gc.enable()


def test_scores_change_nothing_in_a_training(tmp_path, monkeypatch):
    """Rows are predicted between the epochs; dropout and the order of the rows stay as they would be without."""
    tokenizer, states = word_tokenizer(), []
    args = arguments(DistillationArguments, tmp_path / "args", num_train_epochs=3)
    for is_scored in (True, False):
        model = small(dropout=True)
        parts = read_parts(model, tokenizer, ROWS, None, args, None, 0)
        parts = readable(with_logits(model, model, parts, None, args, tmp_path, Deadline()), model, args)
        if not is_scored:
            monkeypatch.setattr(training, "_scores", lambda trainer, parts: torch.zeros(0))
        torch.manual_seed(0)
        training.train_rung(model, None, parts, args, tokenizer, deadline=Deadline(), tick=lambda done: None)
        states.append(state_of(model))
    assert same_bits(*states)


def test_layers_are_compared_with_those_of_the_original(tmp_path, monkeypatch):
    """Also where a rung has fewer layers, and each of these its own number of heads."""
    call, seen = LayerLosses.__call__, []

    def watch(self, student, teacher, mask):
        terms = call(self, student, teacher, mask)
        seen.append((len(student.hidden), len(teacher.hidden), {name: loss for name, (_, loss) in terms.items()}))
        return terms

    monkeypatch.setattr(LayerLosses, "__call__", watch)
    weights = {"hidden_weight": 0.1, "relation_weight": 0.1}
    args = arguments(DistillationArguments, tmp_path / "args", per_device_train_batch_size=32, **weights)
    plan = ((1, 24), None, (3, 64))
    monkeypatch.setattr(candidates, "improve", lambda *args, **kwargs: (plan, np.ones((3, 3)), [0.0]))
    rung = compress(small(), ROWS, **settings(tmp_path, speedup=1.1, args=args))["1.1x"]
    assert rung.shapes == ((1, 24), (3, 64))
    assert {(ours, theirs) for ours, theirs, _ in seen} == {(3, 4)}  # of two and three layers, and the embeddings
    for *_, terms in seen:
        assert set(terms) == {"hidden_term", "relation_term"}
        assert all(0 < loss.mean().item() < 100 for loss in terms.values())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"hidden_weight": 1.0, "layer_map": {0: 0, 3: 3}}, "the search decides which are left out"),
        ({"relation_weight": 1.0, "relation_heads": 3}, "relation_heads=3 must divide the width of a head, 8"),
        ({"class_weights": [1.0, 2.0, 3.0]}, "3 weights; the student has 2 classes"),
        ({"optim": "adamw_bnb_8bit"}, "No model can be trained with these args: .*bitsandbytes"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "No model can be trained with these args: .*num_decay_steps"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "No model can be trained with these args: "),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 500}, "leaves no batch of the 192 rows"),
        ({"num_train_epochs": 0}, "num_train_epochs=0 must be a finite number above 0"),
        ({"num_train_epochs": float("inf")}, "num_train_epochs=inf must be"),
    ],
    ids=str,
)
def test_what_no_rung_can_be_trained_by_is_refused(asked, message, tmp_path):
    args = arguments(DistillationArguments, tmp_path / "args", **asked)
    with pytest.raises(CompressionError, match=message):
        compress(small(), ROWS, **settings(tmp_path, args=args))
    assert list(tmp_path.iterdir()) == []


def test_layers_are_not_compared_with_those_of_other_tokens(tmp_path):
    args = arguments(DistillationArguments, tmp_path / "args", hidden_weight=1.0)
    teacher = {"teacher": small(seed=3), "teacher_processing_class": word_tokenizer(tuple(reversed(WORDS)))}
    with pytest.raises(CompressionError, match="reads other tokens than the model"):
        compress(small(), ROWS, **settings(tmp_path, args=args, **teacher))


def test_rows_that_measure_are_not_learned_from(tmp_path):
    """Texts without labels may be a pool that holds them too; with labels they are counted, as short texts repeat."""
    model, tokenizer, args = small(), word_tokenizer(), settings(tmp_path)["args"]
    others = [{"text": f"{row['text']} good good", "labels": row["labels"]} for row in texts(60)]
    pool = [{"text": row["text"], "labels": None} for row in others]
    padded = [dict(tokenizer(row["text"], padding="max_length", max_length=32)) | {"labels": None} for row in pool]
    encoded = [{"input_ids": tokenizer(row["text"])["input_ids"], "labels": row["labels"]} for row in ROWS]
    encoded = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in encoded]
    for train in ([*ROWS, *pool], [*encoded, *({n: row[n] for n in encoded[0]} for row in padded)]):
        parts = read_parts(model, tokenizer, train, others, args, None, 0)
        assert (len(parts.train), parts.held_out.left_out, parts.held_out.repeated) == (240, 60, 0)
        assert sorted(parts.held_out.measure + parts.held_out.check) == [*range(60)]
        assert [others[n]["labels"] for n in parts.held_out.measure] == list(parts.measure["labels"])
        assert [others[n]["labels"] for n in parts.held_out.check] == list(parts.check["labels"])
    assert parts.held_out.notes == [
        "60 rows without a label are not learned from, as their texts are among those held out."
    ]
    with pytest.raises(CompressionError, match=r"leaves 0 rows to learn from, of 60 \(the texts of 60 others are held"):
        read_parts(model, tokenizer, pool, others, args, None, 0)
    parts = read_parts(model, tokenizer, [*ROWS, *others], others, args, None, 0)
    assert (len(parts.train), parts.held_out.left_out, parts.held_out.repeated) == (300, 0, 40)


def test_the_rows_that_measured_are_named(made):
    ladder, model, folder = made
    noted = json.loads((folder / "ladder" / "ladder.json").read_text())["rows"]
    assert (
        f"32 rows held out of the training (the texts of {ladder.repeated} are learned from in" in ladder.to_markdown()
    )
    assert f" (the texts of {ladder.repeated} are" in (folder / "ladder" / "3x" / "README.md").read_text()
    learned = {text for n, text in enumerate(ROWS["text"]) if n not in {*ladder.measured_on, *noted["check"]}}
    assert ladder.repeated == sum(ROWS[n]["text"] in learned for n in ladder.measured_on) > 0
    assert (noted["source"], tuple(noted["measure"])) == ("train_dataset", ladder.measured_on)
    rows = [ROWS[position] for position in ladder.measured_on]
    labels = torch.tensor([row["labels"] for row in rows])
    for one, which in ((ladder["3x"].model, "measured"), (model, "original")):
        found = [one.eval()(**word_tokenizer()(row["text"], return_tensors="pt")).logits.argmax() for row in rows]
        accuracy = (torch.stack(found) == labels).double().mean().item()
        assert getattr(ladder["3x"], which).accuracy == pytest.approx(accuracy)


def test_the_first_row_may_have_no_label(tmp_path):
    rows = [{"text": "bad bad bad bad"}, *(dict(row) for row in ROWS)]
    parts = read_parts(small(), word_tokenizer(), rows, texts(60), settings(tmp_path)["args"], None, 0)
    assert parts.labelled
    assert list(parts.train["labels"]) == [-100, *ROWS["labels"]]
    assert list(parts.train["weight"]) == [0.0, *[1.0] * len(ROWS)]


def test_balanced_class_weights_do_not_count_rows_without_a_label(tmp_path):
    rows = [dict(row) | ({"labels": None} if n % 3 else {}) for n, row in enumerate(ROWS)]
    args = arguments(DistillationArguments, tmp_path / "args", class_weights="balanced")
    parts = read_parts(small(), word_tokenizer(), rows, None, args, None, 0)
    trainer = training._make_trainer(small(), None, parts, args, word_tokenizer())
    known = [label for label in parts.train["labels"] if label >= 0]
    assert len(known) < len(parts.train)
    expected = [len(known) / (2 * known.count(label)) for label in (0, 1)]
    assert trainer._label_weights.by_class.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "asked",
    [
        {"bf16_full_eval": True},
        {"prediction_loss_only": True},
        {"eval_on_start": True, "eval_do_concat_batches": False},
    ],
    ids=str,
)
def test_arguments_of_an_evaluation_change_no_rung(asked, made, tmp_path):
    """Rows are predicted before and after a training: in half precision, the weights would stay so."""
    args = settings(tmp_path)["args"]
    for name, value in asked.items():
        setattr(args, name, value)
    model, student, before = small(), small(), dict(vars(args))
    parts = read_parts(model, word_tokenizer(), ROWS, None, args, None, 0)
    parts = readable(with_logits(model, model, parts, None, args, tmp_path, Deadline()), model, args)
    trained = training.train_rung(
        student, None, parts, args, word_tokenizer(), deadline=Deadline(), tick=lambda done: None
    )
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert trained.scores is not None
    assert vars(args) == before


@pytest.mark.filterwarnings("ignore:bf16=True on the processor")
def test_mixed_precision_ends_with_the_training(tmp_path):
    """Else a rung would be timed, and exported, in another precision than it is saved in."""
    model, tokenizer = small(), word_tokenizer()
    args = arguments(DistillationArguments, tmp_path / "args", max_steps=2, bf16=True)
    parts = read_parts(model, tokenizer, ROWS, None, args, None, 0)
    parts = readable(with_logits(model, model, parts, None, args, tmp_path, Deadline()), model, args)
    student = small()
    training.train_rung(student, None, parts, args, tokenizer, deadline=Deadline(), tick=lambda done: None)
    assert vars(student).keys().isdisjoint({"forward", "_is_accelerate_prepared"})
    loaded = small().eval()
    loaded.load_state_dict(student.state_dict())
    text = dummy_inputs(model, 9, 2)
    assert torch.equal(student(**text).logits, loaded(**text).logits)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_held_out_rows_are_scored_by_hand(problem, tmp_path):
    outputs = 1 if problem == "regression" else 2
    model, tokenizer, args = (
        small(problem_type=problem, num_labels=outputs),
        word_tokenizer(),
        settings(tmp_path)["args"],
    )
    values = {"single_label_classification": [0, 1], "multi_label_classification": [[1.0, 0.0], [1.0, 1.0]]}
    labels = values.get(problem, [0.5, -1.0])
    rows = [{"text": row["text"], "labels": labels[n % 2]} for n, row in enumerate(ROWS)]
    parts = readable(read_parts(model, tokenizer, rows, None, args, None, 0), model, args)
    trainer = DistillationTrainer(model=model, args=args, processing_class=tokenizer)
    expected = []
    for row in parts.check:
        found = model.eval()(torch.tensor([row["input_ids"]])).logits[0].tolist()
        if problem == "regression":
            expected.append(-((found[0] - row["labels"]) ** 2))
        elif problem == "single_label_classification":
            expected.append(float(found.index(max(found)) == row["labels"]))
        else:
            expected.append(sum((one > 0) == (label == 1) for one, label in zip(found, row["labels"], strict=True)) / 2)
    assert training._scores(trainer, parts).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("missing", [None, -1, -100, float("nan")], ids=str)
def test_rows_without_a_label_are_read(missing, tmp_path):
    """NaN turns the others into floats, as in a table of pandas."""
    kind = float if missing != missing else int
    rows = [dict(row) | {"labels": missing if n % 3 else kind(row["labels"])} for n, row in enumerate(ROWS)]
    parts = read_parts(small(), word_tokenizer(), rows, None, settings(tmp_path)["args"], None, 0)
    assert (len(parts.train) + parts.held_out.left_out, len(parts.check), len(parts.measure)) == (224, 5, 11)
    assert {type(row["labels"]) for row in [*parts.check, *parts.measure]} == {int}
    assert sum(label >= 0 for label in parts.train["labels"]) == 64
    assert sum(weight == 1 for weight in parts.train["weight"]) == 64


def test_weights_are_of_the_rows_with_a_label(tmp_path):
    rows = [dict(row) | ({"labels": None} if n % 3 else {"weight": 2.0}) for n, row in enumerate(ROWS)]
    parts = read_parts(small(), word_tokenizer(), rows, None, settings(tmp_path)["args"], None, 0)
    assert sorted({(row["weight"], row[UNLABELLED]) for row in parts.train}) == [(0, True), (2, False)]
    del rows[0]["weight"]
    with pytest.raises(CompressionError, match="A row with a label has no 'weight', and others have it"):
        read_parts(small(), word_tokenizer(), rows, texts(60), settings(tmp_path)["args"], None, 0)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_labels_may_be_true_or_false(problem, tmp_path):
    model = small(problem_type=problem)
    single = problem == "single_label_classification"
    labels = [bool(row["labels"]) if single else [bool(row["labels"]), False] for row in ROWS]
    rows = [dict(row) | {"labels": None if n % 3 else labels[n], "number": n} for n, row in enumerate(ROWS)]
    parts = read_parts(model, word_tokenizer(), rows, None, settings(tmp_path)["args"], None, 0)
    for part in (parts.train, parts.measure):
        for value in part["labels"]:
            assert not any(isinstance(one, bool) for one in (value if isinstance(value, list) else [value]))
    known = [row for row in parts.train if not row[UNLABELLED]]
    assert len(known) == 64
    for row in [*known, *parts.check, *parts.measure]:
        assert row["labels"] == labels[row["number"]]  # True is 1


def test_a_text_column_leaves_the_training_as_it_is(tmp_path, monkeypatch):
    rows, seen = [{"review": row["text"], "labels": row["labels"]} for row in ROWS], []

    def watch(student, teacher, parts, args, *rest, **more):
        seen.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(rungs, "train_rung", watch)
    with pytest.raises(KeyboardInterrupt):
        compress(small(), rows, **settings(tmp_path, text_column="review", args=None))
    args = default_arguments(seen[0].output_dir, "single_label_classification", labelled=True, seed=0, rows=192)
    args.text_column = "review"
    assert describe_arguments(seen[0]) == describe_arguments(args)


def test_the_page_says_what_rungs_are_trained_with():
    page = (Path(__file__).parents[2] / "docs" / "compress.md").read_text()
    code = page.partition("### The training of a rung")[2].partition("```python\n")[2].partition("```")[0]
    found = {}
    exec(code, found)
    own = default_arguments("training", "single_label_classification", labelled=True, seed=0, rows=5000)
    where = {"bf16": False, "fp16": False, "use_cpu": False, "dataloader_pin_memory": True}  # as the device has it
    written, expected = (describe_arguments(one) | where for one in (found["args"], own))
    kept = {"save_strategy": "no", "logging_strategy": "no", "per_device_eval_batch_size": 64}  # no model differs
    assert written | kept == expected


@pytest.mark.parametrize(
    ("rows", "given", "steps"),
    [(5000, {}, 50), (160, {}, 4), (160, {"per_device_train_batch_size": 2}, 32), (9, {}, 0)],
)
def test_of_few_rows_a_tenth_of_the_training_warms_up(rows, given, steps):
    args = default_arguments("out", "regression", labelled=True, seed=0, rows=rows, **given)
    assert args.warmup_steps == steps


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_model_that_names_no_padding_reads_that_of_the_tokenizer(architecture, tmp_path):
    model = build(architecture, layers=2, vocab_size=3 + len(WORDS), pad_token_id=None)
    ladder = compress(model, ROWS, **settings(tmp_path, speedup=1.3))
    assert model.config.pad_token_id is None
    assert len(ladder) == 1
    rung = ladder.rungs[0]
    assert rung.model.config.pad_token_id == word_tokenizer().pad_token_id
    parts = read_parts(model, word_tokenizer(), ROWS, None, settings(tmp_path)["args"], None, 0)
    with torch.no_grad():
        right = [
            int(model.eval()(torch.tensor([r["input_ids"]])).logits.argmax()) == r["labels"] for r in parts.measure
        ]
    assert rung.original.accuracy == pytest.approx(np.mean(right))


def test_padding_that_a_model_would_take_for_text_is_refused(tmp_path):
    model, tokenizer = build("gpt2", vocab_size=3 + len(WORDS), pad_token_id=None), word_tokenizer()
    tokenizer.pad_token = WORDS[0]
    with pytest.raises(CompressionError, match=f"A text ends with '{WORDS[0]}', with which processing_class pads"):
        compress(
            model, [{"text": f"good {WORDS[0]}", "labels": 0}] * 50, **settings(tmp_path, processing_class=tokenizer)
        )
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    with pytest.raises(CompressionError, match="resize_token_embeddings"):
        compress(model, ROWS, **settings(tmp_path, processing_class=tokenizer))
    assert not (tmp_path / "ladder").exists()


def test_int8_needs_rows_to_judge_it_by(tmp_path):
    rows = ROWS.select(range(12))
    with pytest.raises(CompressionError, match="judges int8 by a third of the rows that no rung learns from, 4; "):
        compress(small(), ROWS, **settings(tmp_path, runtime="onnx-int8", eval_dataset=rows))
    assert not (tmp_path / "ladder").exists()


def test_rows_without_a_label_learn_from_the_teacher(tmp_path):
    rows = [dict(row) | ({"labels": None} if n % 3 else {}) for n, row in enumerate(ROWS)]
    ladder = compress(small(), rows, **settings(tmp_path, speedup=2))
    assert ladder["2x"].measured.examples == 11  # two thirds of a fifth of the 80 that have one


def test_another_teacher_with_its_own_tokenizer_and_order_of_classes(tmp_path):
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    swapped = {"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}
    teacher, seen = small(seed=3, **swapped), []
    tokenizer = word_tokenizer(tuple(reversed(WORDS)))
    before = state_of(teacher)
    train = rungs.train_rung

    def watch(student, given, parts, *args, **kwargs):
        seen.append(parts.train)
        return train(student, given, parts, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rungs, "train_rung", watch)
        compress(
            small(**names),
            ROWS,
            **settings(tmp_path, speedup=2, teacher=teacher, teacher_processing_class=tokenizer),
        )
    assert same_bits(state_of(teacher), before)
    row, own = seen[0][0], word_tokenizer()
    text = own.decode(row["input_ids"])
    with torch.no_grad():
        expected = teacher.eval()(**tokenizer(text, return_tensors="pt")).logits[0]
    torch.testing.assert_close(torch.tensor(row["teacher_logits"]), expected.flip(0))
    assert predict(expected[None], "single_label_classification").shape == (1,)


@pytest.mark.parametrize("most", [None, 3], ids=["all that it reads", "teacher_max_length"])
def test_a_teacher_with_its_own_tokenizer_reads_no_more_than_it_can(most, tmp_path):
    """Also where its tokenizer knows no limit."""
    model, teacher, tokenizer = small(), small(seed=3, max_position_embeddings=6), word_tokenizer(WORDS[::-1])
    tokenizer.model_max_length = int(1e30)
    args = arguments(DistillationArguments, tmp_path / "args", teacher_max_length=most)
    parts = read_parts(model, word_tokenizer(), ROWS, None, args, None, 0)
    parts = with_logits(model, teacher, parts, tokenizer, args, tmp_path, Deadline())
    row = max(parts.train, key=lambda row: len(row["input_ids"]))
    cut = tokenizer(row["text"], return_tensors="pt")["input_ids"][:, : most or 6]
    assert len(row["input_ids"]) > 6
    with torch.no_grad():
        expected = teacher.eval()(input_ids=cut).logits[0]
    torch.testing.assert_close(torch.tensor(row["teacher_logits"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"speedup": 0.5}, r"speedup=0\.5 must be a number above 1"),
        ({"speedup": "4x"}, "speedup='4x' must be"),
        ({"max_drop": 3}, r"max_drop=3 must be in"),
        ({"runtime": "tflite"}, "runtime='tflite'"),
        ({"time_limit": 0}, "time_limit=0"),
        ({"importance": "l1"}, "importance='l1'"),
        ({"processing_class": None}, "is not a tokenizer"),
        ({"args": {}}, "must be DistillationArguments"),
        ({"teacher_processing_class": word_tokenizer()}, "pass that too"),
        ({"evaluations": 0}, "evaluations=0"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"device": "abacus"}, "device='abacus' is none that torch has here"),
        ({"device": "meta"}, "the meta device runs nothing"),
        ({"speedup": {2: 4}}, "speedup=.* must be a number above 1"),
        ({"speedup": torch.tensor(2.0)}, "speedup=.* must be a number above 1"),
        ({"output_dir": 5}, "output_dir=5 is not a path"),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"text_column": "review"}, "text_column='review' beside args=: name it there"),
        ({"args": None, "text_pair_column": 2}, "text_pair_column=2 must be the name of a column"),
        ({"teacher": "bert"}, "teacher must be a model, not str"),
        ({"teacher": build("bert")}, "the teacher's 100, so the teacher cannot read"),
        ({"eval_dataset": "rows"}, "eval_dataset must be a data set with rows"),
        ({"eval_dataset": [{"text": "good", "labels": 2}] * 5}, "eval_dataset has the label 2"),
        ({"eval_dataset": [{"text": "", "labels": 0}] * 5}, "A row of eval_dataset has 0 tokens"),
        ({"eval_dataset": [{"input_ids": [99], "labels": 0}] * 5}, "has the token 99, and"),
        ({"eval_dataset": [{"input_ids": torch.tensor([[3, 4]]), "labels": 0}] * 5}, "input_ids of row 0 of eval_data"),
        ({"eval_dataset": [{"input_ids": [[3, 4], [5, 6]], "labels": 0}] * 5}, "input_ids of row 0 of eval_dataset"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(asked, message, tmp_path):
    with pytest.raises(CompressionError, match=message):
        compress(small(), ROWS, **settings(tmp_path, **asked))
    assert not (tmp_path / "ladder").exists()


@pytest.mark.parametrize("role", ["model", "teacher"])
def test_a_model_that_nobody_has_trained_is_refused(role, tmp_path):
    small().bert.save_pretrained(tmp_path / "base")
    untrained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    with pytest.raises(CompressionError, match=rf"head of {role} is new \(classifier\.bias, classifier\.weight"):
        compress(**{"model": small()} | settings(tmp_path, train_dataset=ROWS, **{role: untrained}))


def test_all_weights_of_a_rung_are_trained(made, tmp_path):
    """Also of a model that was frozen, as teachers are: else a ladder that goes on would train others."""
    model = small().requires_grad_(False)
    rung = compress(model, ROWS, **settings(tmp_path, speedup=1.5))["1.5x"]
    assert same_bits(state_of(rung.model), state_of(made[0]["1.5x"].model))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_keep_their_dtypes(tmp_path):
    """T5 keeps some in float32 where the others are halves."""
    model = small().half()
    model.bert.encoder.layer[0].output.LayerNorm.float()
    found = compress(model, ROWS, **settings(tmp_path, speedup=1.5))["1.5x"]
    kinds = {name: tensor.dtype for name, tensor in load_file(Path(found.folder) / "model.safetensors").items()}
    assert {name for name, dtype in kinds.items() if dtype == torch.float32} == {
        f"bert.encoder.layer.0.output.LayerNorm.{one}" for one in ("weight", "bias")
    }


def test_a_rung_whose_folder_is_gone_is_made_again(made, tmp_path):
    model, given = small(), settings(tmp_path, speedup=1.5)
    for _ in range(2):
        rung = compress(model, ROWS, **given)["1.5x"]
        assert same_bits(state_of(rung.model), state_of(made[0]["1.5x"].model))
        shutil.rmtree(rung.folder)


def test_a_transform_is_not_left_out_without_a_word(tmp_path):
    rows = texts(60)
    rows.set_transform(lambda batch: batch)
    with pytest.raises(CompressionError, match="has a transform"):
        compress(small(), rows, **settings(tmp_path))


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CompressionError, match="file' is a file; name a folder"):
        compress(small(), ROWS, **settings(tmp_path, output_dir=tmp_path / "file" / "ladder"))


def test_a_tokenizer_that_does_not_pad_is_refused(tmp_path):
    """Not only when the first rung is trained."""
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(CompressionError, match="processing_class has no padding token"):
        compress(small(), ROWS, **settings(tmp_path, processing_class=tokenizer))
    assert not (tmp_path / "ladder").exists()


@pytest.mark.parametrize("kind", ["FSDP", "DeepSpeed"])
def test_sharded_models_are_refused(kind, tmp_path, monkeypatch):
    asked = settings(tmp_path)
    monkeypatch.setenv(f"ACCELERATE_USE_{kind.upper()}", "true")  # as accelerate launch sets it
    with pytest.raises(CompressionError, match=f"ask for {kind}, which shards the model"):
        compress(small(), ROWS, **asked)
    assert not (tmp_path / "ladder").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "train_dataset has 0 rows"),
        ({"train": ROWS}, "of several splits pass one"),
        (ROWS.to_pandas(), "or a list of dicts, not DataFrame"),
        ([{"review": "good", "labels": 0}] * 50, "neither 'input_ids' nor 'text'"),
        ([{"text": "good"}] * 50, "0 rows with a label"),
        ([{"text": "good", "labels": "yes"}] * 50, "The label 'yes' is no number"),
        ([{"text": "good", "labels": 0}] * 30, "30 rows with a label"),
        (["good"] * 50, "Row 0 of train_dataset is 'good', not a dict"),
        ([{"text": "good", "labels": -5}] * 50, "Row 0 of train_dataset has the label -5"),
        ([{"text": "good", "labels": 0.5}] * 50, "Row 0 of train_dataset has the label 0.5"),
        ([{"input_ids": [3]}, {"text": "good"}], "Row 1 of train_dataset has no 'input_ids'"),
        ([{"text": "good", "labels": [1, 0]}, {"text": "good", "labels": -1}], "do not make a table: cannot mix list"),
    ],
    ids=[
        "empty",
        "splits",
        "table",
        "columns",
        "unlabelled",
        "names",
        "few",
        "texts",
        "no class",
        "half a class",
        "mixed",
        "mixed labels",
    ],
)
def test_rows_that_do_not_do_are_refused(rows, message, tmp_path):
    with pytest.raises(CompressionError, match=message):
        compress(small(), rows, **settings(tmp_path))
    assert not (tmp_path / "ladder").exists()
