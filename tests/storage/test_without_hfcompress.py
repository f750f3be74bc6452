"""Folders in a process where hfcompress cannot be imported, and then can."""

import subprocess
import sys

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

def answer(name, when):
    try:
        model = AutoModelForSequenceClassification.from_pretrained(f"{folder}/{name}").eval()
    except Exception as error:
        found[name, when] = f"{type(error).__name__}: {error}"
    else:
        found[name, when] = model(**inputs).logits

for name in sys.argv[2:]:
    answer(name, "without")
del sys.modules["hfcompress"]
import hfcompress
for name in sys.argv[2:]:
    answer(name, "with")
torch.save(found, f"{folder}/found.pt")
"""


def test_packed_and_uneven_folders_are_refused_all_others_load_and_after_importing_it_every_one_does(tmp_path):
    zeros, uneven, even = build("bert"), build("bert", layers=3), build("llama", layers=3)
    prune_global_l1(zeros, 0.5)
    prune_structured(uneven, heads=0.5, neurons=0.4)
    prune_structured(even, heads=0.5, neurons=0.5, scope="layer")
    models = {"packed": zeros, "unpacked": zeros, "uneven": uneven, "even": even}
    save_compressed(zeros, tmp_path / "packed")
    unpack_folder(tmp_path / "packed", tmp_path / "unpacked")
    uneven.save_pretrained(tmp_path / "uneven")
    even.save_pretrained(tmp_path / "even")
    inputs = batch(4)
    torch.save(inputs, tmp_path / "inputs.pt")
    command = [sys.executable, "-c", LOAD, str(tmp_path), *models]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = torch.load(tmp_path / "found.pt")
    for name, model in models.items():
        with torch.no_grad():
            expected = model.eval()(**inputs).logits
        assert torch.equal(found[name, "with"], expected), name
        if name in ("unpacked", "even"):
            assert torch.equal(found[name, "without"], expected), name
    assert "mismatch" in found["uneven", "without"] + done.stderr
    assert isinstance(found["packed", "without"], str)
