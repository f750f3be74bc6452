"""The private or loosely specified behaviour of transformers and accelerate that we build on, one test each.

If a new version breaks one of these, the message names the hook and the module of ours that relies on it. The docstring
of each says from which release of transformers it holds.
"""

import inspect
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from architectures import arguments, batch, build, rows
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    MixtralConfig,
    MixtralForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hfcompress.distill.arguments import TrainerOptions

DATA = batch(19)


def make(directory, kind=Trainer, callbacks=(), model=None, **overrides):
    args = arguments(TrainingArguments, directory, **({"optim": "sgd"} | overrides))
    data = rows(DATA)
    return kind(model=model or build(), args=args, train_dataset=data, eval_dataset=data, callbacks=list(callbacks))


def test_the_signature_columns_decide_which_columns_stay(tmp_path):
    """From 5.0."""

    class Extended(Trainer):
        def _set_signature_columns_if_needed(self):
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*self._signature_columns, "teacher_logits"]

    args = arguments(TrainingArguments, tmp_path)
    data = rows(DATA | {"teacher_logits": torch.zeros(19, 2), "unknown": torch.zeros(19)})
    batches = Extended(model=build(), args=args, train_dataset=data).get_train_dataloader()
    keys = set(next(iter(batches)))
    assert keys == {"input_ids", "attention_mask", "labels", "teacher_logits"}, (
        "Trainer._set_signature_columns_if_needed no longer decides by _signature_columns which columns stay; "
        "hfcompress.distill.trainer extends it to keep teacher_logits and the text."
    )


def test_the_batches_of_get_batch_samples_reach_training_step(tmp_path):
    """From 5.0."""
    seen = {"updates": [], "items": []}

    class Watching(Trainer):
        def get_batch_samples(self, epoch_iterator, num_batches, device):
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            seen["updates"].append([len(one["labels"]) for one in batches])
            return [{**one, "added": torch.ones(1)} for one in batches], torch.tensor(7)

        def training_step(self, model, inputs, num_items_in_batch=None):
            assert "added" in inputs, (
                "the batches of get_batch_samples are not trained on: hfcompress.distill.exact_mean"
            )
            seen["items"].append(int(num_items_in_batch))
            inputs.pop("added")
            return super().training_step(model, inputs, num_items_in_batch)

    make(tmp_path, Watching, per_device_train_batch_size=4, gradient_accumulation_steps=2).train()
    message = "Trainer.get_batch_samples is no longer called once per update: hfcompress.distill.exact_mean"
    assert seen["updates"] == [[4, 4], [4, 4], [3]], message
    assert seen["items"] == [7] * 5, "its count no longer reaches training_step as num_items_in_batch: " + message


def test_get_batch_samples_has_the_parameters_that_we_override():
    """From 5.0."""
    parameters = list(inspect.signature(Trainer.get_batch_samples).parameters)
    assert parameters == ["self", "epoch_iterator", "num_batches", "device"], (
        "Trainer.get_batch_samples has other parameters; hfcompress.distill.exact_mean overrides it."
    )


def test_trainer_options_are_the_arguments_of_the_trainer():
    """From 5.0."""
    parameters = set(inspect.signature(Trainer.__init__).parameters) - {"self", "model", "args"}
    assert parameters == set(TrainerOptions.__annotations__), (
        "Trainer has other keyword arguments than hfcompress.distill.arguments.TrainerOptions."
    )


def test_compute_loss_is_given_the_count_of_the_update(tmp_path):
    """From 5.0."""
    seen = []

    class Watching(Trainer):
        def get_batch_samples(self, *args):
            return super().get_batch_samples(*args)[0], torch.tensor(7)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            seen.append(num_items_in_batch)
            return super().compute_loss(model, inputs, return_outputs)

    make(tmp_path, Watching, max_steps=1).train()
    assert [int(count) for count in seen] == [7], (
        "Trainer no longer passes num_items_in_batch to compute_loss by keyword; hfcompress.distill.exact_mean divides "
        "by it."
    )


@pytest.mark.parametrize(("scaled", "factor"), [(True, 1.0), (False, 0.5)])
def test_two_attributes_stop_the_division_by_the_steps(scaled, factor, tmp_path):
    """From 5.0; `loss_is_scaled_for_ga` is read from 5.19, `model_accepts_loss_kwargs` before."""
    gradients = []

    class Summing(Trainer):
        loss_is_scaled_for_ga = scaled

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.model_accepts_loss_kwargs = scaled

        def get_batch_samples(self, *args):
            return super().get_batch_samples(*args)[0], torch.tensor(7)

        def _inner_training_loop(self, *args, **kwargs):
            self.accelerator.gradient_accumulation_steps = 1
            return super()._inner_training_loop(*args, **kwargs)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model.classifier.bias.sum()

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            gradients.append(float(kwargs["model"].classifier.bias.grad[0]))

    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
    make(tmp_path, Summing, [Note()], max_steps=1, **settings).train()
    assert gradients == [2 * factor], (
        "Trainer.loss_is_scaled_for_ga and .model_accepts_loss_kwargs no longer decide about the division by the "
        "accumulation steps, or accelerate divides too; hfcompress.distill.exact_mean sets them."
    )


