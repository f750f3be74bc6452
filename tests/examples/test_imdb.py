"""The IMDB example from the command line, on tiny random models and real reviews."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import arguments, batch, build, rows
from stopwatch import time_by_flops
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    TrainerCallback,
)

from examples.imdb import __main__ as command
from examples.imdb import (
    comparison,
    intervals,
    losses,
    models,
    reconstruction,
    report,
    schedules,
    shrinking,
    study,
    systems,
    timing,
    training,
)
from examples.imdb.data import load_reviews
from examples.imdb.settings import PRESETS, QUICK_SYSTEMS, SYSTEMS
from hfcompress import DistillationArguments, compat

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "latency_ms", "latency_iqr_ms")


def run(*arguments):
    return command.main(["--preset", "smoke", *map(str, arguments)])


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("imdb") / "results"
    with pytest.MonkeyPatch.context() as patch:
        time_by_flops(patch)  # so that `compress` reaches its speed-ups with models as small as these
        assert run("--output", output) == 0
    return output


@pytest.fixture
def reviews(tmp_path):
    lines = [
        f'"{"good fun" if label else "bad bore"} number {n}<br /><br />indeed",{label}'
        for n in range(30)
        for label in (0, 1)
    ]
    file = tmp_path / "reviews.csv"
    file.write_text("\n".join(["text,label", *lines]))
    return file


def read_systems(output):
    return {system["key"]: system for system in json.loads((output / "results.json").read_text())["systems"]}


def read_first_seed(output):
    return {key: system["by_seed"]["0"] for key, system in read_systems(output).items()}


def test_all_systems_are_trained(finished):
    results = read_first_seed(finished)
    assert list(results) == [system.key for system in SYSTEMS]
    for key, result in results.items():
        epochs = {"student": 2, "bert": 2, "gpt2": 2, "compress": 0}  # which trains by itself
        assert len(result["history"]) == epochs.get(key.split("-")[0], 1), key
        assert all({"train_accuracy", "eval_accuracy", "train_loss", "eval_loss"} <= set(e) for e in result["history"])
        assert 0 <= result["validation_accuracy"] <= 1
        assert result["validation_examples"] == 8


def test_all_systems_are_timed(finished):
    timing = json.loads((finished / "results.json").read_text())["timing"]
    assert list(timing["systems"]) == [system.key for system in SYSTEMS]
    assert all(measured["latency_ms"] > 0 for measured in timing["systems"].values())
    assert 2 < timing["tokens"] <= 32


def test_systems_are_timed_in_the_shapes_that_they_have(finished):
    for key, system in read_systems(finished).items():
        built = timing.build(system["by_seed"]["0"]["config"])
        saved = AutoModelForSequenceClassification.from_pretrained(finished / "seed-0" / key / "model")
        shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (built, saved)]
        assert shapes[0] == shapes[1]
        assert all(p.isfinite().all() for p in built.parameters())


def test_a_finished_run_is_timed_again_without_weights(finished, tmp_path, monkeypatch):
    for name in ("results.json", "results.md"):
        shutil.copy(finished / name, tmp_path)
    before = json.loads((tmp_path / "results.json").read_text())
    monkeypatch.setattr(sys, "argv", ["timing", str(tmp_path)])
    timing.main()
    assert without_times(json.loads((tmp_path / "results.json").read_text())) == without_times(before)
    assert (tmp_path / "speed-accuracy.png").stat().st_size > 10_000


def test_all_systems_are_in_the_table(finished):
    text = (finished / "results.md").read_text()
    assert all(system.title in text for system in SYSTEMS)


def test_all_figures_are_drawn(finished):
    pictures = {f"figure-{number}.png" for number in range(1, 6)} | {"size-accuracy.png", "speed-accuracy.png"}
    assert pictures == {file.name for file in finished.glob("*.png")}
    text = (finished / "results.md").read_text()
    assert [text.count(f"]({name})") for name in pictures] == [1] * 7


def test_training_validation_and_test_reviews_differ():
    preset = PRESETS["smoke"]
    reviews = load_reviews("packaged", preset.reviews, preset.test_reviews, seed=0)
    texts = [set(reviews[part]["text"]) for part in ("train", "validation", "test")]
    assert [len(part) for part in texts] == [32, 8, 40]
    assert len(set.union(*texts)) == 80


def test_the_test_accuracy_is_that_of_the_saved_model(finished):
    reviews = load_reviews("packaged", 40, 40, seed=0)["test"]
    for key, result in read_first_seed(finished).items():
        model = AutoModelForSequenceClassification.from_pretrained(finished / "seed-0" / key / "model").eval()
        tokenizer = AutoTokenizer.from_pretrained(finished / "seed-0" / key / "model")
        if key == "student-wrong-ids":
            continue  # reads other ids, on purpose
        inputs = [tokenizer(text, truncation=True, max_length=32, return_tensors="pt") for text in reviews["text"]]
        with torch.no_grad():
            logits = torch.cat([model(**one).logits for one in inputs])
        labels = torch.tensor(reviews["label"])
        assert result["test_examples"] == 40
        # The example predicts in bfloat16 where that is native; of forty, one prediction may lie on the edge.
        assert result["test_accuracy"] == pytest.approx((logits.argmax(-1) == labels).double().mean().item(), abs=0.026)
        assert result["test_cross_entropy"] == pytest.approx(cross_entropy(logits, labels).item(), abs=0.05)
        correct = intervals.unpack_correct(result)
        assert correct.mean() == pytest.approx(result["test_accuracy"])
        assert (correct == (logits.argmax(-1) == labels).numpy()).sum() >= 39


def test_zeros_are_kept_where_asked(finished):
    results = read_first_seed(finished)
    assert results["pruned-10"]["sparsity"] == pytest.approx(0.1, abs=1e-4)
    assert results["pruned-20"]["sparsity"] == pytest.approx(0.2, abs=1e-4)
    assert results["control"]["sparsity"] == 0


def test_zeros_are_lost_where_not_kept(finished):
    result = read_first_seed(finished)["pruned-20-not-kept"]
    assert result["sparsity_before_training"] == pytest.approx(0.2, abs=1e-4)
    assert result["sparsity"] < 0.01


def test_gradual_pruning_begins_without_zeros(finished):
    result = read_first_seed(finished)["pruned-by-5"]
    assert result["sparsity_before_training"] == 0
    assert result["sparsity"] == pytest.approx(0.2, abs=1e-4)


def test_further_training_starts_where_bert_ended(finished):
    results = read_first_seed(finished)
    ended = results["bert"]["validation_cross_entropy"]
    assert results["control"]["start"]["validation_cross_entropy"] == pytest.approx(ended, abs=1e-6)


def test_a_resumed_run_ends_with_the_same_numbers(finished, tmp_path, monkeypatch, capsys):
    output = tmp_path / "results"
    keys = ("bert", "gpt2", "pruned-10")
    chosen = ("--output", output, "--systems", *keys[1:])  # BERT comes along

    def stop(self, args, state, control, **kwargs):
        if "gpt2" in args.output_dir and state.epoch > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.SaveSlowEpochs, "seconds", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(training.EpochLines, "on_step_end", stop)
        assert run(*chosen) == 130
    assert "the same command resumes from here" in capsys.readouterr().err
    assert (output / "seed-0" / "bert" / "result.json").exists()
    checkpoints = output / "seed-0" / "gpt2" / "checkpoints"
    assert [one.name for one in checkpoints.iterdir()] == ["checkpoint-4"]
    # As if killed while the next was written; the Trainer writes its state last.
    shutil.copytree(checkpoints / "checkpoint-4", checkpoints / "checkpoint-8")
    (checkpoints / "checkpoint-8" / "trainer_state.json").unlink()
    (checkpoints / "checkpoint-8" / "model.safetensors").write_bytes(b"half")
    assert run(*chosen) == 0
    printed = capsys.readouterr().out
    assert "epoch 2:" in printed
    assert "epoch 1:" not in printed[: printed.index("] BERT pruned 10 %")]  # of BERT and GPT-2, one epoch was left
    expected = read_systems(finished)
    assert without_times(read_systems(output)) == without_times({key: expected[key] for key in keys})
    assert "Not in this run: BERT pruned 20 %, KD student" in (output / "results.md").read_text()


def test_a_finished_run_only_rewrites_its_report(finished, capsys):
    before = (finished / "results.json").read_text()
    assert run("--output", finished) == 0
    assert (finished / "results.json").read_text() == before
    assert "KD student" in capsys.readouterr().out


def test_own_data_own_model_and_mse_with_several_seeds(reviews, finished, tmp_path, capsys):
    output = tmp_path / "results"
    bert = finished / "seed-0" / "bert" / "model"
    chosen = ("--systems", "student", "--loss", "mse", "--seeds", 1, 2, "--data", reviews, "--bert", bert)
    chosen += ("--reviews", 60)
    assert run("--output", output, *chosen) == 0
    capsys.readouterr()
    by_seed = read_systems(output)["bert"]["by_seed"]
    assert set(by_seed) == {"1", "2"}
    assert "test_accuracy" not in by_seed["1"]  # all sixty are used
    assert all(entry["eval_distillation_loss"] <= 1 < 2 * entry["eval_loss"] + 1 for entry in by_seed["1"]["history"])
    reviews.write_text(reviews.read_text() + "\none more,1\n")
    assert "another data_sha256" in refused(capsys, "--output", output, *chosen)


def refused(capsys, *arguments):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("text,label\n", "holds no reviews"),
        ("words,label\nfine,1\n", "has no column text"),
        ("text,label\n" + "".join(f"review {n},1\n" for n in range(50)), "two classes"),
        ("text,label\na,0\nb,1\n", "holds 2 different reviews, 40 were asked"),
        ("text,label\n" + "the same,0\n" * 30 + "other,1\n" * 30, "holds 2 different reviews"),
    ],
)
def test_bad_data_is_refused(capsys, tmp_path, content, message):
    file = tmp_path / "reviews.csv"
    file.write_text(content)
    assert message in refused(capsys, "--data", file, "--output", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_unreadable_data_is_refused(capsys, tmp_path):
    assert "cannot be read" in refused(capsys, "--data", tmp_path / "missing.csv", "--output", tmp_path / "results")
    other = tmp_path / "reviews.txt"
    other.write_text("text")
    assert "neither a .csv nor a .jsonl" in refused(capsys, "--data", other, "--output", tmp_path / "results")


def test_a_model_folder_without_tokenizer_is_refused(capsys, tmp_path, reviews):
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, vocab_size=50)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    message = refused(capsys, "--data", reviews, "--bert", tmp_path / "model", "--output", tmp_path / "results")
    assert "has no tokenizer" in message
    assert not (tmp_path / "results").exists()


def test_a_missing_hub_is_reported_in_one_sentence(capsys, tmp_path, reviews):
    message = refused(capsys, "--data", reviews, "--models", "hub", "--output", tmp_path / "results")
    assert "bert-base-uncased" in message
    assert "--models packaged" in message


def test_a_missing_extra_is_named_with_the_command(capsys, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else found(name))
    message = refused(capsys, "--output", tmp_path / "results")
    assert "datasets" in message
    assert "python -m pip install -c constraints.txt -e '.[imdb]'" in message


def test_a_results_folder_that_cannot_be_written_is_refused(capsys, tmp_path, reviews):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, "--data", reviews, "--output", tmp_path / "file" / "results")


def test_other_settings_in_the_same_folder_are_refused(capsys, finished):
    assert "another loss" in refused(capsys, "--loss", "mse", "--output", finished)


def test_the_precision_is_chosen_said_once_and_recorded(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(compat, "mixed_precision", lambda: compat.MixedPrecision("no", "as this test says"))
    made = []
    monkeypatch.setattr(
        training.hfc, "DistillationArguments", lambda **given: made.append(given) or DistillationArguments(**given)
    )
    assert run("--output", tmp_path, "--systems", "student") == 0
    assert capsys.readouterr().out.count("Precision of the training: float32 (as this test says).") == 1
    assert made
    assert not any(given["bf16"] or given["fp16"] for given in made)
    assert json.loads((tmp_path / "settings.json").read_text())["precision"] == "float32"
    assert ", float32, seeds 0." in (tmp_path / "results.md").read_text()
    monkeypatch.setattr(compat, "mixed_precision", lambda: compat.MixedPrecision("bf16", "as this test says"))
    assert "another precision" in refused(capsys, "--output", tmp_path)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "float32"])
def test_the_arguments_are_of_the_precision(precision, tmp_path):
    args = training.training_arguments(tmp_path, precision)
    assert (args.bf16, args.fp16) == (precision == "bf16", precision == "fp16")


def test_float16_without_an_accelerator_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(compat, "current_accelerator", lambda: None)
    assert "needs an accelerator" in refused(capsys, "--precision", "fp16", "--output", tmp_path / "results")


def test_too_few_or_too_many_reviews_are_refused(capsys, tmp_path):
    assert "at least 10" in refused(capsys, "--reviews", 3, "--output", tmp_path / "results")
    assert "were asked" in refused(capsys, "--reviews", 30000, "--output", tmp_path / "results")


def test_the_quick_preset_has_the_first_systems():
    assert [system.key for system in SYSTEMS][: len(QUICK_SYSTEMS)] == list(QUICK_SYSTEMS)
    assert {system.key for system in SYSTEMS if system.paper} < set(QUICK_SYSTEMS)


def test_an_unknown_preset_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--preset", "huge"])
    assert "invalid choice: 'huge'" in capsys.readouterr().err


def test_wrong_ids_are_those_of_the_other_tokenizer(finished, reviews, tmp_path):
    """Where student and BERT have vocabularies of their own; where they share one, its words are shuffled."""
    bert = finished / "seed-0" / "bert" / "model"
    _, tokenizer = models.starting_models("tiny", {}, ["some other words", "and few of them"] * 9, 64)["bert"].make()
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    BertForSequenceClassification(config).save_pretrained(tmp_path / "student")
    tokenizer.unk_token = "[PAD]"
    tokenizer.save_pretrained(tmp_path / "student")
    given = {"bert": str(bert), "gpt2": None, "student": str(tmp_path / "student")}
    starts = models.starting_models("tiny", given, ["texts"], 64)
    parts = {"train": load_reviews(str(reviews), 60, 0, seed=0)["train"]}
    by_key = {system.key: system for system in SYSTEMS}
    run = systems.Run(PRESETS["smoke"], starts, parts, "cross_entropy", "float32", 0, finished / "seed-0")
    student = starts["student"].make()[1]
    right = systems._encode("train", student, by_key["student"], run)
    wrong = systems._encode("train", student, by_key["student-wrong-ids"], run)
    of_bert = AutoTokenizer.from_pretrained(bert)
    for text, ids, other in zip(parts["train"]["text"], right["input_ids"], wrong["input_ids"], strict=True):
        assert ids == student(text, truncation=True, max_length=32)["input_ids"]
        known = [one if one < len(student) else student.unk_token_id for one in of_bert(text)["input_ids"][:32]]
        assert other[:-1] == known[:-1]
    shared = systems.Run(PRESETS["smoke"], starts, parts, "cross_entropy", "float32", 0, finished / "seed-0")
    shuffled = systems._encode("train", of_bert, by_key["student-wrong-ids"], shared)["input_ids"][0]
    same = of_bert(parts["train"]["text"][0], truncation=True, max_length=32)["input_ids"]
    special = set(of_bert.all_special_ids)
    assert [one for one in shuffled if one in special] == [one for one in same if one in special]
    assert sum(one != two for one, two in zip(shuffled, same, strict=True)) > len(same) / 2


def test_the_example_uses_public_names_only():
    import re

    import hfcompress

    for file in (ROOT / "examples" / "imdb").glob("*.py"):
        source = file.read_text()
        assert not re.search(r"^\s*(from|import) hfcompress\.(?!compat )", source, re.MULTILINE), file
        assert set(re.findall(r"\bhfc\.(\w+)", source)) <= set(hfcompress.__all__), file


# The studies


SMALL = {
    schedules: {"AMOUNTS": (0.5,), "WITHOUT_POOLER": (0.6,)},
    shrinking: {"SHARES": (0.9, 0.5), "IMPORTANCES": ("l1", "fisher")},
    losses: {"COMBINATIONS": {name: losses.COMBINATIONS[name] for name in [*losses.COMBINATIONS][::7]}},
}


@pytest.mark.parametrize("program", SMALL, ids=lambda program: program.__name__.rpartition(".")[2])
def test_a_study_trains_writes_its_page_and_resumes(program, tmp_path, monkeypatch):
    texts = list(load_reviews("rotten_tomatoes", 40, 0, seed=0)["train"]["text"])
    monkeypatch.setattr(study, "starting_models", lambda *_: models.starting_models("tiny", {}, texts, 64))
    further = {"FURTHER_EPOCHS": 5 if program is schedules else 1}
    small = {"TEXTS": 40, "TEST_TEXTS": 40, "EPOCHS": 1, "MAX_LENGTH": 64}
    for module, values in ((program, SMALL[program]), (study, small | further)):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    output, work = tmp_path / "page", tmp_path / "work"
    seeds = {losses: [0, 3]}.get(program, [0])
    options = ["--output", str(output), "--work", str(work), "--precision", "float32", "--seeds", *map(str, seeds)]
    monkeypatch.setattr(sys, "argv", ["study", *options])
    program.main()
    page = (output / "index.md").read_text()
    results = json.loads((output / "results.json").read_text())
    runs = results["runs"]
    assert results["settings"] == {"data": "rotten_tomatoes", "seeds": seeds, "train": 32, "test": 40}
    assert {tuple(run["seed"] for run in of_seeds) for of_seeds in runs.values()} == {tuple(seeds)}
    assert all(name in page for name in runs if name != schedules.COUNTS)
    assert "; trained in float32." in page
    assert "32 Rotten Tomatoes sentences" in page
    assert (output / "accuracy.png").stat().st_size > 10_000
    if program is schedules:
        assert [run["sparsity"] for run in runs["cubic 0.5"]] == pytest.approx([0.5], abs=1e-3)
        assert 0.55 < runs["cubic 0.6, pooler not pruned"][0]["sparsity"] < 0.6
        assert runs["trained on, nothing pruned"][0]["sparsity"] == 0
    written = {file: file.stat().st_mtime_ns for file in work.rglob("*.json")}
    assert len(written) > len(seeds) * len(runs)
    program.main()
    assert written == {file: file.stat().st_mtime_ns for file in work.rglob("*.json")}
    assert (output / "index.md").read_text() == page
    assert json.loads((output / "results.json").read_text()) == results


@pytest.mark.parametrize("program", SMALL, ids=lambda program: program.__name__.rpartition(".")[2])
def test_the_committed_page_is_of_the_committed_results(program):
    name = program.__name__.rpartition(".")[2]
    results = json.loads((ROOT / "docs" / name / "results.json").read_text())
    page = study.render_page(name, results, *program.describe(results))
    assert page == (ROOT / "docs" / name / "index.md").read_text()


def test_the_study_of_reconstruction_resumes_and_writes(tmp_path, monkeypatch, capsys):
    texts = list(load_reviews("packaged", 40, 0, seed=0)["train"]["text"])
    monkeypatch.setattr(reconstruction, "starting_models", lambda *_: models.starting_models("tiny", {}, texts, 64))
    small = {"count": 40, "test_count": 20, "max_length": 32, "epochs": 1}
    one = {"sentences": replace(reconstruction.TEXTS["sentences"], **small, recipes=["5e-5, hidden states"])}
    for name, value in {"TEXTS": one, "SEEDS": (0, 1), "SHARES": (0.8,), "DISTILLED_SHARES": (0.8,)}.items():
        monkeypatch.setattr(reconstruction, name, value)
    monkeypatch.setattr(reconstruction, "EPOCHS", (1,))
    page = tmp_path / "page"

    def run(*arguments):
        folders = ["--output", str(page), "--work", str(tmp_path / "work"), "--precision", "float32"]
        monkeypatch.setattr(sys, "argv", ["study", *folders, *arguments])
        reconstruction.main()
        return json.loads((page / "results.json").read_text())["runs"]["sentences"]

    first = run("--seeds", "0", "--jobs", "^fisher")
    assert set(first) == {"teacher"} | {name for name in first if name.startswith("fisher")}
    assert "(1 of 2 seeds)" in (page / "index.md").read_text()
    capsys.readouterr()
    runs = run()
    done = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sentences-0")]
    others = [name for name in runs if name not in first]
    assert [line.partition(": ")[2] for line in done] == others
    assert {name.partition(" ")[0] for name in others} == {"l1", "l1,", "obs,"}
    assert {len(results) for results in runs.values()} == {2}
    assert runs["fisher 0.8"][0] == first["fisher 0.8"][0]
    assert runs["teacher"][0]["agreement"] == 1
    text = (page / "index.md").read_text()
    assert all(method in text for method in reconstruction.METHODS)
    assert "of 2 seeds" not in text
    assert (page / "accuracy.png").stat().st_size > 10_000


def test_the_page_of_reconstruction_is_of_its_results():
    folder = ROOT / "docs" / "reconstruction"
    results = json.loads((folder / "results.json").read_text())
    assert reconstruction.render_page(results) == (folder / "index.md").read_text()


def test_the_packaged_sentences_are_other_texts():
    sentences = load_reviews("packaged-sentences", 40, 20, seed=0)
    assert [len(part) for part in sentences.values()] == [32, 8, 20]
    reviews = load_reviews("packaged", 40, 20, seed=0)
    lengths = [sum(map(len, part["train"]["text"])) / 32 for part in (sentences, reviews)]
    assert 50 < lengths[0] < 200 < lengths[1]


@pytest.mark.parametrize("preset", ["quick", *comparison.RUNS, comparison.LADDER])
def test_the_committed_report_is_of_the_committed_results(preset):
    folder = ROOT / "examples" / "imdb" / "results" / preset
    content = json.loads((folder / "results.json").read_text())
    pictures = sorted(file.name for file in folder.glob("*.png"))
    assert report.render_report(content, pictures) == (folder / "results.md").read_text()


@pytest.mark.parametrize("run", [*comparison.RUNS, comparison.LADDER])
def test_committed_accuracies_are_those_of_the_committed_predictions(run):
    content = json.loads((ROOT / "examples" / "imdb" / "results" / run / "results.json").read_text())
    titles = {entry["key"]: entry["title"] for entry in content["systems"]}
    assert [*titles.items()] == [(system.key, system.title) for system in SYSTEMS if system.key in titles]
    for entry in content["systems"]:
        assert [*entry["by_seed"]] == [str(seed) for seed in content["seeds"]]
        for result in entry["by_seed"].values():
            bits = bin(int(result["test_correct"], 16)).count("1")
            assert bits / result["test_examples"] == pytest.approx(result["test_accuracy"], abs=1e-9)


def test_the_page_of_the_comparison_is_of_the_committed_results():
    page = (ROOT / "docs" / "comparison" / "index.md").read_text()
    assert comparison.render(comparison.Figures()) == page


def test_differences_and_tests_are_paired():
    one = {"test_correct": "f0f0", "test_examples": 12}  # 1111 0000 1111
    other = {"test_correct": "3330", "test_examples": 12}  # 0011 0011 0011
    assert intervals.unpack_correct(one).tolist() == [True] * 4 + [False] * 4 + [True] * 4
    difference, half = intervals.paired_difference(one, other)
    each = [1, 1, 0, 0, 0, 0, -1, -1, 1, 1, 0, 0]
    assert difference == pytest.approx(sum(each) / 12)
    assert half == pytest.approx(1.96 * (sum((x - difference) ** 2 for x in each) / 11 / 12) ** 0.5)
    assert intervals.mcnemar(one, other) == pytest.approx(2 * (1 + 6 + 15) / 64)  # four of six, two-sided
    assert intervals.mcnemar(one, one) == 1
    gains, spread = intervals.mean_difference([one, one, other], [other, one, other])
    assert gains == pytest.approx(difference / 3)
    assert spread == pytest.approx(intervals.spread([difference, 0, 0]))


def test_fine_tuning_averages_over_the_whole_update(tmp_path):
    """Teachers are fine-tuned without the stock Trainer's factor (see test_transformers_hooks)."""
    norms = {}
    for size, accumulated in ((8, 1), (4, 2), (2, 4)):
        found = norms[accumulated] = []

        class Norms(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, found=found, **kwargs):
                found.append(float(torch.cat([p.grad.flatten() for p in kwargs["model"].parameters()]).norm()))

        settings = {"alpha": 0.0, "label_loss": "cross_entropy", "optim": "sgd", "max_grad_norm": 0.0}
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        args = arguments(DistillationArguments, tmp_path, **settings, **sizes)
        data = rows(batch(21))  # the last update has five
        training.EpochTrainer(model=build(), args=args, train_dataset=data, callbacks=[Norms()]).train()
    assert len(norms[1]) == 3
    assert norms[2] == pytest.approx(norms[1], rel=1e-5)
    assert norms[4] == pytest.approx(norms[1], rel=1e-5)
