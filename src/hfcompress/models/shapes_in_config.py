"""A shrunken model's shapes written into its config: as plain settings where possible, else as a plan."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.architectures import HEAD_SIZE_SETTINGS, WIDTH_SETTINGS
from hfcompress.models.heads_and_neurons import (
    KINDS,
    Group,
    Kind,
    find_groups,
    has_layout,
    neuron_group,
    queries_per_head,
)
from hfcompress.models.shape_plan import build_from_config, is_plan, make_plan
from hfcompress.models.traced_neurons import trace_neurons


def write_plan(model: PreTrainedModel) -> None:
    """Write the shapes of a model into its config, so that what it saves loads again.

    Plain settings are used where the architecture has them (as many neurons in all layers, or heads where the head
    size is a setting; other numbers in each layer where the class reads ``per_layer_config``): such a model needs
    nothing but transformers. What they cannot express becomes
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
            _use_plain_settings(model, configs, groups)
        built = build_from_config(model.config, type(model))
        shapes: dict[str, list[Any]] = {}
        for kind, groups in found.items():
            counts = [group.count for group in groups]
            if counts != [group.count for group in find_groups(built, kind)]:
                shapes[kind] = counts
        if not has_layout(model, "neurons") and _first_difference(model, built) is not None:
            traced = _find_traced(model)
            if _use_plain_settings(model, configs, traced):
                built = build_from_config(model.config, type(model))
            shapes |= {"neurons": entries} if (entries := _traced_shapes(traced, built)) else {}
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


def stated_counts(model: PreTrainedModel, groups: Sequence[Group], round_to: int) -> list[int]:
    """Return the numbers of heads or neurons, the same in all blocks, that a plain config can state.

    Args:
        model: In which the groups were found; left as it was.
        groups: All heads, or all neurons.
        round_to: Neurons stay in multiples of this.

    Raises:
        CompressionError: There is none that is smaller than what there is.
    """
    most, kind = min(group.count for group in groups), groups[0].kind
    if kind == "heads":  # whose number may have to divide something
        stated = [count for count in range(1, most + 1) if _can_state(model, groups, count)]
    else:
        stated = [*range(round_to, most, round_to), most] if _can_state(model, groups, max(1, most // 2)) else []
    if not stated or (stated == [most] and most > 1 and kind == "heads"):
        raise CompressionError(
            f"The config of {type(model).__name__} has no setting for fewer {kind} of the same size, as plain=True "
            f"needs; leave them out ({kind}=0), remove other parts or layers (drop_layers=), or leave out plain=True."
        )
    return stated


def _can_state(model: PreTrainedModel, groups: Sequence[Group], count: int) -> bool:
    configs = get_configs(model)
    with ExitStack() as undo:
        restore_configs(configs, undo)
        for config in configs:
            vars(config).pop("quantization_config", None)
        return _use_plain_settings(model, configs, [replace(group, count=count) for group in groups])


def check_plain(model: PreTrainedModel) -> None:
    """Refuse a model whose config holds a plan of its shapes."""
    plan = getattr(model.config, "quantization_config", None)
    if is_plan(plan):
        uneven = " and ".join(kind for kind in KINDS if kind in plan)
        raise CompressionError(
            f"The config of {type(model).__name__} cannot state its {uneven or 'weights'} plainly, as plain=True "
            "needs: they were removed or packed before. Begin with the model as it was then, or leave out plain=True."
        )


def per_layer_overrides(config: PreTrainedConfig) -> dict[int, dict[str, Any]]:
    """Return the settings that some layers have of their own (``per_layer_config``, from transformers 5.14 on)."""
    overrides = config.to_dict().get("per_layer_config")
    return {int(index): dict(own) for index, own in overrides.items()} if isinstance(overrides, Mapping) else {}


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


def _traced_shapes(traced: Sequence[Group], built: nn.Module) -> list[dict[str, Any]]:
    """Entries of a plan for the neurons that no record describes, where there are others than in the built model."""
    modules, different = dict(built.named_modules()), []
    with suppress(CompressionError):  # what differs is not the neurons then
        different = [group for group in traced if _traced_width(modules, group) != group.count]
    return [{"up": _ups(group), "down": group.consumers[0].module, "width": group.count} for group in different]


def _traced_width(modules: Mapping[str, nn.Module], group: Group) -> int:
    return neuron_group(modules, _ups(group), group.consumers[0].module).count


def _ups(group: Group) -> list[str]:
    return [part.module for part in group.slices if part.outputs]


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


def _find_traced(model: nn.Module) -> list[Group]:
    with suppress(CompressionError):  # what differs is not the neurons then
        return trace_neurons(model)
    return []


def _use_plain_settings(model: PreTrainedModel, configs: Sequence[PreTrainedConfig], groups: Sequence[Group]) -> bool:
    """Set what in the config makes these heads or neurons, if anything does; return whether it does."""
    for settings in _candidates(model.config, groups):
        with ExitStack() as undo, suppress(Exception):  # whatever a config or constructor raises
            restore_configs(configs, undo)
            for config, (name, value) in product(configs, settings.items()):
                setattr(config, name, value)
            if _has_groups(build_from_config(model.config, type(model)), groups):
                undo.pop_all()
                return True
    return False


def _has_groups(built: nn.Module, groups: Sequence[Group]) -> bool:
    kind = groups[0].kind
    if has_layout(built, kind):
        return find_groups(built, kind) == groups
    modules = dict(built.named_modules())
    return all(_traced_width(modules, group) == group.count for group in groups)


def _candidates(config: PreTrainedConfig, groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """Settings that may make these heads or neurons; whether they do is known when a model is built."""
    if not groups:
        return
    yield {}
    if len({group.count for group in groups}) == 1:
        yield from _settings_of(config, groups[0])
    if len(groups) == getattr(config, "num_hidden_layers", None):
        overrides = per_layer_overrides(config)
        for settings in zip(*(_settings_of(config, group) for group in groups), strict=True):
            yield {"per_layer_config": {n: overrides.get(n, {}) | own for n, own in enumerate(settings)}}


def _settings_of(config: PreTrainedConfig, group: Group) -> Iterator[dict[str, Any]]:
    """Settings that may make the heads or neurons of a block."""
    if group.kind == "neurons":
        yield from (dict.fromkeys(names, group.count) for names in WIDTH_SETTINGS if _has(config, names[0]))
        return
    consumer, queries = group.consumers[0], queries_per_head(group)
    settings = {"num_attention_heads": group.count * queries}
    if _has(config, "num_key_value_heads"):
        settings["num_key_value_heads"] = group.count
    for name in HEAD_SIZE_SETTINGS:
        yield settings | {name: consumer.size // queries}


def _has(config: PreTrainedConfig, name: str) -> bool:
    try:
        return hasattr(config, name)
    except RuntimeError:  # of transformers 5.14 and later, where layers have values of their own
        return True
