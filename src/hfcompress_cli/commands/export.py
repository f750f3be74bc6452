"""Export a model to a folder that ONNX Runtime serves.

The folder has the model, its tokenizer, and a model card with the lines that
run it without torch, transformers or hfcompress.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hfcompress_cli import options


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options."""
    parser = options.add_verb(verbs, "export", run, "write a folder that ONNX Runtime serves", __doc__)
    parser.add_argument("model", **options.MODEL)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> options.Results:
    """Write the exported model."""
    import hfcompress as hfc
    from hfcompress_cli.models import load
    from hfcompress_cli.outputs import check_folder

    output = Path(arguments.output).expanduser()
    check_folder(output, arguments.overwrite)
    model, tokenizer = load(arguments.model, trained=True, reads_texts=True)
    report = hfc.export(model, output, processing_class=tokenizer)
    print(f"Written to {arguments.output}.", file=sys.stderr)
    return report.to_text(), report.to_dict()
