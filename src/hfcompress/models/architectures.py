"""What is known of transformers' architectures: one record a family.

A record is recognised by the module paths in a model, not by its ``model_type``, so that relatives of a family (XLM-R
of BERT, Qwen2 of Llama) need none of their own. No other module knows a module path or a config name of a layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Attention:
    """Where an attention block of a layer keeps its heads. Paths start at the layer.

    Attributes:
        projections: Modules that make queries, keys and values; or one that makes all three side by side.
        output: The module that consumes what the heads compute.
        per_head: Other modules with outputs for each head, where there are any.
        head_size: Attribute of the module around the projections: numbers of one head.
        head_counts: Its attributes that count the heads, or all their numbers.
        shared_bias: Name of an ``nn.Embedding`` with a number for each head that all layers of the stack add to their
            scores, so that only the same heads can be removed from all of them.
    """

    projections: tuple[str, ...]
    output: str
    per_head: tuple[str, ...] = ()
    head_size: str = "head_dim"
    head_counts: tuple[str, ...] = ("num_heads",)
    shared_bias: str | None = None


@dataclass(frozen=True)
class FeedForward:
    """Where a feed-forward block of a layer keeps its neurons. Paths start at the layer.

    Attributes:
        up: The module that makes the neurons, or gate and up.
        down: The module that consumes them.
        widths: Config settings that together set how many there are in all layers.
        width_attributes: Attributes of the module around them that count them.
        tokens_first: Whether the block computes in the shape (tokens, batch, width).
    """

    up: tuple[str, ...]
    down: str
    widths: tuple[str, ...]
    width_attributes: tuple[str, ...] = ()
    tokens_first: bool = False


@dataclass(frozen=True)
class Architecture:
    """What is known of a family.

    Attributes:
        family: Its name.
        attention: Its attention blocks.
        feed_forward: Its feed-forward blocks, as many kinds as there are.
        per_layer_settings: Config settings with one value a layer.
        depth_settings: Config settings by which a layer computes otherwise at another index.
        shared_layers: Name of the module with layers that are run more than once.
        positions: Name of an ``nn.Embedding`` of positions that start behind its padding index.
    """

    family: str
    attention: tuple[Attention, ...] = ()
    feed_forward: tuple[FeedForward, ...] = ()
    per_layer_settings: tuple[str, ...] = ()
    depth_settings: tuple[str, ...] = ()
    shared_layers: str | None = None
    positions: str | None = None


_BertAttention = partial(
    Attention, head_size="attention_head_size", head_counts=("num_attention_heads", "all_head_size")
)
_BERT_FEED_FORWARD = FeedForward(("intermediate.dense",), "output.dense", ("intermediate_size",))
_SELF = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

ARCHITECTURES = (
    Architecture(
        "BERT",  # RoBERTa, XLM-R, CamemBERT, ELECTRA, ...
        attention=(
            _BertAttention(
                ("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense"
            ),
        ),
        feed_forward=(_BERT_FEED_FORWARD,),
        per_layer_settings=("attention_window",),
        positions="position_embeddings",
    ),
    Architecture(
        "ALBERT",
        attention=(_BertAttention(("attention.query", "attention.key", "attention.value"), "attention.dense"),),
        feed_forward=(FeedForward(("ffn",), "ffn_output", ("intermediate_size",)),),
        shared_layers="albert_layer_groups",
    ),
    Architecture(
        "DistilBERT",
        attention=(
            Attention(
                ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
                "attention.out_lin",
                head_size="attention_head_size",
                head_counts=("n_heads",),
            ),
        ),
        feed_forward=(FeedForward(("ffn.lin1",), "ffn.lin2", ("hidden_dim",)),),
    ),
    Architecture(
        "MPNet",
        attention=(
            _BertAttention(
                ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
                "attention.attn.o",
                shared_bias="relative_attention_bias",
            ),
        ),
        feed_forward=(_BERT_FEED_FORWARD,),
        positions="position_embeddings",
    ),
    Architecture(
        "DeBERTa-v2",
        attention=(
            _BertAttention(
                ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
                "attention.output.dense",
                per_head=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
            ),
        ),
        feed_forward=(_BERT_FEED_FORWARD,),
    ),
    Architecture(
        "ModernBERT",
        attention=(Attention(("attn.Wqkv",), "attn.Wo", head_counts=("num_heads", "all_head_size")),),
        feed_forward=(FeedForward(("mlp.Wi",), "mlp.Wo", ("intermediate_size",)),),
        per_layer_settings=("layer_types",),
    ),
    Architecture(
        "GPT-2",
        attention=(Attention(("attn.c_attn",), "attn.c_proj", head_counts=("num_heads", "split_size")),),
        feed_forward=(FeedForward(("mlp.c_fc",), "mlp.c_proj", ("n_inner",)),),
        depth_settings=("scale_attn_by_inverse_layer_idx",),
    ),
    Architecture(
        "GPT-Neo",
        attention=(
            Attention(
                ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"), "attn.attention.out_proj"
            ),
        ),
        feed_forward=(FeedForward(("mlp.c_fc",), "mlp.c_proj", ("intermediate_size",)),),
        per_layer_settings=("attention_layers",),
    ),
    Architecture(
        "OPT",
        attention=(Attention(_SELF, "self_attn.out_proj"),),
        feed_forward=(FeedForward(("fc1",), "fc2", ("ffn_dim",)),),
    ),
    Architecture(
        "Llama",  # Mistral, Qwen2, Gemma, ...
        attention=(Attention(_SELF, "self_attn.o_proj", head_counts=("num_heads", "num_key_value_heads")),),
        feed_forward=(
            FeedForward(
                ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", ("intermediate_size",), ("intermediate_size",)
            ),
            FeedForward(("mlp.gate_up_proj",), "mlp.down_proj", ("intermediate_size",)),  # Phi-3, GLM
        ),
        per_layer_settings=("layer_types", "mlp_layer_types", "no_rope_layers"),
    ),
    Architecture(
        "BART",  # mBART, PLBart, Pegasus, ...
        attention=(
            Attention(_SELF, "self_attn.out_proj"),
            Attention(("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj"), "encoder_attn.out_proj"),
        ),
        feed_forward=(FeedForward(("fc1",), "fc2", ("encoder_ffn_dim", "decoder_ffn_dim")),),
    ),
    Architecture(
        "T5",
        attention=tuple(
            # The first layer of a stack hands its bias to the others, that of the cross-attention being 0.
            Attention(
                (f"{name}.q", f"{name}.k", f"{name}.v"),
                f"{name}.o",
                head_size="key_value_proj_dim",
                head_counts=("n_heads", "inner_dim"),
                shared_bias="relative_attention_bias",
            )
            for name in ("SelfAttention", "EncDecAttention")
        ),
        feed_forward=(
            FeedForward(("DenseReluDense.wi",), "DenseReluDense.wo", ("d_ff",)),
            FeedForward(("DenseReluDense.wi_0", "DenseReluDense.wi_1"), "DenseReluDense.wo", ("d_ff",)),
        ),
    ),
    Architecture("XLNet", feed_forward=(FeedForward(("ff.layer_1",), "ff.layer_2", ("d_inner",), tokens_first=True),)),
)

# Relatives mix the families' names, so a model is searched for all of them.
ATTENTION = tuple(dict.fromkeys(block for one in ARCHITECTURES for block in one.attention))
FEED_FORWARD = tuple({(block.up, block.down): block for one in ARCHITECTURES for block in one.feed_forward}.values())
PROJECTION_NAMES = tuple(dict.fromkeys(tuple(p.rpartition(".")[2] for p in block.projections) for block in ATTENTION))
HEAD_SIZES = tuple(dict.fromkeys(block.head_size for block in ATTENTION))
HEAD_COUNTS = tuple(dict.fromkeys(name for block in ATTENTION for name in block.head_counts))
_TRACED_WIDTHS = (("ffn_hidden_size",), ("dff",))  # of Falcon and CTRL, whose neurons are found in a trace
WIDTH_SETTINGS = (
    *dict.fromkeys(block.widths for one in ARCHITECTURES for block in one.feed_forward),
    *_TRACED_WIDTHS,
)
WIDTH_ATTRIBUTES = tuple(dict.fromkeys(name for block in FEED_FORWARD for name in block.width_attributes))
PER_LAYER_SETTINGS = tuple(dict.fromkeys(name for one in ARCHITECTURES for name in one.per_layer_settings))
DEPTH_SETTINGS = tuple(dict.fromkeys(name for one in ARCHITECTURES for name in one.depth_settings))
SHARED_LAYERS = tuple(one.shared_layers for one in ARCHITECTURES if one.shared_layers)
OFFSET_POSITIONS = tuple(dict.fromkeys(one.positions for one in ARCHITECTURES if one.positions))

# Of GPT-Neo, what is computed of the second setting: a list of pairs, of a pattern and how often it repeats.
LAYER_PATTERNS = {"attention_layers": "attention_types"}

# Of TAPAS, which reads several token types a token: how many there are of each.
TOKEN_TYPE_LISTS = ("type_vocab_sizes",)

# The same in all families: config settings of the number of layers, of the tokens of a text, of the numbers of a head;
# and attributes by which a layer finds its part of the cache or of the config.
LAYER_COUNTS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")
TOKEN_LIMITS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")
HEAD_SIZE_SETTINGS = ("head_dim", "attention_head_size")
LAYER_INDICES = ("layer_idx", "layer_id", "seed")  # the last of BigBird, for its random blocks in training

_BLOCK_NAMES = {  # the first that is found in a module's path decides
    "pooler": re.compile("pooler"),
    "embeddings": re.compile("embed"),
    "attention": re.compile("attn|attention"),
    "feed-forward": re.compile(r"\b(mlp|ffn?\w*|feed_?forward|intermediate|output|fc\d|densereludense)\b"),
}


def block_kind(path: str) -> str:
    """Return the kind of block that a module of the body belongs to by its path; ``"other"`` if the path names none.

    Example:
        >>> block_kind("bert.encoder.layer.0.attention.output.dense"), block_kind("bert.encoder.layer.0.output.dense")
        ('attention', 'feed-forward')
    """
    return next((kind for kind, pattern in _BLOCK_NAMES.items() if pattern.search(path.lower())), "other")
