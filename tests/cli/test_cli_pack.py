"""``hfcompress pack`` and ``unpack``, there and back."""

import pytest
import torch
from architectures import cached
from command_line import contents, load
from transformers import AutoTokenizer


@pytest.fixture
def packed(models, tmp_path, run):
    """A folder with ``pruned`` and ``packed``, and what pack printed."""
    run("prune", models / "bert", "--amount", 0.8, "-o", tmp_path / "pruned")
    return tmp_path, run("pack", tmp_path / "pruned", tmp_path / "packed", "--json")


def test_pack_reports_the_bytes_of_both_folders(packed):
    folder, found = packed
    before, after = ((folder / name / "model.safetensors").stat().st_size for name in ("pruned", "packed"))
    assert found["bytes_in_files"] == {"before": before, "after": after}
    assert after < before


def test_a_packed_folder_has_the_same_zeros(packed, run):
    report = run("report", packed[0] / "packed", "--json")
    assert report["sparsity"]["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_unpack_prints_the_bytes(packed, run):
    assert "MB before" in run("unpack", packed[0] / "packed", packed[0] / "plain")


def test_packed_and_unpacked_models_are_the_original(packed, run):
    folder = packed[0]
    run("unpack", folder / "packed", folder / "plain")
    original = list(load(folder / "pruned").parameters())
    for name in ("packed", "plain"):
        assert all(map(torch.equal, load(folder / name).parameters(), original))
        assert AutoTokenizer.from_pretrained(folder / name)("good film")["input_ids"] == [4, 3]


def test_unpack_takes_a_model_of_the_hub(packed, run, monkeypatch):
    folder = packed[0]
    run("unpack", folder / "packed", folder / "plain")
    cached(folder / "packed", folder / "hub", "me/packed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    run("unpack", "me/packed", folder / "from-hub")
    assert contents(folder / "from-hub") == contents(folder / "plain")


def test_a_refused_pack_writes_nothing(packed, run):
    folder = packed[0]
    before = contents(folder)
    run("pack", folder / "pruned", folder / "packed", status=2)
    assert "exists already" in run.error
    run("pack", folder / "nowhere", folder / "out", status=2)
    assert contents(folder) == before
