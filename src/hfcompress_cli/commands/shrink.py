"""Remove the least important attention heads, intermediate neurons and layers.

The model becomes smaller and faster. Ask for fractions, or for one budget, and
name a few hundred labelled texts with --data: they rank what is removed, and
the report has the accuracy before and after. Without them, half of the FLOPs
may leave a model that guesses until it is trained (hfcompress distill).
"""

from __future__ import annotations

import argparse
import sys

from hfcompress_cli import options


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options."""
    parser = options.add_verb(verbs, "shrink", run, "remove heads, neurons and layers", __doc__)
    parser.add_argument("model", **options.MODEL)
    add = parser.add_argument_group("how much").add_argument
    add("--heads", type=float, default=0.0, metavar="F", help="fraction of the heads to remove")
    add("--neurons", type=float, default=0.0, metavar="F", help="fraction of the neurons to remove")
    add("--flops", type=float, metavar="F", help="share of the FLOPs to keep at most")
    add("--parameters", type=float, metavar="F", help="share of the parameters to keep at most")
    add("--latency", type=float, metavar="F", help="share of the time to keep at most, measured here")
    help = "layers to remove first: the N least important, or those with these indices (3, with a comma: layer 3)"
    add("--drop-layers", type=options.layers, default=0, metavar="N|I,J", help=help)
    add = parser.add_argument_group("which ones").add_argument
    help = "how heads and neurons are ranked: by the loss on --data (fisher, taylor) or by their weights alone (l1); "
    help += "auto, the default: fisher with labelled data, else l1"
    add("--importance", choices=("auto", "l1", "taylor", "fisher"), default="auto", help=help)
    add("--scope", choices=("global", "layer"), default="global", help="rank over all layers (default), or in each")
    add("--round-to", type=int, default=8, metavar="N", help="neurons stay in multiples of N (default: 8)")
    help = "remove only so that the folder loads without hfcompress: the same number in all layers, and whole layers"
    add("--plain", action="store_true", help=help)
    help = "texts to rank by, a fourth of which are held out to measure before and after; best with labels"
    options.add_data(parser, help, rows=512)
    help = "leave the weights of what stays as they were; else they are solved for with --data, so that outputs stay"
    parser.add_argument("--no-reconstruct", dest="reconstruct", action="store_false", help=help)
    parser.add_argument("--device", **options.DEVICE)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> options.Results:
    """Write the smaller model."""
    import hfcompress as hfc
    from hfcompress_cli.data import encode, read_rows
    from hfcompress_cli.models import find_device, load
    from hfcompress_cli.outputs import new_folder, save

    by_loss = arguments.importance in ("taylor", "fisher")
    if by_loss and arguments.data is None:
        raise hfc.CompressionError(f"--importance {arguments.importance} needs labelled texts: name them with --data.")
    names = ("heads", "neurons", "flops", "parameters", "latency", "drop_layers", "importance", "scope", "round_to")
    asked = {name: getattr(arguments, name) for name in (*names, "plain")}
    if not arguments.reconstruct:
        asked["reconstruct"] = False
    reads = arguments.data is not None
    with new_folder(arguments.output, arguments.overwrite) as folder:
        model, tokenizer = load(arguments.model, trained=reads, reads_texts=reads)
        if reads:
            model.to(find_device(arguments.device))
            columns, label = options.text_columns(arguments), arguments.label_column
            may_lack = not by_loss and label == options.LABEL_COLUMN
            reading = options.reading(arguments) | {"label_if_any": may_lack}
            rows = read_rows(arguments.data, columns, label, seed=0, **reading)
            if label not in rows[0]:
                print(f"{arguments.data} has no labels in a column {label!r} (see --label-column).", file=sys.stderr)
                label = None
            length, labels = arguments.max_length, options.labels(arguments)
            asked["dataset"] = encode(rows, columns, label, model, tokenizer, length, **labels)
        report = hfc.prune_structured(model, **asked)
        save(folder, model, tokenizer)
    return str(report), report.to_dict()
