"""What the tests of exporting share: tiny models, their folders, and inputs; an export takes seconds."""

import pytest
import torch
from architectures import batch, build, word_tokenizer

import hfcompress as hfc

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

TOKENIZER = word_tokenizer(marked=True)
TEXTS = ["a good film", "not bad", "very very long plot", "film"]
needs_torch_export = pytest.mark.skipif(
    not hasattr(torch.export, "AdditionalInputs"), reason="torch.export of 2.6 fails on transformers 5"
)


def export(model, folder, **settings):
    return hfc.export(model, folder, processing_class=TOKENIZER, **({"repeats": 0} | settings))


def inputs(examples=4, length=9, *, left=False, **settings):
    """A padded batch, on the left if asked."""
    data = batch(examples, length, **settings)
    data.pop("labels")
    return {name: value.flip(1) for name, value in data.items()} if left else data


@torch.no_grad()
def logits(model, data):
    return model.eval()(**data).logits


def shrunken(architecture, **settings):
    """A classifier unevenly shrunk, with zeros."""
    model = build(architecture, layers=3).eval()
    hfc.prune_structured(model, **({"heads": 0.4, "neurons": 0.4} | settings))
    hfc.prune_global_l1(model, 0.3)
    return model
