"""Hostile folders: each is refused in one sentence, or loads; none of their code runs and no huge tensor is made.

The fuzzer at the end has a long form: HFCOMPRESS_FUZZ=20000 python -m pytest tests/storage/attacks -k mutated
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
from architectures import build
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

import hfcompress as hfc
from hfcompress.storage.convert import unpack_folder
from hfcompress.storage.safetensors_file import read_shapes
from hfcompress.storage.sparse_codec import Packed, unpack

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


def split_header(path):
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path, header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def change_header(folder, change):
    path = folder / "model.safetensors"
    header, body = split_header(path)
    change(header)
    rewrite(path, header, body)


def change_json(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refused(folder, message):
    """Loading is refused, with the name of the file, and without much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(hfc.CompressionError, match=message) as caught:
        hfc.load_compressed(folder)
    assert str(folder) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_the_base_of_the_attacks_is_sound(folder):
    model = hfc.load_compressed(folder)
    assert hfc.sparsity_report(model).zeros
    assert f"{PACKED}.positions" in read_shapes(folder / "model.safetensors")


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
        f"{PACKED}' is damaged: the positions are not a multiple of 8 uint8",
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
    header, body = split_header(path)
    twice = json.dumps({"classifier.bias": header["classifier.bias"]})[1:-1]
    rewrite(path, (json.dumps(header)[:-1] + "," + twice + "}").encode(), body)
    refused(folder, "'classifier.bias' is in its header twice")


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
    "no plan": ({"quantization_config": None}, "not the plan in its config"),
    "another method": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "not of hfcompress"),
    "wider than its weights": (
        {"hidden_size": 64},
        r"mismatched keys, such as .*LayerNorm.* of shape \(32,\) .*\(64,\)",
    ),
    "a vocabulary of terabytes": ({"vocab_size": 10**11}, "describes a"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers=1,000,000,000 does not go with"),
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
    "a list of layers in the config": (
        "qwen2",
        {"num_hidden_layers": 10**6, "layer_types": None},
        "num_hidden_layers=1,000,000 does not go with",
    ),
    "loops in the constructor": ("albert", {"inner_group_num": 10**9}, "more than 1,[0-9]+ modules"),
    "another class's loops": (
        "bert",
        {"architectures": ["CanineForSequenceClassification"], "model_type": "canine", "num_hash_functions": 10**9},
        "more than 1,[0-9]+ modules",
    ),
}


@pytest.mark.parametrize("attack", DENSE)
def test_configs_of_dense_folders_must_fit_their_weights(attack, tmp_path):
    architecture, settings, message = DENSE[attack]
    hfc.save_compressed(build(architecture), tmp_path, sparse=False)
    change_json(tmp_path / "config.json", **settings)
    refused(tmp_path, message)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_devices_and_pipes_are_not_read(name, folder):
    (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")  # of no size, and without an end
    refused(folder, "is not a file")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, "is not a file")


def test_a_newer_plan_is_not_rewritten_as_an_older_one(folder, tmp_path):
    change_json(folder / "config.json", quantization_config=PLAN | {"version": 3, "groups": [1]})
    with pytest.raises(hfc.CompressionError, match="version 3"):
        unpack_folder(folder, tmp_path / "out")


def nested(value, levels):
    for _ in range(levels):
        value = [value]
    return value


