"""Lets transformers load compressed models: a quantizer that applies the plan of shapes and unpacks weights.

It is registered when `hfcompress` is imported, so that plain ``from_pretrained`` and ``pipeline`` load such folders.
Without it the shapes in the file do not fit the config, and transformers refuses to load the folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightTransform
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin
from typing_extensions import override

from hfcompress.errors import CompressionError
from hfcompress.models.shape_plan import METHOD, apply_plan
from hfcompress.models.tensors import distinct
from hfcompress.storage.safetensors_file import PACKABLE, POSITIONS, check_packed_tensors
from hfcompress.storage.sparse_codec import MOST_EXPANSION, Packed, unpack

_SLACK = 1 << 24  # bytes, of buffers and the like, that are in no file


class PlanConfig(QuantizationConfigMixin):
    """The plan in ``config.json``, under ``quantization_config``."""

    def __init__(self, /, **plan: Any) -> None:
        self.quant_method = METHOD
        self.plan = plan

    @override
    def to_dict(self) -> dict[str, Any]:
        return {**self.plan, "quant_method": METHOD}


class UnpackWeights(ConversionOps):
    """Makes full tensors of values and positions, which arrive as lists by their patterns."""

    supports_many_to_many = True  # values and positions in, and where a tensor is split afterwards several out

    def __init__(self, quantizer: HfQuantizer | None = None) -> None:
        """Take the quantizer that transformers passes to such an operation; it is not needed."""

    @override
    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return the same tensors without the positions, those that are packed unpacked."""
        unpacked = {}
        for pattern, tensors in input_dict.items():
            if not pattern.endswith(POSITIONS):
                # Where several tensors are gathered under one pattern, the packed ones are those with one dimension, in
                # the order of their positions: only matrices are packed.
                positions = iter(input_dict.get(pattern + POSITIONS, ()))
                unpacked[pattern] = [self._unpack(tensor, positions) for tensor in tensors]
        return unpacked

    @staticmethod
    def _unpack(tensor: Tensor, positions: Iterator[Tensor]) -> Tensor:
        found = next(positions, None) if tensor.dim() == 1 else None
        if found is None:
            return tensor
        # The file was checked before; since then the dtype of the values may have changed.
        return unpack(Packed(tensor.cpu(), found.cpu()), size_is_checked=True).to(tensor.device)


class PlanQuantizer(HfQuantizer):
    """Gives the empty model its planned shapes, unpacks its weights, and leaves an ordinary model."""

    serialized_names: ClassVar[dict[str, list[str]]] = {"weight": ["weight", f"weight{POSITIONS}"]}

    @override
    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._packed = False
        self._own: dict[int, WeightTransform] = {}  # the model's conversions, by the id of those that also unpack

    @override
    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        # Everything is checked here: an error inside a conversion would surface later as a RuntimeError.
        apply_plan(model, self.quantization_config.to_dict())
        files = [Path(file) for file in checkpoint_files or ()]
        for file in files:
            if file.suffix != ".safetensors":
                raise CompressionError(f"{file} is not a safetensors file, the only kind that holds compressed models.")
            self._packed |= check_packed_tensors(file)
        if files:
            check_size(model, sum(file.stat().st_size for file in files))

    @override
    def get_load_operations(self) -> dict[str, type[ConversionOps]]:
        return {"dequantize": UnpackWeights}  # runs before the operations of the model's own conversions

    @override
    def get_weight_conversions(self) -> list[WeightConverter]:
        return [WeightConverter(stored, [one], [UnpackWeights()]) for one, stored in self.serialized_names.items()]

    @override
    def update_weight_conversions(
        self, weight_conversions: list[WeightTransform], model: PreTrainedModel
    ) -> list[WeightTransform]:
        """Add the unpacking to the model's own conversions of its checkpoints, if anything is packed."""
        if not self._packed:
            self._own = {id(conversion): conversion for conversion in weight_conversions}
            return weight_conversions
        updated: list[WeightTransform] = super().update_weight_conversions(weight_conversions, model)
        self._own = {id(new): own for new, own in zip(updated, weight_conversions, strict=False)}
        # That was for patterns of full names (qkv.weight). A pattern that is part of a name (qkv, for weight and bias)
        # gets a conversion for the weights in front, and stays for the rest: the first that fits a name is used.
        for own in weight_conversions:
            sources = own._original_source_patterns
            if isinstance(own, WeightConverter) and not all(source.endswith(PACKABLE) for source in sources):
                sources = [source + PACKABLE + end for source in sources for end in ("", POSITIONS)]
                targets = [target + PACKABLE for target in own._original_target_patterns]
                first = own.copy(sources, targets, operations=[UnpackWeights(self), *own.operations])
                self._own[id(first)] = own
                updated.insert(0, first)
        return updated

    @override
    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        # Nothing is quantized: what loading leaves behind would make the Trainer refuse to train, or would write the
        # model as if it were packed.
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
                else:  # the shapes are plain and nothing is packed any more
                    vars(module.config).pop("quantization_config", None)

    @override
    def is_serializable(self) -> bool:
        return True

    @property
    @override
    def is_trainable(self) -> bool:
        return True


def register_loader() -> None:
    """Register the quantizer in transformers for configs that hold a plan."""
    register_quantization_config(METHOD)(PlanConfig)
    register_quantizer(METHOD)(PlanQuantizer)


def check_size(model: PreTrainedModel, held: int) -> None:
    """Refuse a model, on the meta device, that is far larger than files of so many bytes can fill."""
    needed = sum(tensor.nbytes for tensor in distinct([*model.parameters(), *model.buffers()]))
    if needed > MOST_EXPANSION * held + _SLACK:
        raise CompressionError(
            f"config.json describes a {type(model).__name__} of {needed:,} bytes, but the weights have {held:,} bytes; "
            "the file does not belong to it or is damaged."
        )
