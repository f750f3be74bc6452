"""KeepSparsity beside PEFT's adapters: the matrices are kept, the adapters are trained."""

import peft
import pytest
import torch
from architectures import build
from pruned_training import pruned, train, zero_masks

from hfcompress import KeepSparsity, prune_global_l1, sparsity_report


def tuned_by_lora(model):
    return peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))


def test_adapters_are_not_kept_at_their_initial_zero(tmp_path):
    """LoRA's second matrix is zero before training; kept at zero, it would learn nothing."""
    tuned = tuned_by_lora(pruned())
    second = [parameter for name, parameter in tuned.named_parameters() if "lora_B" in name]
    assert all(parameter.detach().count_nonzero() == 0 for parameter in second)
    train(tuned, tmp_path, KeepSparsity(), max_steps=3)
    assert all(parameter.detach().count_nonzero() == parameter.numel() for parameter in second)


def test_merging_fills_the_zeros_of_the_adapted_matrices_only(tmp_path):
    model = pruned()
    zeros = zero_masks(model)
    tuned = tuned_by_lora(model)
    train(tuned, tmp_path, KeepSparsity(), max_steps=3)
    merged = tuned.merge_and_unload()
    filled = {name: int((merged.get_submodule(name).weight[mask] != 0).sum()) for name, mask in zeros.items()}
    assert filled["bert.encoder.layer.0.attention.self.query"] > 0
    assert filled["bert.encoder.layer.0.attention.self.key"] == 0


POOLER_IN_FULL = {"task_type": "SEQ_CLS", "target_modules": ["query"], "modules_to_save": ["pooler"]}


def with_full_pooler(model):
    """Return a PEFT model with a copy of the pooler, to be trained in full; the original is not in use."""
    return peft.get_peft_model(model, peft.LoraConfig(**POOLER_IN_FULL))


def poolers(tuned):
    """Return which copies of the pooler are in scope."""
    return [one.name.split(".")[-2] for one in sparsity_report(tuned).layers if "pooler" in one.name]


def test_the_zeros_of_a_module_trained_in_full_are_kept(tmp_path):
    model = pruned()
    zeros = zero_masks(model)["bert.pooler.dense"]
    tuned = with_full_pooler(model)
    train(tuned, tmp_path, KeepSparsity(), max_steps=3)
    pooler = tuned.merge_and_unload().bert.pooler.dense.weight
    assert torch.equal(pooler == 0, zeros)


def test_of_a_module_trained_in_full_the_copy_is_counted():
    names = [one.name for one in sparsity_report(with_full_pooler(build())).layers if "pooler" in one.name]
    assert names == ["base_model.model.bert.pooler.modules_to_save.default.dense"]


def test_of_a_module_trained_in_full_the_copy_is_pruned():
    tuned = with_full_pooler(build())
    prune_global_l1(tuned, 0.5)
    pooler = tuned.base_model.model.bert.pooler
    assert not pooler.modules_to_save["default"].dense.weight.all()
    assert pooler.original_module.dense.weight.all()


def test_of_two_adapters_the_copy_of_the_active_one_is_counted():
    tuned = with_full_pooler(build())
    tuned.add_adapter("other", peft.LoraConfig(**POOLER_IN_FULL))
    tuned.set_adapter("other")
    assert poolers(tuned) == ["other"]


def test_with_adapters_disabled_the_original_is_counted():
    tuned = with_full_pooler(build())
    with tuned.disable_adapter():
        assert poolers(tuned) == ["original_module"]


def test_the_encoder_of_a_prompt_is_not_in_scope():
    config = peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=3, encoder_hidden_size=16)
    tuned = peft.get_peft_model(build(), config)
    assert not any("prompt" in one.name for one in sparsity_report(tuned, include="*").layers)


@pytest.mark.parametrize("name", ["VBLoRAConfig", "RandLoraConfig"])
def test_a_linear_layer_wrapped_by_an_adapter_is_counted(name):
    settings = {"VBLoRAConfig": {"num_vectors": 4, "vector_length": 8, "topk": 2}, "RandLoraConfig": {"r": 4}}[name]
    model = pruned()
    expected = sparsity_report(model)
    tuned = peft.get_peft_model(model, getattr(peft, name)(task_type="SEQ_CLS", target_modules=["query"], **settings))
    assert (sparsity_report(tuned).zeros, sparsity_report(tuned).weights) == (expected.zeros, expected.weights)
