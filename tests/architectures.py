"""Tiny random classifiers, data and arguments that the tests share."""

import copy
import dataclasses
import os
import shutil

import torch
from datasets import Dataset
from tokenizers import Tokenizer, normalizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.utils.data import SequentialSampler
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    BloomConfig,
    CamembertConfig,
    ConvBertConfig,
    CTRLConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    FalconConfig,
    FunnelConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    OPTConfig,
    PersimmonConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    T5Config,
    Trainer,
    TrainingArguments,
    XLMConfig,
    XLMRobertaConfig,
    XLNetConfig,
)

LONG = os.environ.get("HYPOTHESIS_PROFILE") in ("long", "all")  # all cases, where the default run takes a sample
VOCABULARY = 100
PAD, EOS = 0, 4
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
_CONFIGS = {
    "bert": (BertConfig, {}),
    "gpt2": (GPT2Config, {"n_positions": 64, "bos_token_id": 1, "eos_token_id": 1}),
    "roberta": (RobertaConfig, {}),
    "distilbert": (DistilBertConfig, {}),
    "electra": (ElectraConfig, {"embedding_size": 16}),
    "albert": (AlbertConfig, {"embedding_size": 16}),
    "deberta-v2": (
        DebertaV2Config,
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "pooler_hidden_size": 32},
    ),
}
# Their own names of sizes; in older releases, 5.3 among them, some constructors compute only from those.
_OTHER_NAMES = {
    "gpt2": {"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"},
    "distilbert": {"intermediate_size": "hidden_dim"},
    "opt": {"intermediate_size": "ffn_dim"},
    "bart": {"intermediate_size": "encoder_ffn_dim", "num_hidden_layers": "encoder_layers"},
    "t5": {"intermediate_size": "d_ff", "max_position_embeddings": ""},
    "bloom": {"max_position_embeddings": ""},
    "xlnet": {"intermediate_size": "d_inner", "max_position_embeddings": "", "hidden_size": "d_model"}
    | {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    "gpt-neo": {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    "gptj": {"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"},
    "funnel": {"intermediate_size": "d_inner", "num_hidden_layers": ""},
    "ctrl": {"intermediate_size": "dff", "max_position_embeddings": "n_positions"},
    "falcon": {"intermediate_size": "ffn_hidden_size"},
}

CAN_SHARD = hasattr(torch.cpu.Stream, "record_event")  # FSDP2 calls it on a CPU too, where torch has it from 2.7

ARCHITECTURES = tuple(_CONFIGS)
# RoBERTa's modules under other names: by default only docs/works_with.py and tests that name them take them.
_RENAMED = () if LONG else ("xlm-roberta", "camembert")
# Those whose shapes are changed, which asks more of an architecture than changing values.
_CONFIGS |= {
    "xlm-roberta": (XLMRobertaConfig, {}),
    "camembert": (CamembertConfig, {}),
    "mpnet": (MPNetConfig, {}),
    "modernbert": (
        ModernBertConfig,
        {"num_hidden_layers": 3, "local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 1}
        | {"sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "llama": (LlamaConfig, {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt-neo": (GPTNeoConfig, {"bos_token_id": 1, "eos_token_id": 2}),
    "opt": (OPTConfig, {"word_embed_proj_dim": 32, "bos_token_id": 1, "eos_token_id": 2}),
    "bart": (
        BartConfig,
        {"decoder_layers": "layers", "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "eos_token_id": EOS}
        | {"bos_token_id": 1, "decoder_start_token_id": 1},
    ),
    "t5": (
        T5Config,
        {"num_decoder_layers": "layers", "d_kv": 8, "eos_token_id": EOS, "decoder_start_token_id": 0},
    ),
}
SHRINKABLE = tuple(name for name in _CONFIGS if name not in _RENAMED)
ENCODER_DECODERS = ("bart", "t5")
# Those of which only the neurons can be removed: by a record, or found in a trace.
_CONFIGS |= {
    "xlnet": (XLNetConfig, {"d_head": 8}),
    "gemma": (GemmaConfig, {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}),
    "convbert": (ConvBertConfig, {"embedding_size": 16}),
    "phi": (PhiConfig, {"bos_token_id": 1, "eos_token_id": 2}),
    "phi3": (Phi3Config, {"bos_token_id": 1, "eos_token_id": 2}),
    "bloom": (BloomConfig, {"bos_token_id": 1, "eos_token_id": 2}),
    "gptj": (GPTJConfig, {"rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2}),
    "falcon": (FalconConfig, {"bos_token_id": 1, "eos_token_id": 2}),
    "funnel": (FunnelConfig, {"block_sizes": [1, 1], "d_head": 8}),
    "gpt-neox": (GPTNeoXConfig, {"bos_token_id": 1, "eos_token_id": 2}),
    "persimmon": (PersimmonConfig, {"bos_token_id": 1, "eos_token_id": 2}),
    "xlm": (XLMConfig, {"pad_index": PAD}),
    "ctrl": (CTRLConfig, {}),
}
LISTED = tuple(_CONFIGS)  # in docs/works-with.md
WITH_NEURONS = tuple(name for name in LISTED if name not in _RENAMED)
TRACED = ("bloom", "gptj", "falcon", "funnel", "gpt-neox", "persimmon", "xlm", "ctrl")
_NAMES = {field.name for field in dataclasses.fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _NAMES else "gradient_checkpointing"


def build(architecture="bert", num_labels=2, *, layers=2, seed=0, dropout=False, **overrides):
    """Return a random classifier in training mode; its weights are spread enough for its answers to differ."""
    kind, own = _CONFIGS[architecture]
    names = _OTHER_NAMES.get(architecture, {})
    sizes = {names.get(key, key): value for key, value in _SIZES.items()}
    sizes.pop("", None)
    own = {key: layers if value == "layers" else value for key, value in own.items()}
    if architecture == "gpt-neo":
        own["attention_types"] = [[["global"], layers]]
    if architecture == "bart" and num_labels == 2:  # its default is 3, and a config of 2 without names is saved as that
        own |= {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    if architecture != "funnel":  # whose layers are those of its blocks
        sizes[names.get("num_hidden_layers", "num_hidden_layers")] = layers
    config = kind(**(sizes | own | {"num_labels": num_labels} | overrides))
    config.initializer_range = 0.2
    if not dropout:
        for key, value in config.to_dict().items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config).train()


def batch(examples=4, length=6, *, num_labels=2, seed=0, vocabulary=VOCABULARY):
    """Return input ids with padding on the right and EOS before it, the attention mask and labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocabulary, (examples, length), generator=generator)
    lengths = torch.randint(2, length + 1, (examples, 1), generator=generator)
    ids.scatter_(1, lengths - 1, EOS)
    mask = (torch.arange(length) < lengths).long()
    labels = torch.randint(0, num_labels, (examples,), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def rows(tensors):
    """Return a batch as a list of examples, a dataset that the Trainer takes."""
    count = len(next(iter(tensors.values())))
    return [{key: value[index].tolist() for key, value in tensors.items()} for index in range(count)]


WORDS = ("a", "film", "good", "bad", "very", "not", "long", "plot")


def word_tokenizer(words=WORDS, *, lowercase=False, marked=False):
    """Return a tokenizer whose vocabulary is these words; marked, it puts a token in front of every text."""
    vocabulary = {"[PAD]": PAD, "[UNK]": 1, "[CLS]": 2} | {word: index for index, word in enumerate(words, start=3)}
    core = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    if lowercase:
        core.normalizer = normalizers.Lowercase()
    if marked:
        core.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", model_max_length=32
    )


def texts(count=23):
    """Return a dataset of short texts made of the words, and their labels."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    words = [[WORDS[i] for i in torch.randint(0, len(WORDS), (length,), generator=generator)] for length in lengths]
    return Dataset.from_dict({"text": [" ".join(part) for part in words], "labels": [n % 2 for n in range(count)]})


def arguments(kind, directory, **overrides):
    """Return training arguments that are quiet, quick and repeatable: CPU, constant rate, examples in their order."""
    defaults = {
        "output_dir": str(directory),
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
    }
    settings = defaults | overrides
    if hasattr(TrainingArguments, "train_sampling_strategy"):
        return kind(**settings)
    strategy = settings.pop("train_sampling_strategy")
    args = kind(**settings, group_by_length=strategy == "group_by_length")
    args.train_sampling_strategy = strategy
    return args


if not hasattr(TrainingArguments, "train_sampling_strategy"):  # from 5.2; before, no argument keeps the data's order
    _stock_sampler = Trainer._get_train_sampler

    def _train_sampler(trainer, dataset=None):
        sampler = _stock_sampler(trainer, dataset)
        sequential = sampler is not None and getattr(trainer.args, "train_sampling_strategy", None) == "sequential"
        return SequentialSampler(sampler.data_source) if sequential else sampler

    Trainer._get_train_sampler = _train_sampler


def state_of(model):
    """Return a copy of the model's state dict."""
    return copy.deepcopy(model.state_dict())


def same_bits(one, other):
    """Whether two state dicts hold the same keys and exactly the same bits (so that NaN equals NaN, not 0.0 -0.0)."""
    return list(one) == list(other) and all(_bits(one[key]) == _bits(other[key]) for key in one)


def _bits(tensor):
    if tensor.is_meta:
        return tensor.shape, tensor.dtype
    plain = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    return tensor.shape, tensor.dtype, plain.view(torch.uint8).numpy().tobytes()


def cached(folder, cache, repo_id):
    """Lay a folder into a hub cache, as if it had been downloaded."""
    repository, commit = cache / f"models--{repo_id.replace('/', '--')}", "0" * 40
    snapshot = repository / "snapshots" / commit
    for made in (repository / "blobs", repository / "refs", snapshot):
        made.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        shutil.copy(path, repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
