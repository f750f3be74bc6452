"""Measure several models side by side, in turn.

The table has parameters, size and, with data, speed and accuracy with its 95 %
interval. Ratios are to the first model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hfcompress_cli import options


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options."""
    parser = options.add_verb(verbs, "compare", run, "measure several models side by side", __doc__)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="folders, exported ones too, or hub ids")
    add("--markdown", action="store_true", help="print a Markdown table")
    add("--html", metavar="FILE", help="also write a page with plots")
    add("--overwrite", action="store_true", help="replace FILE if it exists")
    add("--batch-size", type=_numbers, default=16, metavar="N[,N]", help="texts timed together (default: 16)")
    add("--length", type=_numbers, metavar="N[,N]", help="tokens of dummy texts that are timed instead of --data")
    add("--repeats", type=int, default=20, metavar="N", help="rounds of timing (default: 20)")
    options.add_data(parser, "labelled texts, for accuracy and speed")
    parser.add_argument("--device", **options.DEVICE)


def run(arguments: argparse.Namespace) -> options.Results:
    """Measure, and write the page if one is asked for."""
    import hfcompress as hfc
    from hfcompress.report.plots import pyplot
    from hfcompress_cli.data import check_labels, encode, read_rows
    from hfcompress_cli.models import find_device, load, load_exported
    from hfcompress_cli.outputs import check_file, write_file

    names = arguments.models
    if len(set(names)) < len(names):
        raise hfc.CompressionError(f"{', '.join(names)} name a model twice; name each once.")
    page = None if arguments.html is None else Path(arguments.html).expanduser()
    if page is not None:
        check_file(page, arguments.overwrite)
        pyplot()  # that matplotlib is missing is reported before anything is measured
    device = find_device(arguments.device)
    columns, label, reading = options.text_columns(arguments), arguments.label_column, options.reading(arguments)
    rows = None if arguments.data is None else read_rows(arguments.data, columns, label, seed=0, **reading)
    models, inputs, tokenizers = {}, {}, {}
    for name in names:
        exported = load_exported(name)
        model, tokenizer = exported or load(name, trained=rows is not None, reads_texts=rows is not None)
        tokenizers[name] = tokenizer  # with it GPT-2 reads batches, even of dummy texts
        if rows is not None:
            length, labels = arguments.max_length, options.labels(arguments)
            inputs[name] = encode(rows, columns, label, model, tokenizer, length, **labels)
        models[name] = model if exported else model.to(device)
    if rows is not None:
        check_labels(rows, label, models, **options.labels(arguments))
    timing = {"batch_size": arguments.batch_size, "length": arguments.length, "repeats": arguments.repeats}
    found = hfc.compare(models, inputs or None, processing_class=tokenizers, **timing)
    if page is not None:
        write_file(page, found.to_html(), arguments.overwrite)
    several = any(len(one.passes) > 1 for one in found.rows.values())  # the short table shows one batch alone
    return (found.to_markdown if arguments.markdown else found.to_text)(verbose=several), found.to_dict()


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor numbers such as 64,128") from None
