"""`import hfcompress` is light, and its lazy names are there whatever was imported before."""

import inspect
import subprocess
import sys

import pytest
import transformers

import hfcompress as hfc

FRESH = """
import sys
import torch, transformers.modeling_utils
before = set(sys.modules)
import hfcompress
heavy = {"transformers.trainer", "torch_pruning", "datasets"} & set(sys.modules)
assert not heavy, heavy
others = {name.partition(".")[0] for name in set(sys.modules) - before} - {"hfcompress"} - sys.stdlib_module_names
assert not others - {"torch", "transformers", "safetensors"}, others
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
assert "hfcompress" in AUTO_QUANTIZER_MAPPING
"""


def test_a_fresh_import_is_light_and_registers_the_loader():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_what_it_says():
    for name in hfc.__all__:
        if name != "__version__":
            one = getattr(hfc, name)
            assert inspect.isclass(one) or inspect.isfunction(one), name
            assert one.__name__ == name
            assert one.__module__.startswith("hfcompress.")
    assert set(hfc.__all__) <= set(dir(hfc))
    everything = {}
    exec("from hfcompress import *", everything)
    assert set(hfc.__all__) <= set(everything)


def test_the_public_modules_are_attributes():
    assert hfc.losses.label_loss.__module__ == "hfcompress.losses"
    assert hfc.importance.__name__ == "hfcompress.importance"


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(hfc, "prune_globally")
    with pytest.raises(ImportError, match="cannot import name 'prune_globally'"):
        exec("from hfcompress import prune_globally")


def test_a_public_name_can_be_replaced(monkeypatch):
    monkeypatch.setattr(hfc, "measure", 3)
    assert hfc.measure == 3
    monkeypatch.undo()
    assert inspect.isfunction(hfc.measure)


def test_the_loader_is_registered_once():
    assert "hfcompress" in transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING
