"""Report a model's size, and how many of its weights are zero."""

from __future__ import annotations

import argparse
from pathlib import Path

from hfcompress_cli import options


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options."""
    summary = "report a model's size, and how many of its weights are zero"
    parser = options.add_verb(verbs, "report", run, summary, __doc__)
    parser.add_argument("model", **options.MODEL)
    options.add_matrices(parser)


def run(arguments: argparse.Namespace) -> options.Results:
    """Count parameters, bytes and zeros."""
    import hfcompress as hfc
    from hfcompress.progress import stage
    from hfcompress_cli.models import load
    from hfcompress_cli.outputs import stored_bytes, to_lines

    with stage(f"loading {arguments.model}"):
        model, _ = load(arguments.model)
    sparsity = hfc.sparsity_report(model, include=arguments.include, exclude=arguments.exclude)
    size = hfc.measure(model)
    folder = Path(arguments.model).expanduser()
    stored = stored_bytes(folder) if folder.is_dir() else None
    values = {"model": arguments.model, "class": type(model).__name__}
    in_files = "" if stored is None else f", in files {stored / 1e6:,.1f} MB"
    lines = {"parameters": f"{size.parameters:,}", "weights": f"{size.bytes / 1e6:,.1f} MB{in_files}"}
    text = to_lines(sparsity, **values, **lines)
    sizes = {"parameters": size.parameters, "bytes": size.bytes, "bytes_in_files": stored}
    return f"{text}\n\n{sparsity}" if arguments.verbose else text, values | sizes | {"sparsity": sparsity.to_dict()}
