"""Models that are really smaller: attention heads, feed-forward neurons and layers removed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from numbers import Real
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_config
from hfcompress.models.heads_and_neurons import KINDS, Group, Kind, find_groups
from hfcompress.models.inputs import Batch, dummy_inputs
from hfcompress.models.layers import layer_stack, layer_stacks
from hfcompress.models.profiling import count_flops, count_parameters
from hfcompress.models.shape_plan import is_plan
from hfcompress.models.shapes_in_config import check_plain, own_configs, stated_counts, write_plan
from hfcompress.models.tensors import check_has_values
from hfcompress.models.traced_neurons import find_or_trace
from hfcompress.models.weights import PRUNABLE_DTYPES, check_no_computed_weights, check_not_quantized
from hfcompress.report.structure import BlockStructure, Reconstruction, StructureReport
from hfcompress.shrink.budget import MEASURES, Budget, BudgetError
from hfcompress.shrink.held_out import HeldOutRows, Rows, read_rows
from hfcompress.shrink.importance import IMPORTANCES, Importance, importance_scores, labelled_batches
from hfcompress.shrink.layers import are_indices, keep_layers
from hfcompress.shrink.reconstruction import copy_sharing_weights, read_calibration, reconstruct_outputs
from hfcompress.shrink.selection import Scope, select
from hfcompress.shrink.verified_removal import Removal, remove_and_verify
from hfcompress.validation import check_choice, check_count, check_fraction, is_integer

# With what share of the FLOPs "l1" still keeps up with "fisher": the study (docs/shrinking) has 0.704 and 0.714 at 0.7,
# 0.678 and 0.706 at 0.6, and 0.573 and 0.697 at 0.5, of an accuracy of 0.729.
L1_SHARE = 0.7
_Chosen = tuple[list[Group], Removal, tuple[float, float] | None]  # and the milliseconds before and after


def prune_structured(
    model: PreTrainedModel,
    *,
    heads: float = 0.0,
    neurons: float = 0.0,
    flops: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    drop_layers: int | Sequence[int] = 0,
    importance: Importance | Literal["auto"] = "auto",
    scope: Scope = "global",
    dataset: Iterable[Any] | None = None,
    batch_size: int = 16,
    reconstruct: bool | Literal["auto"] = "auto",
    round_to: int = 8,
    plain: bool = False,
) -> StructureReport:
    """Remove the least important attention heads and intermediate neurons from a classifier, in place.

    What is left is an ordinary, smaller dense model: width, embeddings and classification head stay as they were. Its
    config holds its shapes, so what it saves loads again: by plain transformers where plain settings suffice, and else
    after ``import hfcompress``. Before returning, the call compares the logits of a short text with those of the full
    model in which the same heads and neurons are masked, and undoes everything if they differ.

    Args:
        model: A sequence classifier, not wrapped, without adapters.
        heads: Fraction of the heads to remove, in [0, 1). Under grouped queries a head is a key-value head with all its
            queries; where all layers of a stack share a position bias (MPNet, T5), the same heads are removed
            from all of them.
        neurons: Fraction of the intermediate neurons to remove, in [0, 1). Architectures without a record are traced
            to find them.
        flops: Instead of fractions: what share of the model's FLOPs (of a text of 128 tokens) to keep at most, in (0,
            1). Heads and neurons are selected together so that the least importance is lost for it; where only one of
            the two has a known layout, that one.
        parameters: The same for the share of all parameters.
        latency: The same for the share of the time that a text of 128 tokens takes, measured here and now, again and
            again while the FLOPs to keep are narrowed down. A busy machine measures badly.
        drop_layers: Whole layers to remove first: their indices, or how many, the least important ones then. Where it
            is 0, only a budget with ``plain=True`` removes layers.
        importance: ``"l1"`` needs no data, ``"obs"`` a ``dataset``, labelled or not, and ``"taylor"`` and ``"fisher"``
            a labelled one (see `hfcompress.importance`). ``"obs"`` counts on the outputs being reconstructed. With
            ``"l1"`` heads and neurons cannot be weighed against each other: to meet a budget, the same fraction of both
            is removed. ``"auto"``: ``"obs"`` with a dataset; where nothing is reconstructed, ``"fisher"`` with a
            labelled one; else ``"l1"``, with a warning where there is no dataset and less than 70 % of the FLOPs are
            left, from where on the accuracy falls much faster than with data.
        scope: ``"global"``: the least important of all layers; ``"layer"``: the same fraction of each.
        dataset: Rows with ``input_ids``, ``labels`` and other inputs, as a Trainer takes them (a few hundred will do);
            or batches of tensors; both may be an iterator, which is read to its end. A fourth of the rows, 300 at
            most, the same in each call, is held out of all that changes the model: the report says the accuracy
            before and after on these, and how many predictions stay. Of fewer than 32 rows none are held out. Without
            labels, or where all are None, -1 or -100, it says the latter only.
        batch_size: Rows in a batch of theirs.
        reconstruct: Whether the weights that read what is left are solved for, so that the outputs of the layers stay
            close to the original's on the texts of ``dataset`` (labels are not needed; of more than 1,024 rows, or
            32,768 tokens, evenly spaced rows are read). ``"auto"``: where a data set is given. Weights stay as they are
            where that brings neither a projection's outputs nor the logits of held-out rows closer; zeros of a pruned
            model stay zero.
        round_to: Neurons stay in multiples of this, which is friendly to kernels; at least that many, and one head,
            stay in each layer.
        plain: Whether only such shapes are made as a plain config can state, so that the saved folder loads without
            hfcompress: as many neurons in all layers, as many heads where the config states the size of a head (Llama,
            Qwen2, T5), whole layers. A budget is met with those of heads and neurons that can be; where even the fewest
            do not meet it and ``drop_layers`` is 0, the least important layers are removed too, the fewest that bring
            it within reach; a layer that the model cannot do without stays.

    Returns:
        What was asked, and what was removed: heads, neurons, parameters, FLOPs; and what it cost, with a dataset.

    Raises:
        CompressionError: An argument is out of range, a budget cannot be met, the architecture has no known layout, or
            no plain config that was asked for; the rows of the dataset do not fit, or the model is wrapped, quantized
            or on the meta device. The model is untouched then.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> report = prune_structured(model, heads=0.5, neurons=0.5)
        >>> report.removed("heads"), report.removed("neurons"), sum(p.numel() for p in model.parameters())
        (0.5, 0.5, 1003074)
    """
    given: dict[str, Any] = {"heads": heads, "neurons": neurons, "drop_layers": drop_layers}
    given |= {"flops": flops, "parameters": parameters, "latency": latency}
    asked = {name: value for name, value in given.items() if _is_asked(value)}
    _check_arguments(asked, importance, scope, round_to, dataset)
    check_choice("reconstruct", reconstruct, ("auto", True, False))
    if reconstruct is True and dataset is None:
        raise CompressionError("reconstruct=True needs texts: pass dataset=, or leave it out.")
    check_model(model)
    if "drop_layers" in asked:
        _check_layers(model, drop_layers)
    budget = next((Budget(measure, asked[measure], plain) for measure in MEASURES if measure in asked), None)
    kinds: list[Kind] = [kind for kind in KINDS if kind in asked or budget is not None]
    find = partial(_find, model, kinds, any_kind=budget is not None)
    groups = find()
    if plain:
        groups, _ = _keep_plain(model, groups, round_to, any_kind=budget is not None)
    rows = None if dataset is None else read_rows(model, dataset, needs_labels=importance in ("taylor", "fisher"))
    dataset = None if rows is None else rows.ranking  # from here on, without the rows that are held out
    ranking: Importance = _choose_importance(rows, reconstruct) if importance == "auto" else importance
    calibration = None
    if dataset is not None and (reconstruct or ranking == "obs"):
        calibration = read_calibration(model, dataset, batch_size)
    batches = None
    if ranking == "obs" and calibration is not None:
        batches = [*calibration.fit, *calibration.held_out]
    elif ranking != "l1":
        batches = labelled_batches(model, dataset, batch_size)
    held_out = None if rows is None or not rows.held_out else HeldOutRows(model, rows, batch_size)
    try:
        before = _sizes(model)
    except Exception as error:
        raise CompressionError(f"{type(model).__name__} does not read a short text: {error}") from error

    blocks: list[BlockStructure] = []
    latency_ms: tuple[float, float] | None = None
    reconstruction: Reconstruction | None = None
    with ExitStack() as undo:
        own_configs(model, undo)  # which other models may share
        keeps_original = (calibration is not None and reconstruct) or (plain and "latency" in asked)
        twins = copy_sharing_weights(model) if keeps_original else {}
        if "drop_layers" in asked:
            kept = _layers_to_keep(model, drop_layers, ranking, batches)
            keep_layers(model, layer_stack(model)[0], kept, undo)
            groups = find()
        if groups:
            choose = partial(_choose, model, asked, budget, ranking, batches, twins.get(model, model), before)
            choose = partial(choose, scope=scope, round_to=round_to, plain=plain)
            if plain and budget is not None and "drop_layers" not in asked:
                rank = partial(_rank_layers, model, ranking, batches)
                groups, removal, latency_ms = _choose_with_fewest_dropped(model, groups, find, choose, rank, undo)
            else:
                groups, removal, latency_ms = choose(groups)
            remove_and_verify(model, removal, undo)
            blocks = [BlockStructure(g.name, g.kind, g.count, g.count - len(removal[g])) for g in groups]
            write_plan(model)
        if calibration is not None and reconstruct:
            reconstruction = reconstruct_outputs(model, twins, groups, calibration, undo)
        if plain:
            check_plain(model)
        after = _sizes(model)
        quality: dict[str, Any] = {} if rows is None else {"held_out": 0, "note": rows.note}
        if held_out is not None:
            quality = held_out.measure(model)
        ranked = bool(groups) or is_integer(asked.get("drop_layers"))
        if importance == "auto" and rows is None and ranked and after["flops"] < L1_SHARE * before["flops"]:
            _warn_of_l1(after["flops"] / before["flops"])
        undo.pop_all()
    figures = {name: (before[name], after[name]) for name in before} | quality
    return StructureReport(
        blocks=tuple(blocks),
        asked=asked,
        latency_ms=latency_ms,
        importance=ranking,
        reconstruction=reconstruction,
        **figures,
    )


def _choose_importance(rows: Rows | None, reconstruct: object) -> Importance:
    """Return how to rank by what there is."""
    if rows is None:
        return "l1"
    if reconstruct:
        return "obs"
    return "fisher" if rows.labelled else "l1"


def _warn_of_l1(share: float) -> None:
    """Warn that little is left of a model whose heads and neurons were ranked without data."""
    warnings.warn(
        f"Heads and neurons were ranked by their weights alone, as there is no dataset, and {share:.0%} of the FLOPs "
        f"are left. Below {L1_SHARE:.0%} expect a model that is of little use before it is trained: in a study "
        "(docs/shrinking) half of the FLOPs left an accuracy of 0.573 of 0.729, and 0.697 where a few hundred labelled "
        "texts ranked. Pass such rows as dataset= (--data of the command), or importance='l1' where this is meant.",
        stacklevel=3,
    )


def _sizes(model: PreTrainedModel) -> dict[str, int]:
    stacks = layer_stacks(model)
    return {
        "layers": sum(stacks.values()) if stacks else int(get_config(model).num_hidden_layers),
        "parameters": count_parameters(model),
        "flops": count_flops(model, dummy_inputs(model)),
    }


def _find(model: PreTrainedModel, kinds: Sequence[Kind], *, any_kind: bool) -> list[Group]:
    """Find heads and neurons, or those of the two that have a layout, in modules that a smaller matrix fits into."""
    groups: list[Group] = []
    unknown: list[CompressionError] = []
    for kind in kinds:
        try:
            groups += find_or_trace(model, kind)
        except CompressionError as error:
            unknown.append(error)
    if unknown and not (any_kind and groups):
        raise unknown[0]
    for name in dict.fromkeys(part.module for group in groups for part in group.slices):
        module = model.get_submodule(name)
        hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        if hooks or "weight" not in module._parameters:
            raise CompressionError(
                f"{name} has {'hooks' if hooks else 'a parametrization'}, which would not fit the smaller matrix; "
                f"remove {'them' if hooks else 'it'} first."
            )
    return groups


def _keep_plain(
    model: PreTrainedModel, groups: Sequence[Group], round_to: int, *, any_kind: bool
) -> tuple[list[Group], dict[Kind, list[int]]]:
    """Keep the heads and neurons, or those of the two, of which a plain config can state a smaller number.

    Returns:
        Them, and by kind the numbers that can be stated.
    """
    left: dict[Kind, list[int]] = {}
    unknown: list[CompressionError] = []
    for kind in dict.fromkeys(group.kind for group in groups):
        try:
            left[kind] = stated_counts(model, [group for group in groups if group.kind == kind], round_to)
        except CompressionError as error:
            unknown.append(error)
    if unknown and not (any_kind and left):
        raise unknown[0]
    return [group for group in groups if group.kind in left], left


def _choose(
    model: PreTrainedModel,
    asked: dict[str, Any],
    budget: Budget | None,
    ranking: Importance,
    batches: list[Batch] | None,
    full: PreTrainedModel,
    sizes: dict[str, int],
    groups: list[Group],
    *,
    plain: bool,
    **options: Any,
) -> _Chosen:
    """Choose heads and neurons to remove, by fractions or a share of what the full model, of these sizes, costs."""
    if plain:
        groups, options["left"] = _keep_plain(model, groups, options["round_to"], any_kind=budget is not None)
    score = partial(importance_scores, model, kind=ranking, batches=batches)
    if budget is None:
        return groups, select(groups, score(groups), asked, **options), None
    options["additive"] = ranking != "l1"
    return groups, *budget.select(model, groups, score, full, sizes.get(budget.measure, 0), **options)


def _choose_with_fewest_dropped(
    model: PreTrainedModel,
    groups: list[Group],
    find: Callable[[], list[Group]],
    choose: Callable[[list[Group]], _Chosen],
    rank: Callable[[], list[int]],
    undo: ExitStack,
) -> _Chosen:
    """Choose heads and neurons to remove, and drop layers where these do not meet the budget.

    The least important layers are dropped, the fewest, but for those that the model cannot do without.

    Raises:
        BudgetError: It cannot be met, or the layers cannot be ranked or dropped.
    """
    try:
        return choose(groups)
    except BudgetError as error:
        refusal = error
    try:
        (stack, count), ranked = layer_stack(model), rank()
    except CompressionError:
        raise refusal from None
    kept = list(range(count))
    for layer in ranked:
        fewer = [index for index in kept if index != layer]
        if not fewer:
            break
        with ExitStack() as trial:
            try:
                keep_layers(model, stack, fewer, trial)
            except CompressionError:  # such as the first of a ModernBERT
                continue
            kept = fewer
            try:
                chosen = choose(find())
            except BudgetError as error:
                refusal = error
                continue
            undo.push(trial.pop_all())
            return chosen
    raise refusal


def _layers_to_keep(
    model: PreTrainedModel, layers: Any, importance: Importance, batches: list[Batch] | None
) -> list[int]:
    count = layer_stack(model)[1]
    if is_integer(layers):
        return sorted(_rank_layers(model, importance, batches)[layers:])
    return sorted(set(range(count)) - {index % count for index in layers})


def _rank_layers(model: PreTrainedModel, importance: Importance, batches: list[Batch] | None) -> list[int]:
    """Return the indices of the layers, the least important first."""
    count = layer_stack(model)[1]
    groups = [group for kind in KINDS for group in find_groups(model, kind)]
    if len(groups) != 2 * count:
        raise CompressionError(
            f"The layers of {type(model).__name__} cannot be ranked, as they share heads or have several blocks of "
            "a kind; name them by index."
        )
    scores = [float(score.sum()) for score in importance_scores(model, groups, importance, batches)]
    return sorted(range(count), key=lambda index: scores[index] + scores[count + index])


def _check_arguments(asked: dict[str, Any], importance: str, scope: str, round_to: object, dataset: object) -> None:
    for kind in KINDS:
        check_fraction(kind, asked.get(kind, 0.0), f"the fraction of the {kind} to remove")
    for measure in MEASURES:
        check_fraction(measure, asked.get(measure, 0.5), f"the share of the model's {measure} to keep", zero=False)
    if not asked:
        raise CompressionError(
            "Nothing was asked: give heads=, neurons=, flops=, parameters=, latency= or drop_layers=."
        )
    if len(set(MEASURES) & set(asked)) + bool(set(KINDS) & set(asked)) > 1:
        raise CompressionError(
            f"{', '.join(f'{name}={value!r}' for name, value in asked.items())} exclude each other: give fractions of "
            "heads and neurons, or one budget."
        )
    if "latency" in asked and "drop_layers" in asked:
        raise CompressionError(
            f"latency={asked['latency']!r} is measured beside the full model; drop layers in a call before."
        )
    check_choice("importance", importance, ("auto", *IMPORTANCES))
    check_choice("scope", scope, get_args(Scope))
    check_count("round_to", round_to)
    if importance not in ("auto", "l1") and dataset is None:
        needed = "data" if importance == "obs" else "labelled data"
        raise CompressionError(f"importance={importance!r} needs {needed}: pass dataset=, or choose 'l1'.")


def check_model(model: object) -> None:
    """Refuse what cannot be shrunk: wrapped, quantized or sharded models, and weights without values."""
    if not isinstance(model, PreTrainedModel):
        raise CompressionError(
            f"The model must be a transformers PreTrainedModel, not {type(model).__name__}; pass the model below "
            "wrappers, adapters merged (PEFT: merge_and_unload())."
        )
    plan = getattr(model.config, "quantization_config", None)
    if plan is not None and not is_plan(plan):
        raise CompressionError(
            f"The config has a quantization_config of its own ({type(plan).__name__}); shrink the model, then quantize."
        )
    if getattr(model.config, "attention_type", None) == "block_sparse":
        raise CompressionError(
            "attention_type='block_sparse' turns to another attention for short texts; set "
            "model.set_attention_type('original_full') first."
        )
    check_not_quantized(model, "shrunken")
    check_no_computed_weights(model, "shrunken")
    check_has_values(model.named_parameters())
    for key, parameter in model.named_parameters():
        if parameter.dtype not in PRUNABLE_DTYPES or type(parameter.data) is not torch.Tensor:
            raise CompressionError(
                f"{key} is quantized or sharded ({type(parameter.data).__name__}, {parameter.dtype}); shrink the "
                "model first, in a floating-point dtype and on one device."
            )


def _is_asked(value: object) -> bool:
    if isinstance(value, Sequence):
        return len(value) > 0
    return value is not None and not (isinstance(value, Real) and value == 0)


def _check_layers(model: PreTrainedModel, layers: Any) -> None:
    count = layer_stack(model)[1]
    if is_integer(layers):
        valid = 0 < layers < count
    else:
        valid = are_indices(layers, count) and len({index % count for index in layers}) < count
    if not valid:
        raise CompressionError(
            f"drop_layers={layers!r} must be a number from 1 to {count - 1}, or indices of the model's {count} layers, "
            "of which at least one must stay."
        )
