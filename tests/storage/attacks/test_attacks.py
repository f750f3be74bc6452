"""Folders made by a stranger: each is refused with a sentence, or loads; nothing of theirs runs, nothing huge is made.

The fuzzer at the end has a long form: HFCOMPRESS_FUZZ=20000 python -m pytest tests/attacks -k mutated
"""

import json
import os
import random
import resource
import shutil
import struct
import zlib

import pytest
import torch

import hfcompress as hfc
from hfcompress.storage.convert import unpack_folder
from hfcompress.storage.safetensors_file import shapes_of
from hfcompress.storage.sparse_codec import Packed, unpack
from tests.architectures import build

PACKED = "bert.encoder.layer.0.output.dense.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A packed, unevenly shrunken model, sound."""
    folder = tmp_path_factory.mktemp("sound") / "model"
    model = build("bert", intermediate_size=32, vocab_size=20, max_position_embeddings=8).eval()
    hfc.prune_structured(model, neurons=0.3, round_to=1)
    hfc.prune_global_l1(model, 0.6)
    with torch.no_grad():
        model.get_parameter(PACKED).mul_(torch.rand(model.get_parameter(PACKED).shape) > 0.97)
    hfc.save_compressed(model, folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "model")
    return tmp_path / "model"


def header_of(path):
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path, header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def change_header(folder, change):
    path = folder / "model.safetensors"
    header, body = header_of(path)
    change(header)
    rewrite(path, header, body)


