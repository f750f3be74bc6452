"""The plan of a shrunken model's shapes, as it stands in ``config.json``, and models built by it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.heads_and_neurons import KINDS, Group, Kind, find_groups, neuron_group
from hfcompress.models.labels import readable_maps
from hfcompress.models.surgery import remove

METHOD = "hfcompress"  # how config.json names who can rebuild the shapes
_VERSIONS = (1, 2)  # of plans; 2 where neurons are named by their modules


class Plan(dict[str, Any]):
    """A plan as it stands in a config: a dict, with what others ask a ``quantization_config`` for (OpenVINO does)."""

    @property
    def quant_method(self) -> str:
        """Who can rebuild the shapes."""
        return str(self["quant_method"])

    def to_dict(self) -> dict[str, Any]:
        """Return it as a plain dict."""
        return dict(self)


def is_plan(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether this ``quantization_config`` is a plan of ours."""
    return isinstance(value, Mapping) and value.get("quant_method") == METHOD


def make_plan(shapes: Mapping[str, Any]) -> Plan:
    """Make a plan, of the lowest version that can hold these shapes.

    Args:
        shapes: ``heads`` and ``neurons``; other keys are left out.

    Example:
        >>> make_plan({"heads": [2, 3]})
        {'quant_method': 'hfcompress', 'version': 1, 'heads': [2, 3]}
    """
    shapes = {kind: shapes[kind] for kind in KINDS if kind in shapes}
    neurons = shapes.get("neurons")
    named = isinstance(neurons, list) and any(isinstance(entry, Mapping) for entry in neurons)
    return Plan({"quant_method": METHOD, "version": _VERSIONS[named], **shapes})


def check_version(plan: Mapping[str, Any]) -> None:
    """Raise a `CompressionError` if a plan is of a newer version."""
    if plan.get("version") not in _VERSIONS:
        raise CompressionError(
            f"The model was shrunken by an hfcompress that writes plans of version {plan.get('version')!r:.200}; this "
            f"one reads version {' and '.join(map(str, _VERSIONS))}. Update it: pip install -U hfcompress"
        )


def apply_plan(model: nn.Module, plan: Mapping[str, Any]) -> None:
    """Give a model, built from its config, the shapes of a plan; in place.

    Args:
        model: With any weights, or on the meta device: the first heads and neurons of each block stay.
        plan: ``{"version": 1, "heads": [a number a block], "neurons": [a number a block]}``; both may be missing. In
            version 2 ``neurons`` may list ``{"up": [names], "down": name, "width": number}``, names being those of
            ``nn.Linear`` modules, which are only ever narrowed.

    Raises:
        CompressionError: The plan is of a newer version, or does not fit the model.
    """
    check_version(plan)
    for kind in KINDS:
        if kind in plan:
            groups, counts = _planned(model, kind, plan[kind])
            fits = len(groups) == len(counts) and all(
                type(count) is int and 1 <= count <= group.count for group, count in zip(groups, counts, strict=True)
            )
            if not fits:
                raise CompressionError(
                    f"The plan of config.json leaves {kind} {str(plan[kind])[:200]}, but {type(model).__name__} has "
                    f"{[group.count for group in groups]}; the file does not fit the model or is damaged."
                )
            for group, count in zip(groups, counts, strict=True):
                remove(model, group, range(count), ExitStack())


def check_builds_from_config(model: PreTrainedModel) -> None:
    """Refuse a model whose class takes more than a config, of which alone a shrunken model is built."""
    others = list(inspect.signature(type(model).__init__).parameters.values())[2:]  # without self and the config
    any_number = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [one.name for one in others if one.default is one.empty and one.kind not in any_number]
    if needed:
        raise CompressionError(
            f"{type(model).__name__} cannot be built from its config alone, as what was shrunken is when it is loaded: "
            f"its __init__ also needs {', '.join(needed)}; read that from the config there, or give it a default."
        )


def build_from_config(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedModel:
    """Build what ``from_pretrained`` would build of a config once it was saved and read again, without weights."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        made = kind(type(config).from_dict(config.to_dict() | readable_maps(config)))
    plan = getattr(config, "quantization_config", None)
    if is_plan(plan):
        apply_plan(made, plan)
    return made


def _planned(model: nn.Module, kind: Kind, entries: Any) -> tuple[Sequence[Group], list[Any]]:
    """The groups that a plan is about, and how many of each it leaves."""
    if not isinstance(entries, list) or not any(isinstance(entry, Mapping) for entry in entries):
        return find_groups(model, kind), entries if isinstance(entries, list) else []
    modules = dict(model.named_modules())
    tied = {name for names in getattr(model, "all_tied_weights_keys", {}).items() for name in names}
    groups: list[Group] = []
    narrowed: set[tuple[str, bool]] = set()
    try:
        for entry in entries:
            up, down = entry["up"], entry["down"]
            ends = [*((name, True) for name in up), (down, False)]
            if kind != "neurons" or len({*ends} - narrowed) < len(ends) or down in up or not isinstance(up, list):
                raise TypeError(f"{kind} in no list of modules, or in the same modules twice")
            narrowed.update(ends)
            for name, _ in ends:
                if not isinstance(modules[name], nn.Linear) or f"{name}.weight" in tied:
                    raise TypeError(f"{name!r} is not an nn.Linear with a weight of its own")
            groups.append(neuron_group(modules, up, down))
        return groups, [entry["width"] for entry in entries]
    except (KeyError, TypeError, IndexError, CompressionError) as error:
        raise CompressionError(
            f"The plan of config.json names {kind} that {type(model).__name__} does not have ({error!r:.200}); the "
            "file does not fit the model or is damaged."
        ) from error