def test_a_parameter_beside_the_model_is_trained_and_saved(tmp_path):
    """From 5.0."""
    seen = []

    class Watching(Trainer):
        def create_optimizer(self, *args, **kwargs):
            optimizer = super().create_optimizer(*args, **kwargs)
            self.beside = nn.Parameter(torch.ones(1))
            optimizer.add_param_group({"params": [self.beside]})
            return optimizer

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            self.beside.grad = torch.ones(1)
            return loss

        def _save_optimizer_and_scheduler(self, output_dir):
            super()._save_optimizer_and_scheduler(output_dir)
            seen.append(("save", str(output_dir)))

        def _load_optimizer_and_scheduler(self, checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            seen.append(("load", None if checkpoint is None else str(checkpoint)))

    folder = str(tmp_path / "checkpoint-1")
    settings = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 0.25}
    for checkpoint in (None, folder):
        trainer = make(tmp_path, Watching, max_steps=1 if checkpoint is None else 2, **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
    seen = [one for one in seen if one != ("load", None)]  # also called where there is nothing to load, before 5.3
    assert seen == [("save", folder), ("load", folder), ("save", f"{folder[:-1]}2")], (
        "Trainer no longer saves or loads by these methods; hfcompress.distill.projection does so there too."
    )
    assert trainer.beside == 0.75, (
        "Trainer no longer takes a parameter beside the model's from create_optimizer, or changes its gradient between "
        "training_step and the optimizer's step; hfcompress.distill.projection is trained so."
    )


def test_on_pre_optimizer_step_comes_after_the_clipping(tmp_path):
    """From 5.0; also for a callback that is put into the list when the optimizer is made."""
    norms = []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            norms.append(float(torch.cat([p.grad.flatten() for p in kwargs["model"].parameters()]).norm()))

    class Adding(Trainer):
        def create_optimizer(self, *args, **kwargs):
            self.callback_handler.callbacks.insert(0, Note())
            return super().create_optimizer(*args, **kwargs)

    make(tmp_path, Adding, max_steps=1, max_grad_norm=0.01).train()
    assert norms == pytest.approx([0.01], rel=1e-3), (
        "on_pre_optimizer_step no longer comes once an update after the gradients were clipped, and so unscaled; "
        "hfcompress.distill.projection clips the projection's there."
    )


def test_the_evaluation_loop_gets_its_prefix_and_returns_metrics(tmp_path):
    """From 5.0."""
    prefixes = []

    class Watching(Trainer):
        def evaluation_loop(self, *args, **kwargs):
            prefixes.append(kwargs.get("metric_key_prefix"))
            output = super().evaluation_loop(*args, **kwargs)
            output.metrics["added"] = 1.0
            return output

    trainer = make(tmp_path, Watching)
    message = "hfcompress.distill.trainer adds its metrics in Trainer.evaluation_loop."
    assert trainer.evaluate(metric_key_prefix="own")["added"] == 1.0, message
    assert trainer.predict(rows(DATA)).metrics["added"] == 1.0, message
    assert prefixes == ["own", "test"], "Trainer.evaluation_loop is not given metric_key_prefix by keyword: " + message


def test_the_prediction_step_is_called_once_a_batch(tmp_path):
    """From 5.0."""
    sizes = []

    class Watching(Trainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            sizes.append(len(inputs["labels"]))
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    make(tmp_path, Watching).evaluate()
    assert sizes == [8, 8, 3], "Trainer.prediction_step: hfcompress.distill.trainer evaluates in it."


def test_the_gradient_state_has_the_last_batchs_remainder():
    """From 5.0."""
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare_data_loader(DataLoader(range(19), batch_size=8))
    found = []
    for _ in loader:
        state = accelerator.gradient_state
        found.append((state.end_of_dataloader, state.remainder))
    assert found == [(False, 3), (False, 3), (True, 3)], (
        "accelerator.gradient_state.end_of_dataloader or .remainder changed their meaning; with them "
        "hfcompress.distill.exact_mean weighs the examples of an epoch's last batch."
    )
    full = accelerator.prepare_data_loader(DataLoader(range(16), batch_size=8))
    ends = [(GradientState().end_of_dataloader, GradientState().remainder) for _ in full]
    assert ends == [(False, 0), (True, 0)], (
        "gradient_state.remainder of full batches is not 0: hfcompress.distill.exact_mean"
    )


def test_gather_for_metrics_returns_every_example_once():
    """From 5.0."""
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare_data_loader(DataLoader(torch.arange(19), batch_size=8))
    gathered = torch.cat([accelerator.gather_for_metrics(one) for one in loader])
    assert gathered.tolist() == list(range(19)), (
        "Accelerator.gather_for_metrics no longer drops the examples that fill the last batch, and "
        "hfcompress.distill.trainer's metrics count them."
    )


def test_on_optimizer_step_comes_between_step_and_zero_grad(tmp_path):
    """From 5.0."""
    events = []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            events.append(("before", kwargs["model"].classifier.bias.detach().clone()))

        def on_optimizer_step(self, args, state, control, **kwargs):
            gradient = kwargs["model"].classifier.bias.grad
            assert gradient is not None, "on_optimizer_step comes after zero_grad: hfcompress.prune.callbacks"
            assert gradient.any(), "on_optimizer_step comes after zero_grad: hfcompress.prune.callbacks"
            events.append(("after", kwargs["model"].classifier.bias.detach().clone()))

    make(tmp_path, callbacks=[Note()], per_device_train_batch_size=4, gradient_accumulation_steps=2).train()
    message = "on_optimizer_step no longer runs once an update right after optimizer.step: hfcompress.prune.callbacks"
    assert [name for name, _ in events] == ["before", "after"] * 3, message
    assert not torch.equal(events[0][1], events[1][1]), message
    assert torch.equal(events[1][1], events[2][1]), message


def test_on_train_begin_comes_after_a_checkpoint_was_loaded(tmp_path):
    """From 5.0."""
    first = build()
    make(tmp_path, model=first, max_steps=2, save_strategy="steps", save_steps=2).train()
    found = []

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            found.append(kwargs["model"].classifier.weight.detach().clone())

    other = make(tmp_path, callbacks=[Note()], model=build(seed=5), max_steps=3)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(found[0], first.classifier.weight.detach()), (
        "on_train_begin fires before the checkpoint is loaded; hfcompress.prune.callbacks reads the zeros there."
    )


def test_the_model_that_callbacks_get_is_the_one_that_is_trained(tmp_path):
    """From 5.0."""
    model, found = build(), []

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            found.append(kwargs["model"])

    make(tmp_path, callbacks=[Note()], model=model, max_steps=1).train()
    assert found == [model], "callbacks no longer get model=; hfcompress.prune.callbacks reads the zeros from it."


def test_conv1d_of_pytorch_utils_stores_inputs_first():
    """From 5.0."""
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(3, 2)
    assert tuple(layer.weight.shape) == (2, 3), "Conv1D stores its matrix otherwise: hfcompress.models.surgery"
    assert isinstance(build("gpt2").transformer.h[0].mlp.c_fc, Conv1D), "GPT-2 uses no Conv1D: hfcompress.models.layers"


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "distilbert"])
def test_the_body_is_base_model_and_the_layers_are_a_module_list(architecture):
    """From 5.0."""
    model = build(architecture, layers=3)
    assert model.base_model is not model, "PreTrainedModel.base_model is not the body: hfcompress.models.weights"
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == 3]
    assert len(stacks) == 1, "the layers are not a ModuleList of config.num_hidden_layers: hfcompress.models.layers"


def test_training_arguments_run_our_checks_through_post_init(tmp_path):
    """From 5.0."""
    from dataclasses import dataclass

    @dataclass
    class Own(TrainingArguments):
        own: int = 1

        def __post_init__(self):
            self.seen = self.own
            super().__post_init__()

    assert arguments(Own, tmp_path, own=3).seen == 3, "TrainingArguments is not a dataclass: distill.arguments"


def test_the_stock_trainer_scales_the_loss_of_bert(tmp_path):
    """The reason for our own normalisation, from 5.0; when this fails, it may have become superfluous."""

    class Norms(TrainerCallback):
        def __init__(self):
            self.found = []

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            gradients = [p.grad.flatten() for p in kwargs["model"].parameters() if p.grad is not None]
            self.found.append(float(torch.cat(gradients).norm()))

    norms = {}
    for accumulated in (1, 4):
        callback = Norms()
        sizes = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
        trainer = make(tmp_path, callbacks=[callback], max_steps=1, max_grad_norm=0.0, **sizes)
        trainer.train()
        norms[accumulated] = callback.found[0] * trainer.accelerator.gradient_accumulation_steps  # 4 in 5.2 to 5.5
    assert norms[4] == pytest.approx(4 * norms[1], rel=1e-3), "Trainer no longer multiplies: distill.exact_mean"