def change_json(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refused(folder, message):
    """Loading and unpacking are refused, with the file's name, and without much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(hfc.CompressionError, match=message) as caught:
        hfc.load_compressed(folder)
    assert str(folder) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_the_base_of_the_attacks_is_sound(folder):
    model = hfc.load_compressed(folder)
    assert hfc.sparsity_report(model).zeros
    assert f"{PACKED}.positions" in shapes_of(folder / "model.safetensors")


HEADERS = {
    "a longer shape": (lambda h: h[PACKED].update(shape=[h[PACKED]["shape"][0] + 1]), "cannot be read"),
    "another dtype": (lambda h: h[PACKED].update(dtype="F16"), "cannot be read"),
    "an unknown dtype": (lambda h: h[PACKED].update(dtype="F7"), "cannot be read"),
    "half the width and twice the values": (
        lambda h: h[PACKED].update(dtype="F16", shape=[2 * h[PACKED]["shape"][0]]),
        f"{PACKED}' is damaged: the positions name",
    ),
    "positions as numbers": (
        lambda h: h[f"{PACKED}.positions"].update(dtype="I64", shape=[h[f"{PACKED}.positions"]["shape"][0] // 8]),
        f"{PACKED}' is damaged: the positions are no uint8",
    ),
    "overlapping ranges": (
        lambda h: h["classifier.bias"].update(data_offsets=h["classifier.weight"]["data_offsets"]),
        "cannot be read",
    ),
    "a range beyond the end": (
        lambda h: h["classifier.bias"].update(data_offsets=[2**40, 2**40 + 8]),
        "cannot be read",
    ),
    "a negative range": (lambda h: h["classifier.bias"].update(data_offsets=[-8, 0]), "cannot be read"),
    "huge sizes": (lambda h: h["classifier.bias"].update(shape=[2**62, 4]), "cannot be read"),
    "values without positions": (lambda h: h.update({"x": h.pop(f"{PACKED}.positions")}), "mismatched keys"),
    "positions without values": (lambda h: h.update({"x": h.pop(PACKED)}), "has no values"),
    "exchanged positions": (
        lambda h: h.update(
            {
                f"{PACKED}.positions": h["bert.pooler.dense.weight.positions"],
                "bert.pooler.dense.weight.positions": h[f"{PACKED}.positions"],
            }
        ),
        "is damaged",
    ),
    "a newer version": (lambda h: h["__metadata__"].update(hfcompress="2"), "version '2'.*pip install -U"),
    "no version": (lambda h: h["__metadata__"].pop("hfcompress"), "no version of the format"),
    "a weight renamed": (
        lambda h: h.update({"classifier.weigth": h.pop("classifier.weight")}),
        "does not hold a Bert",
    ),
}


@pytest.mark.parametrize("attack", HEADERS)
def test_headers_that_lie_are_refused(attack, folder):
    change, message = HEADERS[attack]
    change_header(folder, change)
    refused(folder, message)


def test_duplicate_names_are_refused(folder):
    path = folder / "model.safetensors"
    header, body = header_of(path)
    twice = json.dumps({"classifier.bias": header["classifier.bias"]})[1:-1]
    rewrite(path, (json.dumps(header)[:-1] + "," + twice + "}").encode(), body)
    refused(folder, "'classifier.bias' stands twice")


@pytest.mark.parametrize("length", [0, 7, 2**33, 2**62, 2**64 - 1])
def test_headers_of_gigabytes_are_refused(length, folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(folder, "cannot be read")


@pytest.mark.parametrize("left", [0, 5, 8, 100, 3000, -1])
def test_truncated_files_are_refused(left, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    refused(folder, "cannot be read")


PLAN = {"quant_method": "hfcompress", "version": 1}
CONFIGS = {
    "heads that grow": (
        {"quantization_config": PLAN | {"heads": [99, 99]}},
        "heads",
    ),
    "a plan of other layers": ({"quantization_config": PLAN | {"neurons": [3]}}, "neurons"),
    "a plan of words": ({"quantization_config": PLAN | {"neurons": ["x", None]}}, "neurons"),
    "a newer plan": ({"quantization_config": PLAN | {"version": 99}}, "version"),
    "no plan": ({"quantization_config": None}, "does not say so"),
    "another method": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "not of hfcompress"),
    "wider than its weights": (
        {"hidden_size": 64},
        r"mismatched keys, such as .*LayerNorm.* of shape \(32,\) .*\(64,\)",
    ),
    "a vocabulary of terabytes": ({"vocab_size": 10**11}, "describes a"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "a model of more than 1,[0-9]+ parts"),
    "a billion labels": ({"num_labels": 10**9}, "1,000,000,000 labels"),
    "names of a million labels": ({"id2label": dict.fromkeys(range(10**6), "")}, "1,000,000 labels"),
    "a kernel from the hub": ({"attn_implementation": "stranger/kernel"}, "outside of the folder"),
    "weights elsewhere": ({"transformers_weights": "../../secret.safetensors"}, "outside of the folder"),
    "no such architecture": ({"model_type": "nothing", "architectures": ["os"]}, "cannot be loaded"),
    "numbers as words": ({"hidden_size": "many"}, "cannot be loaded"),
    "code of their own": (
        {
            "auto_map": {"AutoModelForSequenceClassification": "evil.Model"},
            "model_type": "evil",
            "architectures": ["Evil"],
        },
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("attack", CONFIGS)
def test_configs_that_lie_are_refused(attack, folder):
    settings, message = CONFIGS[attack]
    marker = folder.parent / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    change_json(folder / "config.json", **settings)
    refused(folder, message)
    assert not marker.exists()


DENSE = {
    "a vocabulary of gigabytes": ("bert", {"vocab_size": 3 * 10**7}, "describes a BertForSequenceClassification of"),
    "loops in the constructor": ("albert", {"inner_group_num": 10**9}, "more than 1,[0-9]+ parts"),
    "another class's loops": (
        "bert",
        {"architectures": ["CanineForSequenceClassification"], "model_type": "canine", "num_hash_functions": 10**9},
        "more than 1,[0-9]+ parts",
    ),
}


@pytest.mark.parametrize("attack", DENSE)
def test_configs_of_dense_folders_are_held_to_their_weights_too(attack, tmp_path):
    architecture, settings, message = DENSE[attack]
    hfc.save_compressed(build(architecture), tmp_path, sparse=False)
    change_json(tmp_path / "config.json", **settings)
    refused(tmp_path, message)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_what_is_no_file_is_not_read(name, folder):
    (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")  # of no size, and without an end
    refused(folder, "is no file")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, "is no file")


def test_a_newer_plan_is_not_rewritten_as_an_older_one(folder, tmp_path):
    change_json(folder / "config.json", quantization_config=PLAN | {"version": 3, "groups": [1]})
    with pytest.raises(hfc.CompressionError, match="version 3"):
        unpack_folder(folder, tmp_path / "out")


def test_links_out_of_a_folder_are_not_followed_into_a_copy(folder, tmp_path):
    (tmp_path / "secret").write_text("mine")
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(hfc.CompressionError, match=r"vocab\.txt is a link out of the folder"):
        unpack_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(2**63, 0), (2**40, 2**40, 0), (0,)])
def test_shapes_of_nothing_are_refused(shape):
    head = struct.pack(f"<BB6x{len(shape) + 1}Q", 0, len(shape), *shape, 8)
    stream = zlib.compress(b"")
    assert len(stream) == 8
    positions = torch.frombuffer(bytearray(head + stream), dtype=torch.uint8)
    with pytest.raises(hfc.CompressionError, match="cannot be of shape"):
        unpack(Packed(torch.empty(0), positions))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"a": ' * 50_000])
def test_configs_that_are_none_are_refused(text, folder):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_a_missing_config_or_folder_is_said(folder):
    (folder / "config.json").unlink()
    refused(folder, "config.json cannot be read")
    with pytest.raises(hfc.CompressionError, match="neither a folder here nor a model"):
        hfc.load_compressed(folder / "nowhere")
    with pytest.raises(hfc.CompressionError, match="is no folder"):
        unpack_folder(folder / "nowhere", folder / "out")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "model.safetensors/../../x", "evil.bin", ""])
def test_an_index_that_climbs_out_is_refused(name, folder):
    shutil.copy(folder / "model.safetensors", folder.parent / "secret.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {PACKED: name}}))
    refused(folder, "outside of itself")


def test_links_out_of_the_folder_are_refused(folder):
    shutil.move(folder / "model.safetensors", folder.parent / "secret.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "secret.safetensors")
    refused(folder, "outside of itself")


def test_pickles_are_never_read(folder):
    class Evil:
        def __reduce__(self):
            return open, (str(folder.parent / "ran"), "w")

    torch.save({"classifier.bias": Evil()}, folder / "pytorch_model.bin")
    assert hfc.load_compressed(folder) is not None  # there is a safetensors file too, so the other is ignored
    (folder / "model.safetensors").unlink()
    refused(folder, "no safetensors weights")
    from transformers import AutoModelForSequenceClassification

    with pytest.raises(hfc.CompressionError, match="no safetensors file"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert not (folder.parent / "ran").exists()


def test_an_adapter_is_not_mistaken_for_a_model(folder):
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "PEFT adapter")


def test_plain_from_pretrained_refuses_damaged_positions_in_the_same_words(folder):
    from transformers import AutoModelForSequenceClassification

    change, message = HEADERS["exchanged positions"]
    change_header(folder, change)
    with pytest.raises(hfc.CompressionError, match=message):
        AutoModelForSequenceClassification.from_pretrained(folder)


def mutated(data, chance):
    """The bytes with a few of them changed, moved, repeated or gone, most often in the header."""
    data = bytearray(data)
    (length,) = struct.unpack_from("<Q", data)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(len(data) if chance.random() < 0.5 else min(len(data), 8 + length))
        kind = chance.randrange(6)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[at : at + chance.randrange(1, 9)] = b""
        elif kind == 3:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9)))
        elif kind == 4:
            digits = [i for i in range(8, min(len(data), 8 + length)) if chr(data[i]).isdigit()]
            data[chance.choice(digits)] = ord(chance.choice("0123456789"))
        else:
            other = chance.randrange(len(data))
            data[at : at + 8] = data[other : other + 8]
        if len(data) < 8:
            break
    return bytes(data)


def test_mutated_files_load_or_are_refused(sound, tmp_path):
    """Every mutation ends in a load or a CompressionError: no other exception, hang or crash."""
    rounds = int(os.environ.get("HFCOMPRESS_FUZZ", "150"))
    shutil.copytree(sound, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    whole, chance = path.read_bytes(), random.Random(0)
    loaded = refusals = 0
    for number in range(rounds):
        path.write_bytes(mutated(whole, chance))
        try:
            # A whole load takes a hundred times as long as the checks and the unpacking alone: now and then.
            if number % 10 == 0:
                hfc.load_compressed(tmp_path / "model")
            else:
                unpack_folder(tmp_path / "model", tmp_path / "out")
            loaded += 1
        except hfc.CompressionError:
            refusals += 1
    assert loaded + refusals == rounds
    assert loaded > rounds // 100
    assert refusals > rounds // 4
