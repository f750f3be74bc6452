"""Lets transformers load compressed models: a quantizer that applies the plan of shapes and unpacks weights.

It is registered when `hfcompress` is imported, so that plain ``from_pretrained`` and ``pipeline`` load such folders.
Without it the shapes in the file do not fit the config, and transformers refuses to load the folder.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin
from typing_extensions import override

from hfcompress.compat import kept_in_float32
from hfcompress.errors import CompressionError
from hfcompress.models.shape_plan import METHOD, Plan, apply_plan
from hfcompress.models.tensors import distinct
from hfcompress.storage.safetensors_file import PACKABLE, POSITIONS, check_packed_tensors, unpack_file
from hfcompress.storage.sparse_codec import MOST_EXPANSION, Packed, unpack

_VALUES, _POSITIONS = re.escape(PACKABLE) + "$", re.escape(PACKABLE + POSITIONS) + "$"  # patterns of names
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
    """Makes one tensor of values and positions, which arrive as lists by their patterns."""

    @override
    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return the tensor by its full name."""
        (values,), positions = input_dict[_VALUES], input_dict.get(_POSITIONS)
        if positions:
            # The file was checked before; since then the dtype of the values may have changed.
            unpacked = unpack(Packed(values.cpu(), positions[0].cpu()), size_is_checked=True)
            values = unpacked.to(values.device)
        return {kwargs["full_layer_name"]: [values]}


class PlanQuantizer(HfQuantizer):
    """Gives the empty model its planned shapes, unpacks its weights, and leaves an ordinary model.

    It uses what every transformers 5 has: `get_weight_conversions` and the hooks before and after loading.
    """

    @override
    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._packed = False  # whether weights are to be unpacked while they are loaded
        self._remove_unpacked: Callable[[], object] | None = None  # where they were unpacked into a temporary folder
        self._planned: dict[str, Tensor] = {}  # the empty parameters

    @override
    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        # Everything is checked here: an error inside a conversion would surface later as a RuntimeError.
        apply_plan(model, self.quantization_config.to_dict())
        self._planned = dict(model.named_parameters())
        files = [Path(file) for file in checkpoint_files or ()]
        for file in files:
            if file.suffix != ".safetensors":
                raise CompressionError(f"{file} is not a safetensors file, the only kind that holds compressed models.")
            self._packed |= check_packed_tensors(file)
        if files:
            check_size(model, sum(file.stat().st_size for file in files))
        if checkpoint_files and self._packed and get_model_conversion_mapping(model, add_legacy=False):
            # Names and shapes in the files are not the model's (NomicBert, GTE, experts): its own conversions are
            # written for weights that are not packed.
            folder = tempfile.mkdtemp(prefix="hfcompress-")
            self._remove_unpacked = weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
            for file in files:
                unpack_file(file, Path(folder, file.name))
            checkpoint_files[:] = [str(Path(folder, file.name)) for file in files]
            self._packed = False

    @override
    def get_weight_conversions(self) -> list[WeightConverter]:
        if not self._packed:
            return []
        return [WeightConverter([_VALUES, _POSITIONS], [PACKABLE], operations=[UnpackWeights()])]

    @override
    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        self._check_loaded(model)
        # Weights on the "disk" are read from there in each forward pass, as long as there is the model.
        if self._remove_unpacked is not None and "disk" not in getattr(model, "hf_device_map", {}).values():
            self._remove_unpacked()
        # Nothing is quantized: what loading leaves behind would make the Trainer refuse to train, or would write the
        # model as if it were packed.
        plan = self.quantization_config.to_dict()
        used = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [one for one in used if not _unpacks(one)]
        for module in model.modules():
            for name in ("hf_quantizer", "is_quantized", "quantization_method", "_is_quantized"):
                vars(module).pop(name, None)
            if isinstance(module, PreTrainedModel):
                if set(plan) > {"quant_method", "version"}:
                    module.config.quantization_config = Plan(plan)
                else:  # the shapes are plain and nothing is packed any more
                    vars(module.config).pop("quantization_config", None)

    def _check_loaded(self, model: PreTrainedModel) -> None:
        """Hold the weights to the planned shapes and dtypes, which not every transformers does under a quantizer.

        It refuses other shapes since 5.23, and gives weights whose names it changed their dtype since 5.21.
        """
        loaded = {name: tensor for name, tensor in model.named_parameters() if name in self._planned}
        unfit = [name for name, tensor in loaded.items() if tensor.shape != self._planned[name].shape]
        if unfit:
            first = min(unfit)
            raise CompressionError(
                f"The weights do not fit the config: mismatched keys, such as {first} of shape "
                f"{tuple(loaded[first].shape)} where the config describes {tuple(self._planned[first].shape)}. To give "
                "the model another head, load it as it is and replace the head; ignore_mismatched_sizes=True needs "
                "transformers 5.23."
            )
        for name, tensor in loaded.items():
            dtype = self._planned[name].dtype
            if tensor.dtype != dtype and not any(re.search(one, name) for one in kept_in_float32(model, dtype)):
                tensor.data = tensor.data.to(dtype)

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


def _unpacks(conversion: object) -> bool:
    return any(isinstance(one, UnpackWeights) for one in getattr(conversion, "operations", ()))
