"""Export a model to a folder that ONNX Runtime or OpenVINO serves.

The folder has the model, its tokenizer, and a model card with the lines that
run it without torch, transformers or hfcompress. An int8 model is written only
if it predicts as well as the float32 model on --data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hfcompress_cli import options


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options."""
    parser = options.add_verb(verbs, "export", run, "write a folder that ONNX Runtime or OpenVINO serves", __doc__)
    parser.add_argument("model", **options.MODEL)
    help = "what serves the folder (default: onnx)"
    parser.add_argument("--format", choices=("onnx", "openvino"), default="onnx", help=help)
    add = parser.add_argument_group("int8").add_argument
    help = "quantize, unless int8 is slower on this machine; with 'always' for any machine, though it is slower here"
    add("--int8", nargs="?", const="this", choices=("this", "always"), metavar="always", help=help)
    help = "measure the scales of int8 activations on --data, or compute them while the model runs (default: what is "
    help += "fastest: measured for openvino, if such a model passes, and computed for onnx)"
    add("--static", action=argparse.BooleanOptionalAction, help=help)
    help = "accuracy that int8 may lose on --data (default: 0.01, one point)"
    add("--max-drop", type=options.fraction, metavar="F", help=help)
    help = "rounds in which torch and the runtime are timed; 0: none (default: 8)"
    parser.add_argument("--repeats", type=int, default=8, metavar="N", help=help)
    options.add_data(parser, "labelled texts that no training has seen, for --int8; their lengths are timed")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> options.Results:
    """Write the exported model."""
    import hfcompress as hfc
    from hfcompress.progress import stage
    from hfcompress_cli.data import encode, read_rows, token_limit
    from hfcompress_cli.models import load
    from hfcompress_cli.outputs import check_folder, terminal_width

    output = Path(arguments.output).expanduser()
    check_folder(output, arguments.overwrite)
    if arguments.int8 and arguments.data is None:
        raise hfc.CompressionError("--int8 needs labelled texts that no training has seen: name them with --data.")
    if arguments.int8 == "this" and not arguments.repeats:
        raise hfc.CompressionError(
            "--int8 writes float32 where int8 is slower, which --repeats 0 does not time: leave that out, or say "
            "--int8 always."
        )
    unused = [name for name in ("static", "max_drop") if getattr(arguments, name) is not None]
    if unused and not arguments.int8:
        raise hfc.CompressionError(f"--{unused[0].replace('_', '-')} is about int8: add --int8, or leave it out.")
    with stage(f"loading {arguments.model}"):
        model, tokenizer = load(arguments.model, trained=True, reads_texts=True)
    if arguments.max_length is not None:  # what is judged is what is served
        tokenizer.model_max_length = token_limit(model, tokenizer, arguments.max_length)
    dataset = None
    if arguments.data is not None:
        columns, label = options.text_columns(arguments), arguments.label_column
        rows = read_rows(arguments.data, columns, label, seed=0, **options.reading(arguments))
        dataset = encode(rows, columns, label, model, tokenizer, arguments.max_length, **options.labels(arguments))
    with stage("exporting"):
        report = hfc.export(
            model,
            output,
            processing_class=tokenizer,
            format=arguments.format,
            dtype="int8" if arguments.int8 else "float32",
            dataset=dataset,
            max_drop=0.01 if arguments.max_drop is None else arguments.max_drop,
            static=arguments.static,
            machine="this" if arguments.int8 == "this" else "any",
            repeats=arguments.repeats,
        )
    print(f"Written to {arguments.output}.", file=sys.stderr)
    return report.to_text(width=terminal_width()), report.to_dict()
