"""What the tests of exporting share: tiny models, their folders, and inputs; an export takes seconds."""

import hashlib

import pytest
import torch
from architectures import SHRINKABLE, batch, build, word_tokenizer

import hfcompress as hfc
from hfcompress.deploy.exported_model import ExportedModel
from hfcompress.deploy.folder import read_model_config, read_record
from hfcompress.deploy.formats import FORMATS
from hfcompress.deploy.openvino_model import convert

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

TOKENIZER = word_tokenizer(marked=True)
TEXTS = ["a good film", "not bad", "very very long plot", "film"]
needs_torch_export = pytest.mark.skipif(
    not hasattr(torch.export, "AdditionalInputs"), reason="torch.export of 2.6 fails on transformers 5"
)


def export(model, folder, **settings):
    return hfc.export(model, folder, processing_class=TOKENIZER, **({"repeats": 0} | settings))


def in_openvino(folder):
    """Return the ONNX model of a folder, converted for OpenVINO: an export without what takes seconds."""
    file = folder.parent / FORMATS["openvino"].graph
    convert(folder / FORMATS["onnx"].graph, file)
    return ExportedModel(file, read_model_config(folder, read_record(folder)), read_record(folder))


def inputs(examples=4, length=9, *, left=False, **settings):
    """A padded batch, on the left if asked."""
    data = batch(examples, length, **settings)
    data.pop("labels")
    return {name: value.flip(1) for name, value in data.items()} if left else data


@torch.no_grad()
def logits(model, data):
    return model.eval()(**data).logits


def shrunken(architecture, layers=3, **settings):
    """A classifier unevenly shrunk, with zeros."""
    model = build(architecture, layers=layers).eval()
    heads = {"heads": 0.4} if architecture in SHRINKABLE else {}
    hfc.prune_structured(model, **({"neurons": 0.4} | heads | settings))
    hfc.prune_global_l1(model, 0.3)
    return model


def exchange(folder, name, change):
    """Damage a model file of an exported folder, and write its new digest into the record."""
    content, path = (folder / name).read_bytes(), folder / "hfcompress_export.json"
    changed, record = change(content), path.read_text()
    digests = [hashlib.sha256(one).hexdigest() for one in (content, changed)]
    assert digests[0] in record
    (folder / name).write_bytes(changed)
    path.write_text(record.replace(*digests))
