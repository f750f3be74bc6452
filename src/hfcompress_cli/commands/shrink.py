"""Remove the least important heads, neurons and layers, and unused tokens.

Without heads, neurons and layers the model becomes smaller and faster: ask for
fractions, or for one budget, and name a few hundred labelled texts with --data:
they rank what is removed, and the report has the accuracy before and after.
Without them, half of the FLOPs may leave a model that guesses until it is
trained (hfcompress distill). Without the tokens that your texts do not use
(--vocabulary) it becomes smaller alone, and those texts get the same results.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hfcompress_cli import options
from hfcompress_cli.messages import name_options

# Settings and their defaults: of heads, neurons and layers, and of the vocabulary.
_AMOUNTS = {"heads": 0.0, "neurons": 0.0, "flops": None, "parameters": None, "latency": None, "drop_layers": None}
_VOCABULARY = {"min_count": 1, "keep": [], "alphabet": "all"}
RANKED_BY = 384  # rows at most


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options."""
    parser = options.add_verb(verbs, "shrink", run, "remove heads, neurons, layers and tokens", __doc__)
    parser.add_argument("model", **options.MODEL)
    add = parser.add_argument_group("how much").add_argument
    add("--heads", type=options.fraction, default=0.0, metavar="F", help="share of the heads to remove, as 0.5 or 50%%")
    add(
        "--neurons",
        type=options.fraction,
        default=0.0,
        metavar="F",
        help="share of the neurons to remove, as 0.5 or 50%%",
    )
    add("--flops", type=options.fraction, metavar="F", help="share of the FLOPs to keep at most")
    add("--parameters", type=options.fraction, metavar="F", help="share of the parameters to keep at most")
    add("--latency", type=options.fraction, metavar="F", help="share of the time to keep at most, measured here")
    help = "layers to remove first: the N least important, or those with these indices (3, with a comma: layer 3)"
    add("--drop-layers", type=options.layers, metavar="N|I,J", help=help)
    add = parser.add_argument_group("which ones").add_argument
    help = "how heads and neurons are ranked: by the logits on --data (obs), by the loss on it (fisher, taylor), or by "
    help += "their weights alone (l1); auto, the default: obs with data, else l1"
    add("--importance", choices=("auto", "l1", "taylor", "fisher", "obs"), default="auto", help=help)
    add("--scope", choices=("global", "layer"), default="global", help="rank over all layers (default), or in each")
    add("--round-to", type=int, default=8, metavar="N", help="neurons stay in multiples of N (default: 8)")
    help = "make only shapes that load without hfcompress: the same number in all layers, or fewer layers"
    add("--plain", action="store_true", help=help)
    _add_vocabulary(parser)
    help = "texts to rank by, best with labels; some are held out to measure before and after"
    options.add_held_out(options.add_data(parser, help, rows=RANKED_BY))
    help = "leave the weights of what stays as they were; else they are solved for with --data, so that outputs stay"
    parser.add_argument("--no-reconstruct", dest="reconstruct", action="store_false", help=help)
    parser.add_argument("--device", **options.DEVICE)
    options.add_output(parser)


def _add_vocabulary(parser: argparse.ArgumentParser) -> None:
    """Add which tokens are kept."""
    about = "Tokens are removed first; shares to keep are of the model without them."
    add = parser.add_argument_group("vocabulary", about).add_argument
    help = "files or data sets, read as --data but all rows; the tokens of their texts are kept, others removed"
    add("--vocabulary", nargs="+", action="extend", metavar="DATA", help=help)
    help = "how often a token must be in the texts to be kept (default: %(default)s)"
    add("--min-count", type=int, default=_VOCABULARY["min_count"], metavar="N", help=help)
    add("--keep", nargs="+", action="extend", default=[], metavar="TOKEN", help="tokens to keep as well")
    help = "characters and bytes to keep: all (default), so that other texts can be read too, or those used"
    add("--alphabet", choices=("all", "used"), default=_VOCABULARY["alphabet"], help=help)


