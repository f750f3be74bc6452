"""pack_folder and unpack_folder."""

import json

import pytest
from architectures import build, same_bits
from model_folders import plain, pruned, stored_tensors

import hfcompress as hfc
from hfcompress.storage.convert import pack_folder, unpack_folder


@pytest.fixture
def folders(tmp_path):
    """A dense folder with shards, its packed copy, and the unpacked copy of that."""
    model = pruned(amount=0.8)
    dense, small, again = (tmp_path / name for name in ("dense", "small", "again"))
    model.save_pretrained(dense, max_shard_size="40KB")
    (dense / "notes.txt").write_text("mine")
    pack_folder(dense, small)
    unpack_folder(small, again)
    return dense, small, again


def test_a_packed_copy_is_smaller_and_loads_bit_for_bit(folders):
    dense, small, _ = folders
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (small, dense)]
    assert sizes[0] < sizes[1]
    assert same_bits(plain(small).state_dict(), plain(dense).state_dict())


def test_a_link_to_a_directory_stays_one(folders, tmp_path):
    dense = folders[0]
    (dense / "checkpoint-5").mkdir()
    (dense / "checkpoint-5" / "notes.txt").write_text("kept")
    (dense / "latest").symlink_to("checkpoint-5", target_is_directory=True)
    pack_folder(dense, tmp_path / "linked")
    assert (tmp_path / "linked" / "latest").is_symlink()
    assert (tmp_path / "linked" / "latest" / "notes.txt").read_text() == "kept"


def test_an_unpacked_copy_of_a_packed_copy_is_the_original(folders):
    dense, _, again = folders
    assert same_bits(stored_tensors(again), stored_tensors(dense))
    for name in ("config.json", "model.safetensors.index.json"):
        one, other = (json.loads((folder / name).read_text()) for folder in (again, dense))
        assert one.get("weight_map") == other.get("weight_map")
        assert name != "config.json" or one == other
    assert (again / "notes.txt").read_text() == "mine"


def test_a_copy_has_the_subfolders_too(tmp_path):
    hfc.save_compressed(pruned(), tmp_path / "model")
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text("{}")
    unpack_folder(tmp_path / "model", tmp_path / "plain")
    assert (tmp_path / "plain" / "1_Pooling" / "config.json").read_text() == "{}"


@pytest.mark.parametrize("copy", [pack_folder, unpack_folder])
def test_a_copy_lists_the_labels_in_their_order(copy, tmp_path):
    build("bert", 12).save_pretrained(tmp_path / "model")
    copy(tmp_path / "model", tmp_path / "copy")
    assert list(plain(tmp_path / "copy").config.id2label) == list(range(12))
