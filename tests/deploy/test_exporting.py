"""hfc.export to ONNX Runtime in float32: the logits, the folder, and what is refused with nothing written."""

import copy
import errno
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec

import numpy as np
import onnx
import peft
import pytest
import torch
from architectures import EOS, LONG, PAD, WITH_NEURONS, build, same_bits, state_of, word_tokenizer
from exports import TEXTS, TOKENIZER, exchange, export, in_openvino, inputs, logits, needs_torch_export, shrunken
from tokenizer_kinds import make_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForTokenClassification,
    BertModel,
    BigBirdConfig,
    BigBirdForSequenceClassification,
)

import hfcompress as hfc
from hfcompress.deploy import exporting

pytestmark = needs_torch_export
NOT_EXPORTED = "funnel"  # it computes with the length outside of tensors
EXPORTED = [name for name in WITH_NEURONS if name not in (NOT_EXPORTED, "bert")]
# One of a kind, all others with HYPOTHESIS_PROFILE=long: an export takes 3 to 8 seconds. Causal with gates, rotated
# positions and shared keys, an encoder-decoder with biases for distances, relative attention, a mask of real numbers.
# GPT-2, ALBERT, Qwen2 and ModernBERT are exported by the tests of OpenVINO and of equalized channels.
SAMPLE = ("llama", "t5", "deberta-v2", "xlnet")


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A BERT in bfloat16, unevenly shrunk and with zeros; its state and config before; its folder and report."""
    model = shrunken("bert").bfloat16().train()
    before, config, folder = state_of(model), model.config.to_dict(), tmp_path_factory.mktemp("half") / "onnx"
    report = export(model, folder)
    return model, before, config, folder, report


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# Logits


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 7), (5, 33), (3, 64)])
def test_logits_are_those_of_the_float32_copy(shape, left, half):
    model, *_, folder, _ = half
    data = inputs(*shape, left=left) if shape != (1, 1) else {"input_ids": torch.tensor([[7]])}
    found = hfc.load_exported(folder)(**data).logits
    assert found.dtype == torch.float32
    close(found, logits(copied(model), data))


def copied(model):
    return copy.deepcopy(model).float()


def test_token_types_are_read(half):
    model, *_, folder, _ = half
    data = inputs(3, 8)
    data["token_type_ids"] = (torch.arange(8) > 3).long().expand(3, 8)
    exported = hfc.load_exported(folder)
    close(exported(**data).logits, logits(copied(model), data))
    assert not torch.equal(exported(**data).logits, exported(**inputs(3, 8)).logits)


@pytest.mark.parametrize("architecture", EXPORTED if LONG else SAMPLE)
def test_an_architecture_is_exported(architecture, tmp_path):
    model = shrunken(architecture, layers=2 if architecture in ("gpt2", "modernbert") else 1)
    report = export(model, tmp_path / "onnx")
    assert report.difference < 1e-4
    runtimes = [hfc.load_exported(tmp_path / "onnx")]
    if find_spec("openvino") is not None:
        runtimes.append(in_openvino(tmp_path / "onnx"))
    for shape in ((1, 5), (4, 6), (2, 33)):
        expected = logits(model, inputs(*shape))
        assert len({tuple(row) for row in expected.tolist()}) == len(expected)
        for exported in runtimes:
            close(exported(**inputs(*shape)).logits, expected)


def test_the_model_is_not_changed(half):
    model, before, config, *_ = half
    assert same_bits(before, model.state_dict())
    assert model.config.to_dict() == config
    assert model.training


@pytest.mark.parametrize("kernels", ["flex_attention", "flash_attention_2"])
def test_other_kernels_of_attention_are_exported_from_a_copy_without_them(kernels, tmp_path):
    model = build("modernbert").eval()
    expected = logits(model, inputs(3, 9))
    model.config._attn_implementation = kernels
    export(model, tmp_path / "onnx")
    assert model.config._attn_implementation == kernels
    close(hfc.load_exported(tmp_path / "onnx")(**inputs(3, 9)).logits, expected)


# The folder


def test_the_folder_has_model_config_tokenizer_card_and_record(half):
    *_, folder, report = half
    names = {path.name for path in folder.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "README.md", "hfcompress_export.json"} <= names
    record = json.loads((folder / "hfcompress_export.json").read_text())
    assert record["dtype"] == "float32"
    assert set(record["files"]) == names - {"hfcompress_export.json"}
    assert report.bytes[1] == hfc.load_exported(folder).stored_bytes == (folder / "model.onnx").stat().st_size
    assert AutoConfig.from_pretrained(folder).num_labels == 2
    assert AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"] == TOKENIZER(TEXTS)["input_ids"]


def test_the_model_file_names_nothing_of_this_machine(half):
    content = (half[3] / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert os.getcwd().encode() not in content


def test_config_json_names_every_label(half):
    assert json.loads((half[3] / "config.json").read_text())["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}


SERVE = "import sys\nfor name in ('torch', 'transformers', 'hfcompress'):\n    sys.modules[name] = None\n"


def test_the_lines_of_the_card_serve_it_alone(half, tmp_path):
    model, *_, folder, _ = half
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = code.replace('["a text", "another text"]', repr(TEXTS))
    code += f"np.save({str(tmp_path / 'logits.npy')!r}, logits)\n"
    done = subprocess.run([sys.executable, "-c", SERVE + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = logits(copied(model), TOKENIZER(TEXTS, padding=True, return_tensors="pt"))
    close(torch.from_numpy(np.load(tmp_path / "logits.npy")), expected)
    assert done.stdout.strip() == str([f"LABEL_{index}" for index in expected.argmax(-1).tolist()])


def test_the_card_has_the_padding_and_the_limit(half):
    card = (half[3] / "README.md").read_text()
    assert f'enable_padding(direction="right", pad_id={PAD}, pad_token="[PAD]")' in card
    assert 'enable_truncation(max_length=32, direction="right")' in card


@pytest.mark.filterwarnings("ignore")  # of a file that the lines leave open
def test_the_card_encodes_texts_as_the_tokenizer_does(half, tmp_path, monkeypatch):
    """Also pairs, where that makes no token types, as in ALBERT's of transformers 5; and the end of a long text."""
    tokenizer = word_tokenizer(marked=True)
    tokenizer.model_input_names, tokenizer.truncation_side = ["input_ids", "attention_mask"], "left"
    pairs = [("good", "film"), ("not bad", "plot")]
    assert "token_type_ids" not in tokenizer(*pairs[0])
    graph = onnx.load(half[3] / "model.onnx")
    monkeypatch.setattr(exporting, "build_graph", lambda *arguments: graph)
    hfc.export(half[0], tmp_path / "onnx", processing_class=tokenizer, repeats=0)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "onnx" / "README.md").read_text(), re.DOTALL)
    assert 'enable_truncation(max_length=32, direction="left")' in code
    code = code.replace('["a text", "another text"]', repr(pairs)).replace(
        'folder = "."', f"folder = {str(tmp_path / 'onnx')!r}"
    )
    found = {}
    exec(code, found)
    firsts, seconds = zip(*pairs, strict=True)
    data = tokenizer([*firsts], [*seconds], padding=True, return_tensors="pt")
    close(torch.from_numpy(found["logits"]), logits(copied(half[0]), data))


