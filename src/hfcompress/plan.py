"""What shape a shrunken model has, said in its config: as plain settings where they can say it, else as a plan."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any, TypeGuard, get_args

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfcompress.blocks import Kind, Undo, Units, cut, find_units
from hfcompress.errors import CompressionError

METHOD = "hfcompress"  # how config.json names who can rebuild the shapes
VERSION = 1
_NEURON_SETTINGS = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim")
_HEAD_SIZE_SETTINGS = ("head_dim", "attention_head_size")


def write_plan(model: PreTrainedModel) -> None:
    """Make the config of a model say what shape it has, so that what it saves loads again.

    Plain settings are used where the architecture has them (as many neurons in all layers, or heads where the head
    size is a setting): such a model needs nothing but transformers. What they cannot say becomes
    ``quantization_config``, the place where transformers looks for how a checkpoint must be loaded: a plan with the
    number of heads or neurons of each layer.

    Args:
        model: Changed: its config alone.

    Raises:
        CompressionError: A model built from the config would differ all the same; the config is as before then.
    """
    configs = list({id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values())
    before = [dict(vars(config)) for config in configs]
    try:
        foreign = False
        for config in configs:
            given = vars(config).get("quantization_config")
            foreign = foreign or (given is not None and not is_plan(given))
            if is_plan(given):
                del config.quantization_config
        found = {kind: units for kind in get_args(Kind) if (units := _understood(model, kind)) is not None}
        for kind, units in found.items():
            if len({one.count for one in units}) == 1:
                _use_plain_settings(model, configs, kind, units)
        built = build(model.config, type(model))
        plan = {}
        for kind, units in found.items():
            counts = [one.count for one in units]
            if counts != [one.count for one in find_units(built, kind)]:
                plan[kind] = counts
        if plan and foreign:
            raise CompressionError("The config has a quantization_config of its own, so it cannot say the shapes too.")
        if plan:
            for config in configs:
                config.quantization_config = {"quant_method": METHOD, "version": VERSION, **plan}
            built = build(model.config, type(model))
        different = difference(model, built)
        if different is not None:
            raise CompressionError(f"{different} differs from what the config of {type(model).__name__} builds.")
    except BaseException:
        for config, values in zip(configs, before, strict=True):
            vars(config).clear()
            vars(config).update(values)
        raise


def own_configs(model: nn.Module) -> Undo:
    """Give a model copies of its configs, which other models may share; return how to put them back."""
    holders = [(module, vars(module)["config"]) for module in model.modules() if "config" in vars(module)]
    copies = {id(config): copy.deepcopy(config) for _, config in holders}
    for module, config in holders:
        module.config = copies[id(config)]

    def undo() -> None:
        for module, config in holders:
            module.config = config

    return undo


def is_plan(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether this ``quantization_config`` is a plan of ours."""
    return isinstance(value, Mapping) and value.get("quant_method") == METHOD


def refusal_of_version(plan: Mapping[str, Any]) -> str:
    """Why this version cannot read a plan; empty if it can."""
    if plan.get("version") == VERSION:
        return ""
    return (
        f"The model was shrunken by a version of hfcompress that writes plans of version {plan.get('version')!r}; "
        f"this one reads version {VERSION}. Update it: pip install -U hfcompress"
    )


def apply_plan(model: nn.Module, plan: Mapping[str, Any]) -> None:
    """Give a model, built from its config, the shapes of a plan; in place.

    Args:
        model: With any weights, or on the meta device: the first heads and neurons of each layer stay.
        plan: ``{"version": 1, "heads": [a number a layer], "neurons": [a number a layer]}``; both may be missing.

    Raises:
        CompressionError: The plan is of a newer version, or does not fit the model.
    """
    if newer := refusal_of_version(plan):
        raise CompressionError(newer)
    for kind in get_args(Kind):
        if kind not in plan:
            continue
        units, counts = find_units(model, kind), plan[kind]
        fits = isinstance(counts, list) and len(counts) == len(units)
        if not fits or not all(type(n) is int and 1 <= n <= one.count for n, one in zip(counts, units, strict=True)):
            raise CompressionError(
                f"The plan of config.json leaves {kind} {counts!r}, but {type(model).__name__} has "
                f"{[one.count for one in units]}; the file does not fit the model or is damaged."
            )
        for one, count in zip(units, counts, strict=True):
            cut(model, one, range(count))


def build(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedModel:
    """What ``from_pretrained`` would build of a config once it was saved and read again, without weights."""
    with torch.device("meta"):
        made = kind(type(config).from_dict(config.to_dict()))
    plan = getattr(config, "quantization_config", None)
    if is_plan(plan):
        apply_plan(made, plan)
    return made


def difference(model: PreTrainedModel, built: PreTrainedModel) -> str | None:
    """Name the first weight whose shape differs, or what in a layer is set otherwise (GPT-2 may scale by depth)."""
    expected: dict[str, torch.Tensor] = built.state_dict()
    found: dict[str, torch.Tensor] = model.state_dict()
    for key in [*expected, *found]:
        if key not in expected or key not in found or expected[key].shape != found[key].shape:
            return key
    modules = dict(built.named_modules())
    for name, module in model.named_modules():
        in_layer = any(part.isdigit() for part in name.split("."))
        if in_layer and (name not in modules or _settings(module) != _settings(modules[name])):
            return str(name)
    return None


def _settings(module: nn.Module) -> dict[str, object]:
    plain = bool | int | float | str | None
    return {k: v for k, v in vars(module).items() if isinstance(v, plain) and k != "training" and not k.startswith("_")}


def _understood(model: nn.Module, kind: Kind) -> list[Units] | None:
    try:
        return find_units(model, kind)
    except CompressionError:
        return None


def _use_plain_settings(
    model: PreTrainedModel, configs: list[PreTrainedConfig], kind: Kind, units: list[Units]
) -> None:
    """Set what in the config makes these heads or neurons, if anything does."""
    for settings in _candidates(model, kind, units):
        with _reverted_unless_kept(configs) as keep:
            try:
                for config, (name, value) in product(configs, settings.items()):
                    setattr(config, name, value)
                if find_units(build(model.config, type(model)), kind) == units:
                    keep.append(True)
                    return
            except Exception:  # whatever an architecture's config or constructor says to these numbers
                continue


def _candidates(model: PreTrainedModel, kind: Kind, units: list[Units]) -> Iterator[dict[str, int]]:
    config, one = model.config, units[0]
    yield {}
    if kind == "neurons":
        yield from ({name: one.count} for name in _NEURON_SETTINGS if hasattr(config, name))
        return
    reader = one.readers[0]
    made = [part for part in one.parts if part.outputs]
    groups = reader.size // made[min(1, len(made) - 1)].size if len(made) > 1 else 1  # queries of a key-value head
    settings = {"num_attention_heads": one.count * groups}
    if hasattr(config, "num_key_value_heads"):
        settings["num_key_value_heads"] = one.count
    for name in _HEAD_SIZE_SETTINGS:
        yield settings | {name: reader.size // groups}


@contextmanager
def _reverted_unless_kept(configs: list[PreTrainedConfig]) -> Iterator[list[bool]]:
    before, keep = [dict(vars(config)) for config in configs], list[bool]()
    try:
        yield keep
    finally:
        if not keep:
            for config, values in zip(configs, before, strict=True):
                vars(config).clear()
                vars(config).update(values)
