"""Folders loaded in a process in which hfcompress cannot be imported, and then can."""

import subprocess
import sys

import pytest
import torch
from architectures import batch, build

from hfcompress import prune_global_l1, prune_structured, save_compressed
from hfcompress.storage.convert import unpack_folder

LOAD = """
import sys
sys.modules["hfcompress"] = None
import torch
from transformers import AutoModelForSequenceClassification

folder, found, inputs = sys.argv[1], {}, torch.load(f"{sys.argv[1]}/inputs.pt")

def run(name, when):
    try:
        model = AutoModelForSequenceClassification.from_pretrained(f"{folder}/{name}").eval()
    except Exception as error:
        found[name, when] = f"{type(error).__name__}: {error}"
    else:
        found[name, when] = model(**inputs).logits

for name in sys.argv[2:]:
    run(name, "without")
del sys.modules["hfcompress"]
import hfcompress
for name in sys.argv[2:]:
    run(name, "with")
torch.save(found, f"{folder}/found.pt")
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Logits or errors of each folder without hfcompress and with it, and the logits that are expected."""
    folder = tmp_path_factory.mktemp("models")
    zeros, uneven, even = build("bert"), build("bert", layers=3), build("llama", layers=3)
    prune_global_l1(zeros, 0.5)
    prune_structured(uneven, heads=0.5, neurons=0.4)
    prune_structured(even, heads=0.5, neurons=0.5, scope="layer")
    models = {"packed": zeros, "unpacked": zeros, "uneven": uneven, "even": even}
    save_compressed(zeros, folder / "packed")
    unpack_folder(folder / "packed", folder / "unpacked")
    uneven.save_pretrained(folder / "uneven")
    even.save_pretrained(folder / "even")
    inputs = batch(4)
    torch.save(inputs, folder / "inputs.pt")
    command = [sys.executable, "-c", LOAD, str(folder), *models]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with torch.no_grad():
        expected = {(name, "expected"): model.eval()(**inputs).logits for name, model in models.items()}
    return torch.load(folder / "found.pt") | expected | {"stderr": done.stderr}


@pytest.mark.parametrize("name", ["unpacked", "even"])
def test_a_plain_folder_loads_without_hfcompress(name, found):
    assert torch.equal(found[name, "without"], found[name, "expected"])


def test_an_uneven_folder_is_refused_without_hfcompress(found):
    assert "mismatch" in found["uneven", "without"] + found["stderr"]


def test_a_packed_folder_is_refused_without_hfcompress(found):
    assert isinstance(found["packed", "without"], str)


@pytest.mark.parametrize("name", ["packed", "unpacked", "uneven", "even"])
def test_every_folder_loads_after_importing_hfcompress(name, found):
    assert torch.equal(found[name, "with"], found[name, "expected"])


def test_unpacking_warns_where_a_plan_is_still_needed(tmp_path):
    model = build("bert", layers=3)
    prune_structured(model, heads=0.5, neurons=0.4)
    save_compressed(model, tmp_path / "packed")
    with pytest.warns(UserWarning, match=r"still needs hfcompress.*heads and neurons.*plain=True"):
        unpack_folder(tmp_path / "packed", tmp_path / "unpacked")