LAYER = "bert.encoder.layer.0."
UP, DOWN = f"{LAYER}intermediate.dense", f"{LAYER}output.dense"
ENTRY = {"up": [UP], "down": DOWN, "width": 5}
NAMED = {  # neurons of version 2, which names their modules
    "up that does not exist": [ENTRY | {"up": ["bert.nowhere"]}],
    "down that does not exist": [ENTRY | {"down": "bert.nowhere"}],
    "an embedding": [ENTRY | {"up": ["bert.embeddings.word_embeddings"]}],
    "a norm": [ENTRY | {"down": f"{LAYER}output.LayerNorm"}],
    "the model itself as up": [ENTRY | {"up": [""]}],
    "the model itself as down": [ENTRY | {"down": ""}],
    "a container": [ENTRY | {"up": ["bert.encoder.layer"]}],
    "an activation": [ENTRY | {"up": [f"{LAYER}intermediate.intermediate_act_fn"]}],
    "a weight": [ENTRY | {"up": [f"{UP}.weight"]}],
    "no up": [ENTRY | {"up": []}],
    "up of a word": [ENTRY | {"up": UP}],
    "up of a dictionary": [ENTRY | {"up": {UP: 1}}],
    "up of nothing": [ENTRY | {"up": None}],
    "a list as down": [ENTRY | {"down": [DOWN]}],
    "no width": [{"up": [UP], "down": DOWN}],
    "width 0": [ENTRY | {"width": 0}],
    "a negative width": [ENTRY | {"width": -1}],
    "a width above the built one": [ENTRY | {"width": 33}],
    "a huge width": [ENTRY | {"width": 10**400}],
    "a width that is true": [ENTRY | {"width": True}],
    "a width with a fraction": [ENTRY | {"width": 5.0}],
    "a width that is not a number": [ENTRY | {"width": float("nan")}],
    "a list as width": [ENTRY | {"width": [5]}],
    "up narrower than down": [ENTRY | {"up": ["classifier"], "width": 1}],
    "ups of two widths": [ENTRY | {"up": [UP, "classifier"], "width": 1}],
    "the same up twice": [ENTRY | {"up": [UP, UP]}],
    "up and down the same": [{"up": ["bert.pooler.dense"], "down": "bert.pooler.dense", "width": 5}],
    "the same entry twice": [ENTRY, ENTRY],
    "the same module with two widths": [ENTRY, ENTRY | {"width": 9}],
    "the same down with another up": [ENTRY, ENTRY | {"up": ["bert.pooler.dense"]}],
    "entries and numbers": [ENTRY, 3],
    "numbers and entries": [3, ENTRY],
    "entries by name": {"0": ENTRY},
    "a word": "neurons",
    "a number": 5,
    "nothing": None,
    "a list of ten thousand": [ENTRY] * 10**4,
    "ten thousand ups": [ENTRY | {"up": [UP] * 10**4}],
    "an up of many levels": [ENTRY | {"up": nested(UP, 90)}],
    "an entry of many levels": nested(ENTRY, 90),
}


