"""Report what a model is made of, and how many of its weights are zero.

Layers, heads, neurons, parameters, FLOPs and bytes; what the plan in its config
says, and whether it loads without hfcompress. Of an exported model and of an
adapter, what their folders tell.
"""

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
    """Count and tell."""
    import hfcompress as hfc
    from hfcompress.models.new_head import new_head
    from hfcompress.progress import stage
    from hfcompress_cli.contents import describe_adapter, describe_exported, describe_loading, describe_shape
    from hfcompress_cli.models import find_model, load
    from hfcompress_cli.outputs import as_lines, stored_bytes, to_lines

    folder = Path(arguments.model).expanduser()
    if (found := describe_exported(folder) or describe_adapter(folder)) is not None:
        if arguments.include or arguments.exclude:
            option = "--include" if arguments.include else "--exclude"
            raise hfc.CompressionError(
                f"{option} is about weight matrices, and {arguments.model} holds no model of torch."
            )
        lines, values = found
        return as_lines({"model": arguments.model} | lines), {"model": arguments.model} | values
    with stage(f"loading {arguments.model}"):
        model, _ = load(arguments.model, needs_names=False)
    sparsity, reason = None, ""
    try:
        sparsity = hfc.sparsity_report(model, include=arguments.include, exclude=arguments.exclude)
    except hfc.CompressionError as error:  # such as a quantized model, of which there is more to tell
        if arguments.include or arguments.exclude:
            raise
        reason = str(error)
    size = hfc.measure(model)
    stored = stored_bytes(folder) if folder.is_dir() else None
    shape_lines, shape = describe_shape(model)
    loading_lines, loading = describe_loading(find_model(arguments.model))
    head = new_head(model)
    in_files = "" if stored is None else f", in files {stored / 1e6:,.1f} MB"
    lines = {"model": arguments.model, "class": type(model).__name__}
    lines |= {"parameters": f"{size.parameters:,}", "weights": f"{size.bytes / 1e6:,.1f} MB{in_files}"}
    lines |= shape_lines | loading_lines
    lines["head"] = f"new, not trained: {', '.join(head)}" if head else "trained, or nothing says otherwise"
    text = to_lines(sparsity, **lines) if sparsity is not None else as_lines(lines | {"prunable": f"none: {reason}"})
    values = {"model": arguments.model, "class": type(model).__name__, "kind": "model"}
    values |= {"parameters": size.parameters, "bytes": size.bytes, "bytes_in_files": stored} | shape | loading
    values |= {"new_head": head, "sparsity": None if sparsity is None else sparsity.to_dict()}
    return f"{text}\n\n{sparsity}" if arguments.verbose and sparsity is not None else text, values
