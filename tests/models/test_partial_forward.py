"""Forward passes that start behind layers and stop at modules, against full passes."""

import types
from itertools import groupby

import pytest
import torch
from architectures import WITH_NEURONS, build
from torch import nn
from torch.utils._pytree import tree_leaves

from hfcompress.models.classifier import evaluation_mode
from hfcompress.models.heads_and_neurons import KINDS, find_groups
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.partial_forward import OutputRecorder, PartialForward
from hfcompress.models.pauses import call_order, find_pauses, skippable_layers

REPLAYED = ("albert", "funnel")  # whose layers run more than once, or are in no stack that the config counts


@pytest.mark.parametrize("architecture", WITH_NEURONS)
def test_passes_start_behind_each_layer(architecture):
    model = build(architecture, layers=3)
    batches = [dummy_inputs(model, 12), dummy_inputs(model, 9, 2)]
    with evaluation_mode(model):
        layers = skippable_layers(model)
        assert bool(layers) is (architecture not in REPLAYED)
        modules = [layer for _, layer in layers]
        expected = [model(**one).logits for one in batches]
        with PartialForward(model, batches, layers) as runs:
            for index, layer in enumerate(modules):
                runs.advance(layer)
                for number, logits in reversed(list(enumerate(expected))):  # and at last the first batch, as below
                    torch.testing.assert_close(runs.logits(number), logits)
                inner = {m: n for n, one in enumerate(modules) for m in one.children()}
                ran = {inner[module] for module in call_order(model, inner, batches[0])[0]}
                assert min(ran, default=len(modules)) > index, "no layer that is done runs again"
        assert all("forward" not in vars(module) and not module._forward_hooks for module in model.modules())
        torch.testing.assert_close(model(**batches[0]).logits, expected[0])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, states):
        return self.inner(states)


class Tiny(nn.Module):
    """Residuals may be added outside of the layers, so that these do not return all that is handed on."""

    def __init__(self, *, residual):
        super().__init__()
        self.config = types.SimpleNamespace(num_hidden_layers=3)
        self.embed, self.layers, self.residual = nn.Embedding(20, 4), nn.ModuleList(Block() for _ in range(3)), residual

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None):
        states = self.embed(input_ids)
        for layer in self.layers:
            states = states + layer(states) if self.residual else layer(states)
        return states.mean(1)


def test_layers_that_do_not_return_everything_are_not_skipped():
    torch.manual_seed(0)
    with torch.no_grad():
        assert len(skippable_layers(Tiny(residual=False))) == 3
        assert skippable_layers(Tiny(residual=True)) == []


def test_a_watch_records_outputs_or_sums_and_ends_the_pass():
    torch.manual_seed(0)
    model, batch = Tiny(residual=True), {"input_ids": torch.arange(5)[None]}
    first, last = model.layers[0].inner, model.layers[2].inner
    with torch.no_grad():
        states = model.embed(batch["input_ids"])
        runs = PartialForward(model, [batch], [])
        for sums in (False, True):
            recorder = OutputRecorder({first: sums}, 1)
            runs.run(0, recorder)
            output = first(states)
            assert torch.equal(recorder.inputs[first][0], states)
            assert torch.equal(recorder.outputs[first][0], states + output if sums else output)
        assert last not in call_after(model, last, runs, OutputRecorder({first: True}, 1))
        assert last in call_after(model, last, runs, OutputRecorder({first: True}))


def call_after(model, module, runs, recorder):
    """The modules among these that a watched pass reaches."""
    reached = []
    handle = module.register_forward_hook(lambda *arguments: reached.append(module))
    runs.run(0, recorder)
    handle.remove()
    return reached


def test_what_is_added_after_another_operation_is_no_residual_stream():
    class Scaled(Tiny):
        def forward(self, input_ids, attention_mask=None):
            states = self.embed(input_ids)
            return (states + 2 * self.layers[0](states)).mean(1)

    model = Scaled(residual=True)
    recorder = OutputRecorder({model.layers[0]: True})
    with torch.no_grad():
        PartialForward(model, [{"input_ids": torch.arange(5)[None]}], []).run(0, recorder)
    assert recorder.outputs[model.layers[0]] == []


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "llama"])
def test_a_pause_keeps_only_what_is_read_from_there_on(architecture, attention):
    model = build(architecture, layers=2, attn_implementation=attention)
    batch = dummy_inputs(model, 40, 2)
    consumers = {part.module for kind in KINDS for group in find_groups(model, kind) for part in group.consumers}
    with evaluation_mode(model):
        layers = skippable_layers(model)
        pauses = find_pauses(model, layers, [model.get_submodule(name) for name in consumers])
        inside = {module: layer for _, layer in layers for module in layer.modules()}
        expected = model(**batch).logits
        with PartialForward(model, [batch], layers) as runs:
            for layer, steps in groupby(pauses.values(), key=lambda pause: inside[pause.module]):
                for pause in steps:
                    (read,), _ = runs.run_to(0, pause, to_sum=False)
                    hidden = read.numel() // read.shape[-1] * pause.width * read.element_size()
                    tensors = [leaf for leaf in tree_leaves(runs._inside) if isinstance(leaf, torch.Tensor)]
                    held = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
                    assert 0 < sum(held.values()) <= read.numel() * read.element_size() + hidden + 100
                    runs.resume(pause)
                runs.advance(layer)
            torch.testing.assert_close(runs.logits(0), expected)
    assert len(pauses) == 4
