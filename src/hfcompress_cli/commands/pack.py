"""Copy a model folder with its weights packed, or unpacked (two verbs)."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from hfcompress_cli import options

_PACK = "Write the model of a folder so that its zeros take no room."
_UNPACK = """Write a packed folder as one that needs no hfcompress to load.

A model that was shrunken without --plain may still need it; a line says so.
"""


def add_parser(verbs: options.Verbs) -> None:
    """Add both verbs with their options."""
    pack = options.add_verb(verbs, "pack", run, "write a folder whose weights take less room", _PACK)
    unpack = options.add_verb(verbs, "unpack", run, "write a packed folder as a plain one", _UNPACK)
    for parser in (pack, unpack):
        parser.add_argument("model", **options.MODEL)
        parser.add_argument("output", metavar="OUT", type=options.output_name, help="folder to write")
        parser.add_argument("--overwrite", **options.OVERWRITE)


def run(arguments: argparse.Namespace) -> options.Results:
    """Write the other folder."""
    import hfcompress as hfc
    from hfcompress.progress import stage
    from hfcompress.storage.load import model_folder
    from hfcompress_cli.models import find_model
    from hfcompress_cli.outputs import check_folder, say_written, stored_bytes

    output = Path(arguments.output).expanduser()
    check_folder(output, arguments.overwrite)
    source = model_folder(find_model(arguments.model))
    if not (source / "config.json").is_file():
        raise hfc.CompressionError(f"{arguments.model} is not a model: there is no config.json in it.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* still needs hfcompress to load")  # said below, for both verbs
        with stage(f"{arguments.verb}ing"):
            (hfc.pack_folder if arguments.verb == "pack" else hfc.unpack_folder)(source, output)
    say_written(arguments.output)
    before, after = stored_bytes(source), stored_bytes(output)
    values = {"bytes_in_files": {"before": before, "after": after}, "output": arguments.output}
    return f"files of weights: {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB after", values