class Watched(HfQuantizer):
    """A quantizer that quantizes nothing and notes what it is given."""

    seen: ClassVar[list[tuple[str, object]]] = []

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        Watched.seen.append(("before", {parameter.device.type for parameter in model.parameters()}))
        here = Path(checkpoint_files[0])
        checkpoint_files[:] = [str(here.parent / "elsewhere" / here.name)]

    def get_weight_conversions(self):
        return [WeightConverter([r"\.weight$"], [".weight"], operations=[Noting()])]

    def _process_model_after_weight_loading(self, model, **kwargs):
        Watched.seen.append(("after", {parameter.device.type for parameter in model.parameters()}))

    def is_serializable(self):
        return True

    @property
    def is_trainable(self):
        return True


class Noting(ConversionOps):
    def convert(self, input_dict, **kwargs):
        ((pattern, (tensor,)),) = input_dict.items()
        Watched.seen.append((kwargs["full_layer_name"], (pattern, tensor.shape)))
        return {kwargs["full_layer_name"]: [tensor + 1]}


class WatchedConfig(QuantizationConfigMixin):
    def __init__(self, /, **kwargs):
        self.quant_method = "watched"


@pytest.fixture(scope="module", autouse=True)
def _watched():
    register_quantization_config("watched")(WatchedConfig)
    register_quantizer("watched")(Watched)


def test_a_quantizer_may_change_the_files_and_convert_weights(tmp_path):
    """From 5.0 on: the files that are read are those in the list after the hook; conversions get lists and names."""
    model = build()
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "elsewhere")
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "watched"}}))
    Watched.seen.clear()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    message = "the hooks of HfQuantizer changed: hfcompress.storage.quantizer"
    assert Watched.seen[0] == ("before", {"meta"}), message
    assert Watched.seen[-1] == ("after", {"cpu"}), message
    weights = {name: parameter for name, parameter in model.named_parameters() if name.endswith(".weight")}
    assert dict(Watched.seen[1:-1]) == {name: (r"\.weight$", tensor.shape) for name, tensor in weights.items()}, message
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name) + (name in weights)), message


def test_only_some_models_have_conversions_of_their_own():
    """From 5.0 on."""
    message = "get_model_conversion_mapping returns something else: hfcompress.storage.quantizer"
    assert not get_model_conversion_mapping(build(), add_legacy=False), message
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(**sizes, num_key_value_heads=1, vocab_size=50, num_local_experts=3, pad_token_id=0)
    assert get_model_conversion_mapping(MixtralForSequenceClassification(config), add_legacy=False), message


def test_the_conversions_that_were_used_stay_with_the_model(tmp_path):
    """From 5.0 on: saving reverts what is in `_weight_conversions`."""
    build().save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(again._weight_conversions, list), "hfcompress.storage.quantizer removes its own from this list."


def test_autocast_replaces_the_forward_of_the_model_and_keeps_the_old_one(tmp_path):
    """From 5.0, by accelerate."""
    trainer = make(tmp_path, max_steps=1, bf16=True)
    before = trainer.model.forward
    trainer.train()
    held = vars(trainer.model)
    message = (
        "Autocast no longer leaves the old forward in _original_forward, or _is_accelerate_prepared is not set: "
        "hfcompress.models.classifier, distill.teachers and search.training read them."
    )
    assert held.get("_original_forward") == before, message
    assert held.get("_is_accelerate_prepared"), message


def test_what_from_pretrained_read_is_marked_and_what_it_did_not_is_drawn(tmp_path):
    """From 5.0 on: `_is_hf_initialized` of parameters."""
    build().base_model.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    body = [getattr(parameter, "_is_hf_initialized", False) for parameter in model.base_model.encoder.parameters()]
    message = "from_pretrained no longer marks what it read with _is_hf_initialized: hfcompress.models.new_head."
    assert all(body), message
    assert not getattr(model.classifier.weight, "_is_hf_initialized", False), message
    before = model.classifier.weight.detach().clone()
    model.classifier.weight._is_hf_initialized = True
    model._init_weights(model.classifier)
    message = "_init_weights no longer leaves what has _is_hf_initialized: hfcompress_cli.models resets it."
    assert torch.equal(model.classifier.weight, before), message
    model.classifier.weight._is_hf_initialized = False
    model._init_weights(model.classifier)
    assert not torch.equal(model.classifier.weight, before), message
