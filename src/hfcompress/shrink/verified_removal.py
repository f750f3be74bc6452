"""Heads and neurons removed, with the smaller model held against the full one in which they are masked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import evaluation_mode, get_logits, in_float32
from hfcompress.models.heads_and_neurons import Group
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.surgery import masked, remove

Removal = Mapping[Group, set[int]]  # of each group, the indices of the heads or neurons to remove


class LayoutError(CompressionError):
    """A model without some heads or neurons does not run, or gives other logits than where they are masked."""


def remove_and_verify(model: PreTrainedModel, removal: Removal, undo: ExitStack) -> None:
    """Remove heads and neurons, in place, and compare the logits with those of the full model in which they are masked.

    Closing ``undo`` puts everything back.

    Raises:
        LayoutError: The logits differ; the model is as it was then.
    """
    with in_float32(model):  # half precision would hide what is wrong behind its rounding
        full = _dummy_logits(model)
        stays = [(group, torch.tensor([n not in gone for n in range(group.count)])) for group, gone in removal.items()]
        with masked(model, stays):
            expected = _dummy_logits(model)
        with removed(model, removal) as own:
            difference = (_dummy_logits(model) - expected).abs().max()
            # What a wrong removal changes is of the size of what the removed ones contributed.
            tolerance = 0.02 * (full - expected).abs().max() + 1e-5 * expected.abs().max()
            if not difference <= tolerance:
                raise ValueError(f"the logits differ by {difference:.1g}")
            undo.push(own.pop_all())


def check_finite(model: PreTrainedModel) -> None:
    """Refuse a model whose logits are NaN or infinite, as no removal can be checked by them."""
    with in_float32(model):
        finite = bool(_dummy_logits(model).isfinite().all())
    if not finite:
        raise CompressionError(
            f"{type(model).__name__} returns NaN or infinite logits for a short text, so nothing that is removed can "
            "be checked; load the model again, or find the weights that are NaN or infinite."
        )


@contextmanager
def removed(model: PreTrainedModel, removal: Removal) -> Iterator[ExitStack]:
    """Remove heads and neurons while the context lasts, in which the model is run.

    Args:
        model: In which the groups were found.
        removal: What to remove.

    Yields:
        What puts everything back at the end.

    Raises:
        LayoutError: Something in the context, or the removal, failed.
    """
    with ExitStack() as undo:
        try:
            for group, gone in removal.items():
                remove(model, group, sorted(set(range(group.count)) - gone), undo)
            yield undo
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a block raises where heads or neurons are missing
            raise LayoutError(
                f"{type(model).__name__} without these heads and neurons does not give the logits of the full model in "
                "which they are masked, so its attention or feed-forward blocks have no known layout (see "
                f"ARCHITECTURES); it is unchanged ({error})."
            ) from error


def _dummy_logits(model: PreTrainedModel) -> Tensor:
    """The logits of a dozen tokens, float64, on the CPU."""
    with evaluation_mode(model):
        return get_logits(model(**dummy_inputs(model, 12))).cpu().double()  # MPS has no float64
