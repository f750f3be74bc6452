"""Models that are really smaller: attention heads, feed-forward neurons and layers removed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_config
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.layers import layer_stacks
from hfcompress.models.new_head import update_mark
from hfcompress.models.profiling import count_flops, count_parameters
from hfcompress.models.shapes_in_config import check_plain, own_configs, write_plan
from hfcompress.report.structure import BlockStructure, Reconstruction, StructureReport
from hfcompress.shrink import choice
from hfcompress.shrink.budget import Budget
from hfcompress.shrink.data import read_data
from hfcompress.shrink.importance import Importance
from hfcompress.shrink.reconstruction import copy_sharing_weights, reconstruct_outputs
from hfcompress.shrink.request import Request, check_request, is_asked
from hfcompress.shrink.selection import Scope
from hfcompress.shrink.verified_removal import check_finite, remove_and_verify
from hfcompress.validation import is_integer

# Below which share of the FLOPs "l1" warns: the study (docs/shrinking) has 0.807 with it and 0.825 with "fisher" at
# 0.9, 0.747 and 0.825 at 0.7, and 0.585 and 0.770 at 0.5, of an accuracy of 0.824.
L1_SHARE = 0.9


def prune_structured(
    model: PreTrainedModel,
    *,
    heads: float = 0.0,
    neurons: float = 0.0,
    flops: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    drop_layers: int | Sequence[int] | None = None,
    importance: Importance | Literal["auto"] = "auto",
    scope: Scope = "global",
    dataset: Iterable[Any] | None = None,
    eval_dataset: Iterable[Any] | None = None,
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
        latency: The same for the share of the time that a text of 128 tokens takes, measured here and now: of models
            with as many heads and neurons in all layers first, from which that of others is predicted, then of what is
            left. A busy machine measures badly.
        drop_layers: Whole layers to remove first: their indices, or how many, the least important ones then. Where it
            is not given, only a budget with ``plain=True`` removes layers; 0 lets that keep all of them too.
        importance: ``"l1"`` needs no data, ``"obs"`` a ``dataset``, labelled or not, and ``"taylor"`` and ``"fisher"``
            a labelled one (see `hfcompress.importance`). ``"obs"`` counts on the outputs being reconstructed. With
            ``"l1"`` heads and neurons cannot be weighed against each other: to meet a budget, the same fraction of both
            is removed. ``"auto"``: ``"obs"`` with a dataset; where nothing is reconstructed, ``"fisher"`` with a
            labelled one; else ``"l1"``, with a warning where less than 90 % of the FLOPs are left, from where on the
            accuracy falls much faster than with data.
        scope: ``"global"``: the least important of all layers; ``"layer"``: the same fraction of each.
        dataset: Rows with ``input_ids``, ``labels`` and other inputs, as a Trainer takes them (a few hundred will do);
            or batches of tensors; both may be an iterator, which is read to its end. A fourth of the rows, 300 at
            most, the same in each call, is held out of all that changes the model: the report says the accuracy
            before and after on these, and how many predictions stay. Of fewer than 32 rows none are held out. Without
            labels, or where all are None, -1 or -100, it says the latter only.
        eval_dataset: Rows in the same form for the report to measure with, instead of a fourth of ``dataset``. They
            should be none that the model was trained on, or the report has a higher accuracy than other texts will.
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
            Qwen2, T5), whole layers. A budget is met with those of heads and neurons that can be, and where
            ``drop_layers`` is not given with whole layers, the least important ones, but for those that the model
            cannot do without. One number of layers after the other is tried with a fourth of the texts, as long as the
            logits come closer to the original's (reconstructed, where outputs are), and the best is taken; without a
            dataset, the fewest that bring the budget within reach.

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
    asked = {name: value for name, value in given.items() if is_asked(name, value)}
    request = Request(asked, importance, scope, reconstruct, round_to, plain)
    check_request(request, model, dataset)
    found = choice.find(model, request)
    data = read_data(model, dataset, eval_dataset, batch_size, request)
    try:
        before = _sizes(model)
    except Exception as error:
        raise CompressionError(f"{type(model).__name__} does not read a short text: {error}") from error
    check_finite(model)

    reconstruction: Reconstruction | None = None
    with ExitStack() as undo:
        own_configs(model, undo)  # which other models may share
        keeps_original = data.calibration is not None or plain
        twins = copy_sharing_weights(model) if keeps_original else {}
        budget = None
        if request.measure is not None:
            cost = before.get(request.measure, 0)
            budget = Budget(request.measure, asked[request.measure], twins.get(model, model), cost, plain)
        if "drop_layers" in asked:
            choice.drop_layers(model, drop_layers, data, undo)
            found = choice.find(model, request)
        if plain and budget is not None and drop_layers is None:
            chosen = choice.choose_with_layers(model, found, request, data, budget, twins, undo)
        else:
            chosen = choice.choose(model, found, request, data, budget)
        if chosen.removal:
            remove_and_verify(model, chosen.removal, undo)
            write_plan(model)
        if data.calibration is not None:
            reconstruction = reconstruct_outputs(model, twins, list(chosen.removal), data.calibration, undo)
        if plain:
            check_plain(model)
        after = _sizes(model)
        quality = data.quality(model)
        ranked = bool(chosen.removal) or is_integer(asked.get("drop_layers"))
        by_l1 = importance == "auto" and data.importance == "l1"
        if by_l1 and ranked and after["flops"] < L1_SHARE * before["flops"]:
            _warn_of_l1(after["flops"] / before["flops"], has_data=dataset is not None)
        undo.pop_all()
    update_mark(model)
    blocks = [BlockStructure(g.name, g.kind, g.count, g.count - len(gone)) for g, gone in chosen.removal.items()]
    return StructureReport(
        blocks=tuple(blocks),
        layers=(before["layers"], after["layers"]),
        parameters=(before["parameters"], after["parameters"]),
        flops=(before["flops"], after["flops"]),
        asked=asked,
        latency_ms=chosen.latency_ms,
        importance=data.importance,
        reconstruction=reconstruction,
        tokens=dummy_inputs(model)["input_ids"].shape[1],
        **quality,
    )


def _warn_of_l1(share: float, *, has_data: bool) -> None:
    """Warn of what a model has lost whose heads and neurons were ranked without data."""
    reason, remedy = "there is no dataset", "Pass such rows as dataset="
    if has_data:
        reason = "the dataset has no labels, and nothing is reconstructed"
        remedy = "Give the rows labels, leave out reconstruct=False"
    warnings.warn(
        f"Heads and neurons were ranked by their weights alone, as {reason}, and {share:.0%} of the FLOPs are left. "
        f"Below {L1_SHARE:.0%} expect a model that has to be trained again: in a study (docs/shrinking) 70 % "
        "of the FLOPs left an accuracy of 0.747 of 0.824 and half of them 0.585, and 0.825 and 0.770 where a few "
        f"hundred labelled texts ranked. {remedy}, or pass importance='l1' where this is meant.",
        stacklevel=3,
    )


def _sizes(model: PreTrainedModel) -> dict[str, int]:
    stacks = layer_stacks(model)
    return {
        "layers": sum(stacks.values()) if stacks else int(get_config(model).num_hidden_layers),
        "parameters": count_parameters(model),
        "flops": count_flops(model, dummy_inputs(model)),
    }