def run(arguments: argparse.Namespace) -> options.Results:
    """Write the smaller model."""
    import hfcompress as hfc
    from hfcompress.models.new_head import new_head
    from hfcompress.progress import stage
    from hfcompress_cli.models import find_device, load
    from hfcompress_cli.outputs import new_folder, save, seen_before, terminal_width

    by_loss = arguments.importance in ("taylor", "fisher")
    if arguments.importance not in ("auto", "l1") and arguments.data is None:
        needed = "labelled texts" if by_loss else "texts"
        raise hfc.CompressionError(f"--importance {arguments.importance} needs {needed}: name them with --data.")
    if arguments.eval_data is not None and arguments.data is None:
        raise hfc.CompressionError("--eval-data names the texts to measure with; name those to rank by with --data.")
    if arguments.data is not None:
        options.check_measured(arguments)
    has_vocabulary = arguments.vocabulary is not None
    if not has_vocabulary and (unused := _changed(arguments, _VOCABULARY)):
        raise hfc.CompressionError(f"--{unused[0].replace('_', '-')} needs texts whose tokens are kept: --vocabulary.")
    asked = {name: getattr(arguments, name) for name in (*_AMOUNTS, "importance", "scope", "round_to", "plain")}
    if not arguments.reconstruct:
        asked["reconstruct"] = False
    reads, has_labels = arguments.data is not None, True
    reports: dict[str, Any] = {}
    with new_folder(arguments.output, arguments.overwrite) as folder:
        with stage(f"loading {arguments.model}"):
            model, tokenizer = load(arguments.model, trained=reads, reads_texts=reads or has_vocabulary)
        if has_vocabulary:
            reports["vocabulary"] = _prune_vocabulary(model, tokenizer, arguments)
            tokenizer = reports["vocabulary"].tokenizer
        if reads or arguments.latency is not None:
            model.to(find_device(arguments.device))
        if reads:
            has_labels = _read_data(arguments, asked, model, tokenizer, needs_labels=by_loss)
        if not has_vocabulary or arguments.data is not None or _changed(arguments, _AMOUNTS):
            reports["structure"] = hfc.prune_structured(model, **asked)
        save(folder, model, tokenizer)
    values = {"vocabulary": reports["vocabulary"].to_dict()} if has_vocabulary else {}
    if "structure" in reports:
        values |= reports["structure"].to_dict()
    width = terminal_width()
    text = "\n\n".join(name_options(report.to_text(width=width), arguments) for report in reports.values())
    measured = "structure" in reports and has_labels and reports["structure"].held_out
    if measured and arguments.eval_data is None:
        text += f"\n{seen_before('the model')}"
    if "structure" not in reports:  # the texts get the same results as before
        return text, values
    return f"{text}\n\n{_following(arguments, bool(new_head(model)), has_labels)}", values


def _read_data(
    arguments: argparse.Namespace, asked: dict[str, Any], model: Any, tokenizer: Any, *, needs_labels: bool
) -> bool:
    """Encode the rows that rank and those that are measured with; return whether the first have labels."""
    from hfcompress.progress import stage
    from hfcompress.shrink.held_out import LEAST_ROWS, MOST
    from hfcompress_cli.data import draw, encode, read_rows
    from hfcompress_cli.held_out import hold_out

    columns, wanted = options.text_columns(arguments), arguments.label_column
    reading = options.reading(arguments) | {"rows": None}
    reading["label_if_any"] = not needs_labels and wanted == options.LABEL_COLUMN

    def read(source: str) -> tuple[list[Any], str | None]:
        rows = read_rows(source, columns, wanted, seed=options.SEED, **reading)
        if wanted in rows[0]:
            return rows, wanted
        print(f"{source} has no labels in a column {wanted!r} (see --label-column).", file=sys.stderr)
        return rows, None

    table, label = read(arguments.data)
    rows, others, table_of_others, label_of_others = table, list[Any](), table, label
    if arguments.eval_data is not None:
        others, label_of_others = read(arguments.eval_data)
        table_of_others = others
    elif len(table) >= LEAST_ROWS:
        rows, others = hold_out(table, arguments.held_out, options.SEED, label)
    length, labels = arguments.max_length, options.labels(arguments)
    with stage("encoding the texts"):
        ranked_by, measured_with = draw(rows, arguments.rows, options.SEED), draw(others, MOST, options.SEED)
        asked["dataset"] = encode(ranked_by, columns, label, model, tokenizer, length, table=table, **labels)
        if others:
            how = labels | {"table": table_of_others}
            asked["eval_dataset"] = encode(measured_with, columns, label_of_others, model, tokenizer, length, **how)
    return label is not None


def _following(arguments: argparse.Namespace, is_new: bool, has_labels: bool) -> str:
    """Return the command that trains the smaller model, and what it is for."""
    from hfcompress_cli.outputs import free_name, next_command

    if is_new:  # no teacher yet
        data, trained = options.data_options(arguments), ["-o", free_name(arguments.output, "trained")]
        return f"next, train it:\n{next_command('finetune', [arguments.output], *data, trained)}"
    data = options.data_options(arguments) + ([] if has_labels else [["--alpha", "1"]])
    output = ["-o", free_name(arguments.output, "distilled")]
    command = next_command("distill", [arguments.model], ["--student", arguments.output], *data, output)
    return f"next, let it learn from the original:\n{command}"


def _prune_vocabulary(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Any:
    """Remove the tokens that the texts of --vocabulary do not use; return the report."""
    import hfcompress as hfc
    from hfcompress_cli.data import read_texts

    columns = options.text_columns(arguments, labelled=False)
    texts = read_texts(arguments.vocabulary, columns, **options.table(arguments))
    return hfc.prune_vocabulary(model, tokenizer, texts, **{name: getattr(arguments, name) for name in _VOCABULARY})


def _changed(arguments: argparse.Namespace, defaults: dict[str, Any]) -> list[str]:
    """Return the settings that are not as by default."""
    return [name for name, default in defaults.items() if getattr(arguments, name) != default]
