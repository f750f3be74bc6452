"""How transformers loads what we save: a plug-in that rebuilds the shapes of a plan before the weights are read.

`hfcompress` registers it when it is imported, so that plain ``from_pretrained`` and ``pipeline`` load shrunken models.
Without
hfcompress the shapes do not fit the config, and transformers refuses to load the folder.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hfcompress.plan import METHOD, apply_plan


class PlanConfig(QuantizationConfigMixin):
    """The plan as it stands in ``config.json`` under ``quantization_config``."""

    def __init__(self, **plan: Any) -> None:
        self.__dict__.update(plan)
        self.quant_method = METHOD


class PlanQuantizer(HfQuantizer):
    """Gives the empty model its planned shapes, and hands back an ordinary model."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        apply_plan(model, self.quantization_config.to_dict())

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        # Nothing is quantized: what is left of the loading would make the Trainer refuse to train.
        plan = self.quantization_config.to_dict()
        for module in model.modules():
            for name in ("hf_quantizer", "is_quantized", "quantization_method", "_is_quantized"):
                vars(module).pop(name, None)
            if isinstance(module, PreTrainedModel):
                module.config.quantization_config = plan

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
