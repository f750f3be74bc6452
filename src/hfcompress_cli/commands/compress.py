"""Make smaller models of a fine-tuned classifier, each a number of times as fast.

What to keep of heads, neurons and layers is searched for under measured times;
each model is distilled from the original and measured beside it. OUT gets a
folder for each of them, ladder.json, the rows that measured them
(measured.jsonl), and index.html where matplotlib is there.
Interrupted and started again, it goes on behind the last model that is done.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hfcompress_cli import launch, options

PAGE, MEASURED = "index.html", "measured.jsonl"
_OF_TRAINING = {  # what an option is called in training arguments
    "epochs": "num_train_epochs",
    "learning_rate": "learning_rate",
    "train_batch_size": "per_device_train_batch_size",
}
_ASIDE = ".replaced"  # in the folder: the ladder that another one replaces, until that has a model


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options."""
    parser = options.add_verb(verbs, "compress", run, "a ladder of models, each a number of times as fast", __doc__)
    parser.add_argument("model", **options.MODEL)
    add = parser.add_argument_group("how much").add_argument
    help = "how many times as fast, such as 2,4,10 (default: these; with --max-drop faster ones until too much is lost)"
    add("--speedup", type=speedups, metavar="N,N", help=help)
    help = "accuracy that may be lost, such as 0.01; models that lose more are left out, and faster ones are not tried"
    add("--max-drop", type=options.fraction, metavar="F", help=help)
    help = "what serves the models: torch (default), onnx or onnx-int8; they are exported for the latter two"
    add("--runtime", choices=("torch", "onnx", "onnx-int8"), default="torch", help=help)
    help = "where torch runs the models that are timed and measured, such as cpu (default: where they are trained)"
    add("--device", metavar="DEVICE", help=help)
    add("--time-limit", type=float, metavar="MINUTES", help="return what is done by then")
    add("--batch-size", type=int, default=16, metavar="N", help="texts in the timed batch (default: %(default)s)")
    help = "tokens of each of them (default: the median of --data)"
    add("--length", type=int, metavar="N", help=help)
    data = options.add_data(parser, "labelled texts to learn from", required=True)
    options.add_held_out(data)
    help = "keep only the tokens of the texts to learn from: smaller models, as fast, that read other words in pieces"
    data.add_argument("--vocabulary", action="store_true", help=help)
    help = "texts without labels, from which the models learn the logits of MODEL"
    data.add_argument("--unlabelled", nargs="+", action="extend", default=[], metavar="DATA", help=help)
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=float, metavar="F", help="of each model (default: 4)")
    add("--learning-rate", type=float, metavar="F", help="its peak (default: 5e-5)")
    add("--train-batch-size", type=int, metavar="N", help="texts a step, by process (default: 16)")
    help = "of the classes in the label term: balanced, or a list as JSON"
    add("--class-weights", metavar="W", help=help)
    help = "column with the weights of the rows in the label term, if there is one; '' for none (default: weight)"
    add("--weight-column", metavar="NAME", help=help)
    help = "of rows held out, search and training (default: %(default)s)"
    add("--seed", type=int, default=options.SEED, metavar="N", help=help)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> options.Results:
    """Write the ladder."""
    import hfcompress as hfc
    from hfcompress.distill.label_weights import WEIGHT_COLUMN, read_class_weights
    from hfcompress.losses import Problem
    from hfcompress.models.classifier import get_problem_type
    from hfcompress.search.processes import processes
    from hfcompress.search.training import default_arguments
    from hfcompress_cli.data import encode, read_rows
    from hfcompress_cli.held_out import read_split
    from hfcompress_cli.models import load
    from hfcompress_cli.outputs import terminal_width

    output = Path(arguments.output).expanduser()
    if launch.is_main():
        put_back(output)
        check_output(output, arguments.overwrite)
    options.check_measured(arguments)
    columns, label = options.text_columns(arguments), arguments.label_column
    reading, reads_labels = options.reading(arguments), options.labels(arguments)
    asked = WEIGHT_COLUMN if arguments.weight_column is None else arguments.weight_column or None
    weight_column = options.weight_column(arguments, asked)
    class_weights = read_class_weights(arguments.class_weights)
    split = read_split(arguments, label, weight_column, arguments.seed)
    model, tokenizer = load(arguments.model, trained=True, reads_texts=True)

    def encoded(part: Any, whole: Any) -> Any:
        made = encode(part, columns, label, model, tokenizer, arguments.max_length, table=whole, **reads_labels)
        return with_columns(made, part, [] if weight_column is None else [weight_column])

    def with_columns(made: list[Any], part: Any, more: list[str]) -> list[Any]:
        kept = [*more, *(columns if arguments.vocabulary else [])]  # the texts are encoded anew then
        return [own | {name: row[name] for name in kept if name in row} for own, row in zip(made, part, strict=True)]

    learned = encoded(split.rows, split.table)
    for source in arguments.unlabelled:
        more = read_rows(source, columns, None, seed=arguments.seed, **reading | {"rows": None})
        learned += with_columns(encode(more, columns, None, model, tokenizer, arguments.max_length), more, [])
    problem: Problem = get_problem_type(model, "model")
    given: dict[str, Any] = {}
    for option, name in _OF_TRAINING.items():
        value = getattr(arguments, option)
        if value is not None and not 0 < value < math.inf:
            raise hfc.CompressionError(f"--{option.replace('_', '-')} {value:g} must be a finite number above 0.")
        given |= {} if value is None else {name: value}
    settings = {"labelled": True, "seed": arguments.seed, "rows": len(learned), **given}
    args = default_arguments(str(output / ".work"), problem, **settings)
    args.text_column, args.text_pair_column = arguments.text_column, arguments.text_pair_column
    args.weight_column, args.class_weights = weight_column, class_weights
    if weight_column in split.rows[0] and launch.is_main():
        print(
            f"Rows are weighed by the column {weight_column!r}; --weight-column '' weighs all the same.",
            file=sys.stderr,
        )
    with set_aside(output) if arguments.overwrite and launch.is_main() else nullcontext():
        processes().wait_for_everyone()  # so that none reads the ladder that is set aside
        ladder = hfc.compress(
            model,
            learned,
            processing_class=tokenizer,
            eval_dataset=encoded(split.held_out, split.eval_table) if split.held_out else None,
            speedup=arguments.speedup,
            max_drop=arguments.max_drop,
            runtime=arguments.runtime,
            device=arguments.device,
            output_dir=output,
            time_limit=arguments.time_limit,
            args=args,
            batch_size=arguments.batch_size,
            length=arguments.length,
            max_length=arguments.max_length,
            vocabulary=arguments.vocabulary,
            seed=arguments.seed,
        )
    if launch.is_main():
        if not ladder.rungs and _rungs(output / "ladder.json"):  # that of before came back
            print(f"{arguments.output} is as it was: no model of another ladder was done.", file=sys.stderr)
        else:
            measured = [(split.held_out or split.rows)[position] for position in ladder.measured_on]
            write_rows(measured, label, model, arguments.labels_are, output / MEASURED)
            write_page(ladder, output / PAGE)
            print(f"Written to {arguments.output}.", file=sys.stderr)
            if arguments.overwrite and not json.loads((output / "ladder.json").read_text(encoding="utf-8"))["ended"]:
                print("The same command without --overwrite goes on from there.", file=sys.stderr)
    text = ladder.to_text(width=terminal_width())
    return f"{text}\n\n{_following(arguments, ladder)}" if ladder.rungs else text, ladder.to_dict()


