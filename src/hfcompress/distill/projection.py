"""The projection of the student's hidden states to the teacher's width, and a Trainer that trains it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_config

_FILE = "projection.safetensors"  # beside optimizer.pt in checkpoints; not a part of the student


class ClipProjection(TrainerCallback):
    """Clip the projection's gradient by itself: it is not a part of the model whose norm is clipped and logged."""

    def __init__(self, projection: nn.Linear) -> None:
        self._projection = projection

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clip; the Trainer has just clipped the model's gradient, and unscaled that of the whole optimizer first."""
        if args.max_grad_norm is not None and args.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(self._projection.parameters(), args.max_grad_norm)


class ProjectionTrainer(Trainer):
    """A Trainer that trains a projection, if there is one, beside its model: in its checkpoints, in no saved model."""

    _projection: nn.Linear | None = None  # set by a subclass

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._optimizer_given = self.optimizer is not None

    def _make_projection(self, teacher: nn.Module) -> nn.Linear | None:
        """Make the matrix from the student's width to a teacher's (TinyBERT's W_h), float32; None if they are equal."""
        width, target = (get_config(model).hidden_size for model in (self.model, teacher))
        if width == target:
            return None
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if sharded or self._optimizer_given:
            raise CompressionError(
                f"hidden_weight={self.args.hidden_weight} compares widths {width} and {target} by a projection, which "
                f"{'FSDP and DeepSpeed' if sharded else 'the optimizer given with optimizers='} would not train; "
                f"{'' if sharded else 'let the Trainer make it (optim=, optimizer_cls_and_kwargs=), or '}use "
                "relation_weight alone, which needs none."
            )
        # The same in all processes; and nothing is drawn from the generators that the training uses.
        start = torch.randn(target, width, generator=torch.Generator().manual_seed(self.args.seed)) / width**0.5
        projection = nn.Linear(width, target, bias=False, device="meta")
        projection.weight = nn.Parameter(start.to(self.args.device))
        return projection

    @override
    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer, the projection in it."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if self._projection is not None and id(self._projection.weight) not in trained:
            optimizer.add_param_group({"params": [self._projection.weight], "weight_decay": self.args.weight_decay})
        self.remove_callback(ClipProjection)
        if self._projection is not None:  # before the user's callbacks, which see what the optimizer will
            self.callback_handler.callbacks.insert(0, ClipProjection(self._projection))
        return optimizer

    @override
    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Collect the batches of an update; it begins without a gradient, and the Trainer clears the model's alone."""
        if self._projection is not None:
            self._projection.weight.grad = None
        return super().get_batch_samples(*args, **kwargs)

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take the stock step; average the projection's gradient over the processes, as DDP does the student's."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self._projection is not None and self.accelerator.sync_gradients:
            self._projection.weight.grad = self.accelerator.reduce(self._projection.weight.grad, reduction="mean")
        return loss

    @override
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._projection is not None and self.args.should_save:
            save_model(self._projection, str(Path(output_dir) / _FILE))

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        file = Path(checkpoint or "") / _FILE
        saved = checkpoint is not None and file.exists()
        resumed = checkpoint is not None and file.with_name("optimizer.pt").exists()
        if resumed and saved is not (self._projection is not None):
            raise CompressionError(
                f"The training of {checkpoint} had {'a' if saved else 'no'} projection of hidden states, this one has "
                f"{'none' if saved else 'one'}; go on with the same hidden_weight and teacher."
            )
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._projection is not None and saved:
            load_model(self._projection, str(file))
