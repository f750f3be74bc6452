"""How transformers loads what we save: a plug-in that rebuilds planned shapes and unpacks packed weights.

`hfcompress` registers it when it is imported, so that plain ``from_pretrained`` and ``pipeline`` load such folders.
Without it the shapes of the file do not fit the config, and transformers refuses to load the folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightTransform
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hfcompress.errors import CompressionError
from hfcompress.models.shape_plan import METHOD, apply_plan
from hfcompress.storage.safetensors_file import PACKED, POSITIONS, check_file, is_packed
from hfcompress.storage.sparse_codec import MOST_EXPANSION, Packed, unpack

_SLACK = 1 << 24  # bytes of buffers and the like that no file holds


class PlanConfig(QuantizationConfigMixin):
    """The plan as it stands in ``config.json`` under ``quantization_config``."""

    def __init__(self, **plan: Any) -> None:
        self.quant_method = METHOD
        self.plan = plan

    def to_dict(self) -> dict[str, Any]:
        """Return what stands in ``config.json``."""
        return {**self.plan, "quant_method": METHOD}


class Unpack(ConversionOps):
    """Makes the dense tensors of values and positions, which arrive as lists by their patterns."""

    supports_many_to_many = True  # values and positions in, and for what is split up afterwards several tensors out

    def __init__(self, quantizer: HfQuantizer | None = None) -> None:
        """Takes what transformers passes to such an operation, and needs nothing of it."""

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return the same without the positions, each packed tensor whole."""
        whole = {}
        for pattern, tensors in input_dict.items():
            if pattern.endswith(POSITIONS):
                continue
            positions = iter(input_dict.get(pattern + POSITIONS, ()))
            # Where several tensors are gathered under one pattern, those that are packed are the ones with one
            # dimension, in the order of their positions: only matrices are packed.
            whole[pattern] = [self._whole(tensor, positions) for tensor in tensors]
        return whole

    @staticmethod
    def _whole(tensor: Tensor, positions: Any) -> Tensor:
        found = next(positions, None) if tensor.dim() == 1 else None
        if found is None:
            return tensor
        # The file was checked before; by now the values may be of another dtype.
        return unpack(Packed(tensor.cpu(), found.cpu()), size_is_checked=True).to(tensor.device)


class PlanQuantizer(HfQuantizer):
    """Gives the empty model its planned shapes, unpacks what is packed, and hands back an ordinary model."""

    serialized_names: ClassVar[dict[str, list[str]]] = {"weight": ["weight", f"weight{POSITIONS}"]}

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._packed = False
        self._own: dict[int, WeightTransform] = {}  # the model's conversions by the id of those that also unpack

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        # Everything is checked here: an error inside a conversion would surface as some RuntimeError later.
        apply_plan(model, self.quantization_config.to_dict())
        for file in checkpoint_files or ():
            if not file.endswith(".safetensors"):
                raise CompressionError(
                    f"{file} is no safetensors file; a compressed model is loaded from nothing else."
                )
            check_file(Path(file))
            self._packed = self._packed or is_packed(Path(file))
        if checkpoint_files:
            check_size(model, sum(os.path.getsize(file) for file in checkpoint_files))

    def get_load_operations(self) -> dict[str, type[ConversionOps]]:
        """Name the operation that runs before those of the model's own conversions."""
        return {"dequantize": Unpack}

    def get_weight_conversions(self) -> list[WeightConverter]:
        """Unpack all other weights."""
        return [WeightConverter(list(names), [name], [Unpack()]) for name, names in self.serialized_names.items()]

    def update_weight_conversions(
        self, weight_conversions: list[WeightTransform], model: PreTrainedModel
    ) -> list[WeightTransform]:
        """Add the unpacking to what a model's checkpoints go through, if there is anything packed."""
        if not self._packed:
            self._own = {id(conversion): conversion for conversion in weight_conversions}
            return weight_conversions
        updated: list[WeightTransform] = super().update_weight_conversions(weight_conversions, model)
        self._own = {id(new): own for new, own in zip(updated, weight_conversions, strict=False)}
        # That was for patterns of whole names (qkv.weight). One that is part of a name (qkv, for weight and bias) gets
        # a conversion for the weights, and goes on standing for the rest; the first that fits a name is used.
        for own in weight_conversions:
            if isinstance(own, WeightConverter) and not all(s.endswith(PACKED) for s in own._original_source_patterns):
                sources = [s + PACKED + end for s in own._original_source_patterns for end in ("", POSITIONS)]
                targets = [target + PACKED for target in own._original_target_patterns]
                first = own.copy(sources, targets, operations=[Unpack(self), *own.operations])
                self._own[id(first)] = own
                updated.insert(0, first)
        return updated

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        # Nothing is quantized: what is left of the loading would make the Trainer refuse to train, or write the model
        # as if it were packed.
        plan = self.quantization_config.to_dict()
        used = getattr(model, "_weight_conversions", None) or []
        own = {id(self._own[id(one)]): self._own[id(one)] for one in used if id(one) in self._own}
        model._weight_conversions = list(own.values())
        for module in model.modules():
            for name in ("hf_quantizer", "is_quantized", "quantization_method", "_is_quantized"):
                vars(module).pop(name, None)
            if isinstance(module, PreTrainedModel):
                if set(plan) > {"quant_method", "version"}:
                    module.config.quantization_config = plan
                else:  # the shapes are plain and the weights whole now
                    vars(module.config).pop("quantization_config", None)

    def is_serializable(self) -> bool:
        """Whether it can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether it can be trained."""
        return True


def register_loader() -> None:
    """Tell transformers who loads a folder whose config holds a plan."""
    register_quantization_config(METHOD)(PlanConfig)
    register_quantizer(METHOD)(PlanQuantizer)


def check_size(model: PreTrainedModel, held: int) -> None:
    """Refuse a config that makes a model far larger than the files could fill."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if needed > MOST_EXPANSION * held + _SLACK:
        raise CompressionError(
            f"config.json describes a {type(model).__name__} of {needed:,} bytes, but the weights are of {held:,}; the "
            "file does not belong to it or is damaged."
        )