def test_attention_that_turns_to_another_is_refused(tmp_path):
    config = BigBirdConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=90
    )
    with pytest.raises(hfc.CompressionError, match="attention_type='block_sparse' turns to another attention"):
        export(BigBirdForSequenceClassification(config), tmp_path / "onnx")


def test_labels_without_a_meaning_are_refused_before_the_export(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "build_graph", None)
    model = build(layers=1)
    model.config.id2label, model.config.label2id = {0: "a", 1: "b"}, {"b": 0, "a": 1}
    with pytest.raises(hfc.CompressionError, match="labels"):
        export(model, tmp_path / "onnx")
    rows = [{"input_ids": [2, 3], ("labels" if n % 2 else "label"): 1} for n in range(8)]
    with pytest.raises(hfc.CompressionError, match="Some rows of dataset have 'labels' and others 'label'"):
        export(build(layers=1), tmp_path / "onnx", dtype="int8", dataset=rows)


# Refusals


@pytest.fixture
def folder(half, tmp_path):
    """A copy of the exported folder, to be damaged."""
    made = tmp_path / "onnx"
    made.mkdir()
    for path in half[3].iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    return made


def damage(name, change):
    def apply(folder):
        path = folder / name
        content = change(path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)

    return apply


def exchange_model(change):
    return lambda folder: exchange(folder, "model.onnx", change)


