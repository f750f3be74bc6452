"""What a folder holds, or a model of the hub: a classifier, packed or not; an exported one; or a PEFT adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hfcompress.deploy.folder import check_files, is_exported, read_model_config, read_record
from hfcompress.deploy.formats import FORMATS
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_config, unwrap
from hfcompress.models.heads_and_neurons import KINDS, Group, find_groups, queries_per_head
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.layers import layer_stacks
from hfcompress.models.profiling import count_flops
from hfcompress.models.shape_plan import is_plan
from hfcompress.storage.layout import weight_files
from hfcompress.storage.safetensors_file import is_packed, read_shapes

_ADAPTER = "adapter_config.json"
Lines = dict[str, str]
Values = dict[str, Any]


def describe_shape(model: PreTrainedModel) -> tuple[Lines, Values]:
    """Count layers, heads, neurons and FLOPs; None of what the architecture has no record of, or cannot be counted."""
    inner = unwrap(model)
    stacks, config = layer_stacks(inner), get_config(inner)
    layers = sum(stacks.values()) or getattr(config, "num_hidden_layers", None)
    heads, neurons = (_find(inner, kind) for kind in KINDS)
    queries = [group.count * queries_per_head(group) for group in heads] or None
    shared = [group.count for group in heads] if queries and queries != [group.count for group in heads] else None
    widths = [group.count for group in neurons] or None
    text, flops = dummy_inputs(inner), None
    with suppress(Exception):  # whatever a config that does not fit leads to; the other figures are still reported
        flops = count_flops(inner, text)
    tokens = text["input_ids"].shape[1]
    lines = {"layers": "unknown" if layers is None else str(layers)}
    if len(stacks) > 1:
        lines["layers"] += f" ({', '.join(f'{count} in {name}' for name, count in stacks.items())})"
    lines["heads"] = _by_layer(queries) + ("" if shared is None else f"; of keys and values {_by_layer(shared)}")
    lines["neurons"] = _by_layer(widths)
    lines["FLOPs"] = "not counted" if flops is None else f"{flops:,} for a text of {tokens} tokens"
    values = {"layers": layers, "heads": queries, "key_value_heads": shared, "neurons": widths}
    return lines, values | {"flops": flops, "tokens": tokens}


def describe_loading(source: str) -> tuple[Lines, Values]:
    """Say what the plan in the config says, whether weights are packed, and whether the model loads without hfcompress.

    Args:
        source: A folder, or an id of the hub.
    """
    config, _ = PreTrainedConfig.get_config_dict(source)
    method = config.get("quantization_config")
    plan = method if is_plan(method) else None
    shapes = [kind for kind in KINDS if plan is not None and kind in plan]
    packed = plan is not None and not shapes  # nothing else asks for a plan then
    if Path(source).is_dir():
        with suppress(CompressionError):  # weights in old files
            packed = any(map(is_packed, weight_files(Path(source))))
    lines = {"plan": "none: a plain config states the shapes"}
    if shapes and plan is not None:
        version = plan.get("version")
        lines["plan"] = f"{' and '.join(shapes)} of each layer, which no plain config states (version {version})"
    elif isinstance(method, Mapping) and plan is None:
        lines["plan"] = f"none; quantized by {method.get('quant_method', 'a method without a name')}"
    lines["packed"] = "yes, zeros take no room" if packed else "no"
    why = [*(["it has a plan"] if shapes else []), *(["its weights are packed"] if packed else [])]
    lines["loads"] = f"after import hfcompress, because {' and '.join(why)}" if why else "without hfcompress"
    return lines, {"plan": dict(plan) if plan is not None else None, "packed": packed, "needs_hfcompress": bool(why)}


def describe_exported(folder: Path) -> tuple[Lines, Values] | None:
    """Return what is known of an exported model, from the record of the export; None if the folder holds none."""
    if not is_exported(folder):
        return None
    record = read_record(folder)
    check_files(folder, record)
    read_model_config(folder, record)
    before, after = record.get("bytes") or (None, None)
    form = FORMATS.get(record.get("format", "onnx"))
    runtime = "its runtime" if form is None else form.runtime
    bits = f", weights of {record['weight_bits']} bits" if record.get("weight_bits") else ""
    config = record.get("config") or {}
    values = {name: record.get(name) for name in ("format", "dtype", "weight_bits", "max_tokens", "difference", "gate")}
    values |= {"inputs": list(record["inputs"]), "bytes_in_files": after, "bytes_before": before}
    values |= {"class": config.get("model_type"), "outputs": config.get("outputs"), "versions": record.get("versions")}
    lines = {"class": f"an exported {config.get('model_type')} with {config.get('outputs')} outputs"}
    lines["format"] = f"{record.get('format')}, {record.get('dtype')}{bits}"
    lines["inputs"] = ", ".join(record["inputs"])
    lines["reads"] = "texts of any length" if values["max_tokens"] is None else f"{values['max_tokens']} tokens at most"
    if before and after:
        lines["weights"] = f"in files {after / 1e6:,.1f} MB, of {before / 1e6:,.1f} MB before"
    if values["difference"] is not None:
        lines["logits"] = f"within {values['difference']:.1g} of the model's, in float32"
    for number, sentence in enumerate(record.get("verdict") or ()):
        lines["measured" if not number else " " * number] = sentence
    lines["loads"] = f"without hfcompress, in {runtime}"
    return lines, {"kind": "exported"} | values | {"needs_hfcompress": False}


def describe_adapter(folder: Path) -> tuple[Lines, Values] | None:
    """Return what is known of a PEFT adapter, from its own files; None if the folder holds none.

    Raises:
        CompressionError: Its files cannot be read.
    """
    path, weights = folder / _ADAPTER, folder / "adapter_model.safetensors"
    if not path.is_file():
        return None
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CompressionError(f"{path} cannot be read: {error}.") from error
    shapes = read_shapes(weights) if weights.is_file() else {}
    count = sum(prod(shape) for shape in shapes.values()) if shapes else None
    stored = weights.stat().st_size if weights.is_file() else None
    base, rank = config.get("base_model_name_or_path"), config.get("r")
    modules = config.get("target_modules")
    modules = sorted(modules) if isinstance(modules, list) else modules
    lines = {"class": f"a PEFT adapter ({config.get('peft_type')}), not a model", "base": str(base)}
    lines["rank"] = str(rank)
    lines["modules"] = ", ".join(modules) if isinstance(modules, list) else str(modules)
    lines["parameters"] = "unknown" if count is None else f"{count:,}"
    lines["weights"] = "unknown" if stored is None else f"in files {stored / 1e6:,.1f} MB"
    lines["loads"] = "with peft, on its base; merge it before other verbs: merge_and_unload(), then save_pretrained()"
    values = {"kind": "adapter", "class": config.get("peft_type"), "base": base, "rank": rank, "modules": modules}
    return lines, values | {"parameters": count, "bytes_in_files": stored, "needs_hfcompress": False}


def _find(model: Any, kind: Any) -> Sequence[Group]:
    with suppress(CompressionError):  # no known layout
        return find_groups(model, kind)
    return []


def _by_layer(counts: Sequence[int] | None) -> str:
    if not counts:
        return "unknown: the architecture has no record of them"
    if len(set(counts)) == 1:
        return f"{counts[0]:,} in each of {len(counts)} layers" if len(counts) > 1 else f"{counts[0]:,}"
    return f"{', '.join(map(str, counts))}: {sum(counts):,} in all"