def _following(arguments: argparse.Namespace, ladder: Any) -> str:
    """Return the command that measures the models once more, on the same rows and at the same length."""
    from hfcompress_cli.outputs import next_command

    output, first = Path(arguments.output), ladder.rungs[0].original.passes[0]
    models = [output / rung.name / ("" if rung.runtime == "torch" else "onnx") for rung in ladder.rungs]
    timed = ["--batch-size", str(first.batch_size)], ["--length", str(first.tokens)]
    rows = options.data_options(arguments, str(output / MEASURED))
    command = next_command("compare", [arguments.model], *([str(one)] for one in models), *timed, *rows)
    return f"next, measure them once more, on the same texts or on others:\n{command}"


def write_rows(rows: Sequence[Any], label: str, model: Any, read_as: str | None, file: Path) -> None:
    """Write rows as they were read, classes by their names where the data have these, and where each is from."""
    from hfcompress_cli.labels import name_classes

    names = (getattr(rows[0], "class_names", None) or {}).get(label, []) if rows else []
    cells = name_classes([row[label] for row in rows], names, model, read_as, say=None)
    made = ({"source": row.place} | dict(row) | {label: cell} for row, cell in zip(rows, cells, strict=True))
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in made)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_page(ladder: Any, file: Path) -> None:
    """Write the page of a ladder, if it can be drawn."""
    try:
        file.write_text(ladder.to_html(), encoding="utf-8")
    except ImportError as error:
        file.unlink(missing_ok=True)  # that of another ladder
        print(f"{file.name} was not written: {error}", file=sys.stderr)


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder that holds anything but a ladder, which goes on if it is of the same call."""
    from hfcompress.errors import CompressionError

    held = output.is_dir() and any(one.name not in (".work", _ASIDE) for one in output.iterdir())
    if held and not (output / "ladder.json").is_file():
        kind = "so --overwrite does not replace it; " if overwrite else ""
        raise CompressionError(f"{output} exists already and holds no ladder, {kind}name another folder.")


@contextmanager
def set_aside(output: Path) -> Iterator[None]:
    """Take the ladder out of a folder; it comes back if no model of another is done at the end. Other files stay."""
    file, aside = output / "ladder.json", output / _ASIDE
    if file.is_file():
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name in (file.name, PAGE, MEASURED, *_rungs(file)):  # without that file it is known to be unfinished
            if (output / name).exists():
                (output / name).rename(aside / name)
    try:
        yield
    finally:
        put_back(output)


def put_back(output: Path) -> None:
    """Put a ladder that was set aside back into its folder, if no model of another one is done; forget it else."""
    from hfcompress.storage.model_card import CARD, is_our_card

    aside = output / _ASIDE
    if not (aside / "ladder.json").is_file():
        return
    file = output / "ladder.json"
    if not _rungs(file):
        file.unlink(missing_ok=True)
        back = {name for name in _rungs(aside / "ladder.json") if not (aside / name).exists()}  # or never moved
        for one in output.iterdir():  # a model that was saved, when the process ended before it was noted
            if re.fullmatch(r"\d+(\.\d+)?x", one.name) and one.name not in back and is_our_card(one / CARD):
                shutil.rmtree(one)
        for one in sorted(aside.iterdir(), key=lambda one: one.name == "ladder.json"):  # by which it is known, last
            one.rename(output / one.name)
    shutil.rmtree(aside, ignore_errors=True)


def _rungs(file: Path) -> list[str]:
    """Return the folders of a ladder; none if its file is not there or cannot be read."""
    try:
        return [Path(str(rung["name"])).name for rung in json.loads(file.read_text(encoding="utf-8"))["rungs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def speedups(text: str) -> list[float]:
    """Read numbers with commas between them."""
    try:
        return [float(part.strip().removesuffix("x")) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 2,4,10") from None