DAMAGED = {
    "truncated": (damage("model.onnx", lambda content: content[: len(content) // 2]), "truncated"),
    "another byte": (
        damage("model.onnx", lambda c: c[:-99] + bytes([c[-99] ^ 1]) + c[-98:]),
        "model.onnx is not the file that was written",
    ),
    "no graph": (exchange_model(lambda content: bytes(len(content))), "cannot be run by ONNX Runtime"),
    "an operator that it lacks": (
        exchange_model(lambda content: content.replace(b"LayerNormalization", b"LayerNormalizatiox")),
        "cannot be run by ONNX Runtime .*LayerNormalizatiox",
    ),
    "no model": (damage("model.onnx", lambda content: None), "model.onnx is missing"),
    "no config": (damage("config.json", lambda content: None), "config.json is missing"),
    "no json": (damage("config.json", lambda content: content[:20]), "config.json cannot be read"),
    "of a list": (damage("config.json", lambda content: b"[]"), "config.json cannot be read"),
    "of another type": (damage("config.json", lambda c: c.replace(b'"bert"', b'"roberta"')), "of another model"),
    "of other words": (damage("config.json", lambda c: c.replace(b'size": 100', b'size": 99')), "of another model"),
    "of other layers": (
        damage("config.json", lambda c: c.replace(b'num_hidden_layers": 3', b'num_hidden_layers": 4')),
        "of another model: its num_hidden_layers is 4",
    ),
    "of other classes": (
        damage("config.json", lambda c: c.replace(b'"1": "LABEL_1"', b'"1": "LABEL_1", "2": "x"')),
        "of another model",
    ),
    "no tokenizer": (damage("tokenizer.json", lambda content: None), "tokenizer.json is missing"),
    "no record": (damage("hfcompress_export.json", lambda content: None), "hfcompress did not export it"),
    "half a record": (damage("hfcompress_export.json", lambda content: content[:30]), "cannot be read"),
    "of another format": (
        damage("hfcompress_export.json", lambda c: c.replace(b'"format": "onnx"', b'"format": "openvino"')),
        "hfcompress_export.json cannot be read",
    ),
    "of no format": (
        damage("hfcompress_export.json", lambda c: c.replace(b'"format": "onnx"', b'"format": "x"')),
        "hfcompress_export.json cannot be read",
    ),
    "of the future": (
        damage("hfcompress_export.json", lambda c: c.replace(b'"version": 2', b'"version": 3')),
        r"json is of version 3; this hfcompress reads 2\. Update hfcompress\.$",
    ),
    "of the past": (
        damage("hfcompress_export.json", lambda c: c.replace(b'"version": 2', b'"version": 1')),
        r"json is of version 1; this hfcompress reads 2\. Export the model again\.$",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_refused_in_a_sentence(case, folder):
    apply, message = DAMAGED[case]
    apply(folder)
    with pytest.raises(hfc.CompressionError, match=message) as refused:
        hfc.load_exported(folder)
    assert str(folder) in str(refused.value)


def test_labels_may_be_renamed(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("LABEL_1", "positive"))
    assert hfc.load_exported(folder).config.id2label[1] == "positive"


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(hfc.CompressionError, match="is not a directory"):
        hfc.load_exported(tmp_path / "nowhere")


INPUTS = {
    "too long": (lambda: inputs(2, 65), r"65 tokens, and .*model\.onnx reads 1 to 64; truncate"),
    "no ids": (lambda: {"attention_mask": torch.ones(1, 4)}, "input_ids must be among them"),
    "unknown": (lambda: inputs() | {"labels": torch.zeros(4, 9)}, "not labels"),
    "other shapes": (lambda: inputs() | {"attention_mask": torch.ones(4, 8)}, "must be of one shape"),
    "empty": (lambda: {"input_ids": torch.zeros(1, 0)}, "must be of one shape"),
    "one text": (lambda: {"input_ids": torch.zeros(4)}, "must be of one shape"),
    "lists": (lambda: {"input_ids": [[5, 6], [5]]}, "call the tokenizer with padding=True and return_tensors='pt'"),
    "no such token": (lambda: {"input_ids": torch.full((1, 3), 100)}, "input_ids has 100; .* knows 0 to 99"),
    "below zero": (lambda: {"input_ids": torch.full((1, 3), -1)}, "input_ids has -1; .* knows 0 to 99"),
    "no such type": (lambda: inputs() | {"token_type_ids": torch.full((4, 9), 2)}, "token_type_ids has 2"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_unusable_inputs_are_refused(case, half):
    make, message = INPUTS[case]
    with pytest.raises(hfc.CompressionError, match=message):
        hfc.load_exported(half[3])(**make())


@pytest.mark.parametrize("ends", [(1, 3), (2, 0), (0, 0)])
def test_texts_with_other_numbers_of_ends_are_refused(ends, ended):
    ids = torch.tensor([[5, 6, 7][: 3 - count] + [EOS] * count for count in ends])
    with pytest.raises((ValueError, IndexError), match=r"<eos> token|index"):
        ended[0](input_ids=ids)
    with pytest.raises(hfc.CompressionError, match=f"have {min(ends)} to {max(ends)} of the token {EOS}"):
        ended[1](input_ids=ids)
    for row in ids if all(ends) else ():
        close(ended[1](input_ids=row[None]).logits, logits(ended[0], {"input_ids": row[None]}))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A BART, and what it is exported to."""
    model, folder = build("bart", layers=1).eval(), tmp_path_factory.mktemp("ended") / "onnx"
    export(model, folder)
    return model, hfc.load_exported(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_refused_export_names_the_model_and_writes_nothing(folder):
    before = contents(folder)
    with pytest.raises(hfc.CompressionError, match=r"FunnelFor.* cannot be exported: .* texts of 12 tokens") as refused:
        export(build(NOT_EXPORTED), folder)
    assert len(str(refused.value)) < 600
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["onnx"]


def test_an_operator_that_the_runtime_lacks_is_refused(half, folder, monkeypatch):
    before, graph = contents(folder), onnx.load(half[3] / "model.onnx")
    next(node for node in graph.graph.node if node.op_type == "LayerNormalization").op_type = "Gulp"
    monkeypatch.setattr(exporting, "build_graph", lambda *arguments: graph)
    with pytest.raises(hfc.CompressionError, match=r"BertFor.* cannot be exported: .*ONNX Runtime .*Gulp") as refused:
        export(half[0], folder)
    assert "work-" not in str(refused.value)
    assert contents(folder) == before


def test_a_folder_of_a_torch_model_is_not_replaced(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(hfc.CompressionError, match="holds a model of torch"):
        export(model, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["model.onnx", "model_quantized.onnx", "openvino_model.xml", "tf_model.h5"])
def test_a_folder_of_another_tool_is_not_replaced(name, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("the model")
    before = contents(tmp_path)
    with pytest.raises(hfc.CompressionError, match=rf"holds a model of another tool \({name}\)"):
        export(build(layers=1), tmp_path)
    assert contents(tmp_path) == before


def test_what_another_tool_wrote_beside_an_exported_model_stays(folder, half):
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (folder / name).write_text("the model")
    before = contents(folder)
    with pytest.raises(hfc.CompressionError, match=r"holds a model of another tool \(openvino_model\.bin\)"):
        export(half[0], folder)
    assert contents(folder) == before


def test_an_older_export_is_replaced_with_its_files(folder, half, monkeypatch):
    graph = onnx.load(half[3] / "model.onnx")
    (folder / "notes.txt").write_text("mine")
    record = json.loads((folder / "hfcompress_export.json").read_text())
    (folder / "old.json").write_text("of a tokenizer that there was")
    record["files"]["old.json"] = 29
    (folder / "hfcompress_export.json").write_text(json.dumps(record))
    monkeypatch.setattr(exporting, "build_graph", lambda *arguments: graph)
    export(half[0], folder)
    names = {one.name for one in folder.iterdir()}
    assert "notes.txt" in names
    assert "old.json" not in names
    assert hfc.load_exported(folder).dtype == "float32"


def quantized(model):
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})


def unpadded():
    model = build("gpt2")
    model.config.pad_token_id = None
    return model


UNUSABLE = {
    "no model": (lambda: torch.nn.Linear(2, 2), {}, "Linear is not a Hugging Face model"),
    "no tokenizer": (build, {"processing_class": None}, "processing_class=None is not a tokenizer"),
    "no padding": (unpadded, {"processing_class": word_tokenizer()}, "padding token"),
    "no values": (lambda: build().to("meta"), {}, "meta device"),
    "format": (build, {"format": "tflite"}, "format='tflite' is unknown"),
    "dtype": (build, {"dtype": "int4"}, "dtype='int4' is unknown"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_makes_no_sense_is_refused(case, tmp_path):
    make, settings, message = UNUSABLE[case]
    settings = {"processing_class": TOKENIZER} | settings
    if case == "no padding":
        settings["processing_class"].pad_token = None
    with pytest.raises(hfc.CompressionError, match=message):
        hfc.export(make(), tmp_path / "onnx", **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_a_quantized_model_is_refused_by_name(tmp_path):
    with pytest.raises(hfc.CompressionError, match="is quantized"):
        export(quantized(build()), tmp_path / "onnx")


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig", "LoraConfig"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_adapters_and_prompts_are_refused(kind, wrapped, tmp_path):
    virtual = {} if kind == "LoraConfig" else {"num_virtual_tokens": 3}
    model = peft.get_peft_model(build(layers=1), getattr(peft, kind)(task_type="SEQ_CLS", **virtual))
    message = "merge it first" if kind == "LoraConfig" else rf"has a prompt of PEFT \({kind}\).*train LoRA instead"
    with pytest.raises(hfc.CompressionError, match=message):
        export(torch.nn.DataParallel(model) if wrapped else model, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def ending_texts():
    """A tokenizer that ends each text with the token that it pads with."""
    tokenizer = make_tokenizer("wordpiece")
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def llama_without_pad_id(tokenizer):
    model = build("llama", layers=1, vocab_size=len(tokenizer)).eval()
    model.config.pad_token_id = None
    return model


def test_padding_that_ends_texts_is_refused_where_the_model_has_none(tmp_path):
    tokenizer = ending_texts()
    model = llama_without_pad_id(tokenizer)
    with pytest.raises(hfc.CompressionError, match=r"has no pad_token_id, and the tokenizer pads with '</s>'.*=2 if"):
        hfc.export(model, tmp_path / "onnx", processing_class=tokenizer, repeats=0)
    assert list(tmp_path.iterdir()) == []
    model.config.pad_token_id = tokenizer.pad_token_id
    hfc.export(model, tmp_path / "onnx", processing_class=tokenizer, repeats=0)
    texts = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    close(hfc.load_exported(tmp_path / "onnx")(**texts).logits, logits(model, texts))


def test_rows_that_end_with_the_padding_of_a_model_without_any_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "build_graph", None)
    model, rows = llama_without_pad_id(TOKENIZER), [{"input_ids": [5, 6]}, {"input_ids": [5, PAD]}]
    with pytest.raises(hfc.CompressionError, match=r"the tokenizer pads with '\[PAD\]', which ends texts too"):
        export(model, tmp_path / "onnx", dataset=rows)


@pytest.mark.parametrize(
    ("architecture", "side", "refused"),
    [("llama", "right", True), ("roberta", "left", True), ("llama", "left", False), ("bert", "right", False)],
)
def test_padding_that_the_model_reads_as_text_is_refused(architecture, side, refused, tmp_path):
    tokenizer = make_tokenizer("wordpiece", padding_side=side)
    model = build(architecture, layers=1, vocab_size=len(tokenizer))
    assert (model.config.pad_token_id, tokenizer.pad_token_id) == (PAD, 1)
    if refused:
        with pytest.raises(hfc.CompressionError, match=r"does not take .*, '<pad>' \(1\), for padding"):
            hfc.export(model, tmp_path / "onnx", processing_class=tokenizer, repeats=0)
        assert list(tmp_path.iterdir()) == []
    else:
        hfc.export(model, tmp_path / "onnx", processing_class=tokenizer, repeats=0)


def test_padding_that_moves_the_positions_of_a_text_is_refused(tmp_path):
    """Llama's positions are relative; see the test above."""
    tokenizer = word_tokenizer()
    tokenizer.padding_side = "left"
    for architecture in ("bert", "gpt2"):
        model = build(architecture, layers=1, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        with pytest.raises(hfc.CompressionError, match="set the tokenizer's padding_side to 'right'"):
            hfc.export(model, tmp_path / "onnx", processing_class=tokenizer, repeats=0)


def test_padding_that_ends_texts_is_refused_for_an_encoder_decoder(tmp_path):
    tokenizer = ending_texts()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    model = build("bart", layers=1, vocab_size=len(tokenizer), **ids)
    with pytest.raises(hfc.CompressionError, match=r"does not take .*, '</s>' \(2\), for padding"):
        hfc.export(model, tmp_path / "onnx", processing_class=tokenizer, repeats=0)


def with_labels(count):
    model = build(layers=1)
    model.config.id2label = {index: f"class {index}" for index in range(count)}
    model.config.label2id = {name: index for index, name in model.config.id2label.items()}
    return model


def with_another_head():
    model = build(layers=1)
    model.classifier = torch.nn.Linear(32, 3)
    return model


@pytest.mark.parametrize(
    ("make", "logits", "labels"),
    [(lambda: with_labels(3), 2, 3), (lambda: with_labels(1), 2, 1), (with_another_head, 3, 2)],
)
def test_labels_that_are_not_those_of_the_logits_are_refused(make, logits, labels, tmp_path):
    message = f"returns {logits} logits for a text, and its config names {labels} labels"
    with pytest.raises(hfc.CompressionError, match=message):
        export(make(), tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("wrong", [100, -1])
def test_rows_with_tokens_of_another_model_are_refused(wrong, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "build_graph", None)
    rows = [{"input_ids": [5, 99, 6], "labels": 0}, {"input_ids": [5, wrong, 6], "labels": 1}]
    with pytest.raises(hfc.CompressionError, match=f"A row of dataset has the token {wrong}, .* from 0 to 99; pass"):
        export(build(layers=1), tmp_path / "onnx", dtype=dtype, dataset=rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pad_token", "cls_token"])
def test_a_token_that_was_added_to_the_tokenizer_alone_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "build_graph", None)
    tokenizer = word_tokenizer()
    model = build(layers=1, vocab_size=len(tokenizer))
    tokenizer.add_special_tokens({name: "[NEW]"})
    if name == "cls_token":
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="[NEW] $A", special_tokens=[("[NEW]", 11)]
        )
    with pytest.raises(hfc.CompressionError, match=r"tokenizer has the token 11, .* from 0 to 10; .*resize_token_emb"):
        hfc.export(model, tmp_path / "onnx", processing_class=tokenizer, repeats=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'hfcompress\[onnx\]'"):
        export(build(), tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_running_names_the_extra_too(half, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'hfcompress\[onnx\]'"):
        hfc.load_exported(half[3])


def test_the_extra_is_complete():
    assert all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


OTHERS = {
    "no logits": (BertModel, "no classification head"),
    "tokens": (BertForTokenClassification, "a class for each token"),
    "words": (BertForMaskedLM, "an output for each token"),
    "choices": (BertForMultipleChoice, "predicts something else"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_sequence_classifier_is_refused(case, tmp_path):
    kind, message = OTHERS[case]
    with pytest.raises(hfc.CompressionError, match=message) as refused:
        export(kind(build(layers=1).config), tmp_path / "onnx")
    assert kind.__name__ in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(hfc.CompressionError, match="The name of the folder to write is empty"):
        export(build(layers=1), "")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_saved_during_an_export_stays(tmp_path, half, monkeypatch):
    graph, folder = onnx.load(half[3] / "model.onnx"), tmp_path / "out"

    def save_meanwhile(*arguments):
        build(layers=1).save_pretrained(folder)
        return graph

    monkeypatch.setattr(exporting, "build_graph", save_meanwhile)
    with pytest.raises(hfc.CompressionError, match="holds a model of torch"):
        export(half[0], folder)
    assert {one.name for one in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 1
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_the_old_folder(folder, monkeypatch):
    def save(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(folder)
    monkeypatch.setattr(exporting, "build_graph", lambda *arguments: onnx.ModelProto())
    monkeypatch.setattr("onnx.save", save)
    with pytest.raises(hfc.CompressionError, match=r"cannot be written, it is as it was before: .*No space left"):
        export(build(layers=1), folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["onnx"]


def test_a_full_disk_that_the_tokenizer_meets_leaves_the_old_folder(folder, half, monkeypatch):
    before, graph = contents(folder), onnx.load(half[3] / "model.onnx")

    def save(*arguments, **settings):
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    monkeypatch.setattr(exporting, "build_graph", lambda *arguments: graph)
    monkeypatch.setattr(type(TOKENIZER), "save_pretrained", save)
    with pytest.raises(hfc.CompressionError, match=r"cannot be written, it is as it was before: No space left"):
        export(half[0], folder)
    assert contents(folder) == before


def test_rows_too_long_name_the_file_that_reads_less(half):
    rows = [{"input_ids": [5] * 65, "labels": 0}, {"input_ids": [5] * 6, "labels": 1}]
    with pytest.raises(hfc.CompressionError, match=r"has 65 tokens, and .*model\.onnx reads 1 to 64; truncate"):
        hfc.measure(hfc.load_exported(half[3]), rows, repeats=1)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rows_too_long_are_refused_before_the_export(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "build_graph", None)
    rows = [{"input_ids": [5] * 65, "labels": 0}, {"input_ids": [5] * 6, "labels": 1}]
    with pytest.raises(hfc.CompressionError, match="has 65 tokens, and BertForSequenceClassification reads 1 to 64"):
        export(build(layers=1), tmp_path / "onnx", dtype=dtype, dataset=rows)
    assert list(tmp_path.iterdir()) == []


def test_versions_need_no_metadata(half, folder, monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    graph = onnx.load(half[3] / "model.onnx")
    monkeypatch.setattr(exporting, "build_graph", lambda *arguments: graph)
    monkeypatch.setattr("importlib.metadata.version", version)
    report = export(half[0], folder)
    assert set(report.versions) == {"hfcompress", "torch", "transformers", "onnx", "onnxruntime"}
    assert report.versions["hfcompress"] == hfc.__version__
    assert report.versions["torch"] == torch.__version__


def test_an_exported_model_is_not_exported_again(half, tmp_path):
    with pytest.raises(hfc.CompressionError, match="ExportedModel"):
        export(hfc.load_exported(half[3]), tmp_path / "onnx")
