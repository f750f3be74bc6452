"""Pruned models in folders, and what is in the files: shared by the tests of storage and of atomic folders."""

from architectures import build
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import hfcompress as hfc


def pruned(architecture="bert", amount=0.5, **options):
    """Return a random classifier in eval mode, with this fraction of its prunable weights zero."""
    model = build(architecture, **options).eval()
    hfc.prune_global_l1(model, amount)
    return model


def plain(folder, **options):
    """Load a classifier with from_pretrained of transformers."""
    return AutoModelForSequenceClassification.from_pretrained(folder, **options)


def stored_tensors(folder):
    """Return every tensor as it is in the safetensors files, by name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def file_bytes(folder):
    """Return the bytes of every file in a folder, by path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
