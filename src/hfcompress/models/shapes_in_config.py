"""A shrunken model's shapes written into its config: as plain settings where possible, else as a plan."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.architectures import HEAD_SIZE_SETTINGS, WIDTH_SETTINGS
from hfcompress.models.heads_and_neurons import KINDS, Group, Kind, find_groups, has_layout, neuron_group
from hfcompress.models.shape_plan import build_from_config, is_plan, make_plan
from hfcompress.models.traced_neurons import trace_neurons


def write_plan(model: PreTrainedModel) -> None:
    """Write the shapes of a model into its config, so that what it saves loads again.

    Plain settings are used where the architecture has them (as many neurons in all layers, or heads where the head
    size is a setting): such a model needs nothing but transformers. What they cannot express becomes
    ``quantization_config``, the place where transformers looks for how a checkpoint must be loaded: a plan with the
    number of heads or neurons of each block, or with the modules of neurons that no record of ARCHITECTURES describes.

    Args:
        model: Changed: its config alone.

    Raises:
        CompressionError: A model built from the config would differ all the same; the config is as before then.
    """
    configs = get_configs(model)
    with ExitStack() as undo:
        restore_configs(configs, undo)
        for config in configs:
            if is_plan(vars(config).get("quantization_config")):
                del config.quantization_config
        foreign = any(vars(config).get("quantization_config") is not None for config in configs)
        found = {kind: groups for kind in KINDS if (groups := _find_known(model, kind))}
        for groups in found.values():
            if len({group.count for group in groups}) == 1:
                _use_plain_settings(model, configs, groups)
        built = build_from_config(model.config, type(model))
        shapes: dict[str, list[Any]] = {}
        for kind, groups in found.items():
            counts = [group.count for group in groups]
            if counts != [group.count for group in find_groups(built, kind)]:
                shapes[kind] = counts
        if not has_layout(model, "neurons") and _first_difference(model, built) is not None:
            shapes |= {"neurons": entries} if (entries := _traced_shapes(model, built)) else {}
        if shapes and foreign:
            raise CompressionError("The config has a quantization_config of its own, so it cannot hold the shapes too.")
        if shapes:
            for config in configs:
                config.quantization_config = make_plan(shapes)
            built = build_from_config(model.config, type(model))
        different = _first_difference(model, built)
        if different is not None:
            raise CompressionError(f"{different} differs from what the config of {type(model).__name__} builds.")
        undo.pop_all()


def own_configs(model: nn.Module, undo: ExitStack) -> None:
    """Give a model copies of its configs, which other models may share; closing ``undo`` puts them back."""
    holders = [(module, vars(module)["config"]) for module in model.modules() if "config" in vars(module)]
    copies = {id(config): copy.deepcopy(config) for _, config in holders}
    for module, config in holders:
        undo.callback(setattr, module, "config", config)
        module.config = copies[id(config)]


def restore_configs(configs: Sequence[PreTrainedConfig], undo: ExitStack) -> None:
    """Let ``undo`` give the configs back all that they hold now."""
    for config in configs:
        undo.callback(vars(config).update, dict(vars(config)))
        undo.callback(vars(config).clear)


def get_configs(model: nn.Module) -> list[PreTrainedConfig]:
    """Return the configs of a model and of the models within it."""
    return list({id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values())


def _traced_shapes(model: nn.Module, built: nn.Module) -> list[dict[str, Any]]:
    """Entries of a plan for the neurons that no record describes, where there are others than in the built model."""
    modules, entries = dict(built.named_modules()), []
    with suppress(CompressionError):  # what differs is not the neurons then
        for group in trace_neurons(model):
            up, down = [part.module for part in group.slices if part.outputs], group.consumers[0].module
            if neuron_group(modules, up, down).count != group.count:
                entries.append({"up": up, "down": down, "width": group.count})
    return entries


def _first_difference(model: PreTrainedModel, built: PreTrainedModel) -> str | None:
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
    modes = ("training", "gradient_checkpointing")
    return {k: v for k, v in vars(module).items() if _is_plain(v) and k not in modes and not k.startswith("_")}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):  # such as the window of a ModernBERT's layer, before transformers 5.3
        return all(_is_plain(one) for one in value)
    return isinstance(value, bool | int | float | str | None)


def _find_known(model: nn.Module, kind: Kind) -> list[Group]:
    with suppress(CompressionError):
        return find_groups(model, kind)
    return []


def _use_plain_settings(model: PreTrainedModel, configs: Sequence[PreTrainedConfig], groups: Sequence[Group]) -> None:
    """Set what in the config makes these heads or neurons, if anything does."""
    for settings in _candidates(model.config, groups[0]):
        with ExitStack() as undo, suppress(Exception):  # whatever a config or constructor raises
            restore_configs(configs, undo)
            for config, (name, value) in product(configs, settings.items()):
                setattr(config, name, value)
            if find_groups(build_from_config(model.config, type(model)), groups[0].kind) == groups:
                undo.pop_all()
                return


def _candidates(config: PreTrainedConfig, group: Group) -> Iterator[dict[str, int]]:
    yield {}
    if group.kind == "neurons":
        yield from (dict.fromkeys(names, group.count) for names in WIDTH_SETTINGS if hasattr(config, names[0]))
        return
    consumer = group.consumers[0]
    made = [part for part in group.slices if part.outputs]
    queries = consumer.size // made[min(1, len(made) - 1)].size if len(made) > 1 else 1  # of a key-value head
    settings = {"num_attention_heads": group.count * queries}
    if hasattr(config, "num_key_value_heads"):
        settings["num_key_value_heads"] = group.count
    for name in HEAD_SIZE_SETTINGS:
        yield settings | {name: consumer.size // queries}