@pytest.mark.parametrize("attack", NAMED)
def test_plans_that_name_wrong_modules_are_refused(attack, folder):
    plan = {"quant_method": "hfcompress", "version": 2, "neurons": NAMED[attack]}
    change_json(folder / "config.json", quantization_config=plan)
    refused(folder, "neurons")
    with pytest.raises(hfc.CompressionError, match="neurons"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_plan_that_names_heads_is_refused(folder):
    change_json(folder / "config.json", quantization_config=PLAN | {"version": 2, "heads": [ENTRY]})
    refused(folder, "heads")


def test_a_plan_that_does_not_fit_the_weights_is_refused(folder):
    change_json(folder / "config.json", quantization_config=PLAN | {"version": 2, "neurons": [ENTRY]})
    refused(folder, r"mismatched keys, such as .* where the config describes")
    # By transformers from 5.23 on, by the quantizer before.
    with pytest.raises((RuntimeError, hfc.CompressionError), match="ignore_mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_plan_that_narrows_tied_weights_is_refused(folder):
    hfc.save_compressed(BertForMaskedLM(build("bert").config), folder)
    names = {"up": ["cls.predictions.transform.dense"], "down": "cls.predictions.decoder", "width": 5}
    change_json(folder / "config.json", quantization_config=PLAN | {"version": 2, "neurons": [names]})
    refused(folder, "neurons .*weight of its own")
    with pytest.raises(hfc.CompressionError, match=r"neurons .*weight of its own"):
        BertForMaskedLM.from_pretrained(folder)


@pytest.mark.parametrize("neurons", [5, None, "neurons", {"0": 1}, [None], [[5]]])
def test_a_plan_of_any_kind_can_be_copied_and_is_refused(neurons, folder, tmp_path):
    change_json(folder / "config.json", quantization_config=PLAN | {"neurons": neurons})
    with pytest.warns(UserWarning, match="still needs hfcompress"):
        unpack_folder(folder, tmp_path / "out")
    refused(tmp_path / "out", "neurons")


@pytest.mark.parametrize("key", ["self", "cls", "config_dict", "plan", "return_unused_kwargs"])
def test_no_key_of_a_plan_is_taken_for_an_argument(key, folder):
    plan = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_json(folder / "config.json", quantization_config=plan | {key: 1})
    assert hfc.load_compressed(folder).config.quantization_config["neurons"] == plan["neurons"]
    assert AutoModelForSequenceClassification.from_pretrained(folder) is not None


@pytest.mark.parametrize("levels", [120, 300, 900])
@pytest.mark.parametrize("where", ["version", "neurons", "other"])
def test_deep_plans_are_refused_before_anything_follows_them(where, levels, folder, tmp_path):
    change_json(folder / "config.json", quantization_config=PLAN | {where: nested(5, levels)})
    refused(folder, "nested more than 100 levels")
    with pytest.raises(hfc.CompressionError, match="nested more than 100 levels"):
        unpack_folder(folder, tmp_path / "out")


def test_a_deep_index_is_refused(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {PACKED: nested("model.safetensors", 900)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "nested more than 100 levels")


def test_links_out_of_a_folder_are_not_copied(folder, tmp_path):
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
def test_files_that_are_not_configs_are_refused(text, folder):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_a_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    refused(folder, "config.json cannot be read")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(hfc.CompressionError, match="neither a directory nor a model"):
        hfc.load_compressed(tmp_path / "nowhere")
    with pytest.raises(hfc.CompressionError, match="is not a directory"):
        unpack_folder(tmp_path / "nowhere", tmp_path / "out")


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


@pytest.fixture
def with_pickle(folder):
    """A folder with a pickle that opens a file when it is read."""

    class Evil:
        def __reduce__(self):
            return open, (str(folder.parent / "ran"), "w")

    torch.save({"classifier.bias": Evil()}, folder / "pytorch_model.bin")
    yield folder
    assert not (folder.parent / "ran").exists()


def test_a_pickle_beside_safetensors_is_ignored(with_pickle):
    assert hfc.load_compressed(with_pickle) is not None


def test_a_pickle_instead_of_safetensors_is_refused(with_pickle):
    (with_pickle / "model.safetensors").unlink()
    refused(with_pickle, "no safetensors weights")
    with pytest.raises(hfc.CompressionError, match="not a safetensors file"):
        AutoModelForSequenceClassification.from_pretrained(with_pickle)


def test_a_peft_adapter_is_not_loaded_as_a_model(folder):
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "PEFT adapter")
    (folder / "config.json").unlink()  # as PEFT saves it
    refused(folder, r"holds a PEFT adapter, not a model; load it with PEFT.*merge_and_unload")


def test_from_pretrained_refuses_damaged_positions_too(folder):
    change, message = HEADERS["exchanged positions"]
    change_header(folder, change)
    with pytest.raises(hfc.CompressionError, match=message):
        AutoModelForSequenceClassification.from_pretrained(folder)


def mutated(data, chance):
    """The bytes with a few of them changed, moved, repeated or removed, most often in the header."""
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


@pytest.mark.filterwarnings("ignore:.* still needs hfcompress to load:UserWarning")
def test_mutated_files_load_or_are_refused(sound, tmp_path):
    """Every mutation ends in a load or a CompressionError: no other exception, hang or crash."""
    rounds = int(os.environ.get("HFCOMPRESS_FUZZ", "150"))
    shutil.copytree(sound, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    intact, chance = path.read_bytes(), random.Random(0)
    loaded = refusals = 0
    for number in range(rounds):
        path.write_bytes(mutated(intact, chance))
        try:
            # Loading takes a hundred times as long as checking and unpacking: only now and then.
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
