"""Small tokenizers of every kind, trained on the spot."""

import functools
import json

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "A film with a good plot, bad acting and very long scenes; the scenes are not good.",
    "Un film très long, mais l'intrigue est bonne et les acteurs ne sont pas mauvais.",
    "Ein sehr langer Film, dessen Handlung überrascht; die Schauspieler überzeugen nicht.",
    "这部电影很好看,但是太长了。 電影 好 长",
    "unbelievable unbelievably believable quickly quicker quickest running runner runs",
] * 2
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _template():
    return processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )


def _trained(model, trainer, pre_tokenizer, normalizer=None, processor=None, size=220, **settings):
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.train_from_iterator(
        CORPUS, trainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False, **settings)
    )
    backend.post_processor = processor or _template()
    return backend


def _wordpiece():
    return _trained(
        models.WordPiece(unk_token="<unk>", max_input_chars_per_word=20),
        trainers.WordPieceTrainer,
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(),
        processors.BertProcessing(("</s>", 2), ("<s>", 0)),
    )


def _bpe(pre_tokenizer=None, **settings):
    return _trained(
        models.BPE(unk_token="<unk>", **settings), trainers.BpeTrainer, pre_tokenizer or _words(), **settings
    )


def _words():
    return pre_tokenizers.BertPreTokenizer()


def _byte_level(size=400):
    return _trained(
        models.BPE(),
        trainers.BpeTrainer,
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        processor=processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False),
        size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


def _changed(backend, change, part="model"):
    data = json.loads(backend.to_str())
    change(data[part] if part else data)
    return Tokenizer.from_str(json.dumps(data))


def _ignore_merges():
    """A byte-level vocabulary with whole words that no merge makes, as Llama 3 has."""

    def change(model):
        model["ignore_merges"] = True
        for word in ("Ġquickest", "Ġfilm", "Ġunbelievably"):
            model["vocab"].setdefault(word, len(model["vocab"]))
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in ("Ġfilm",)]

    return _changed(_byte_level(), change)


def _sentencepiece_bpe():
    """Bytes for what has no piece, and all merges that make a piece, as converted from SentencePiece."""
    backend = _bpe(pre_tokenizers.Metaspace())

    def change(model):
        vocabulary = dict.fromkeys([*SPECIAL, *BYTES, *model["vocab"]])
        model["vocab"] = ids = {piece: index for index, piece in enumerate(vocabulary)}
        pairs = [(p[:i], p[i:]) for p in ids if p not in (*SPECIAL, *BYTES) for i in range(1, len(p))]
        pairs = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        model["merges"] = sorted(pairs, key=lambda pair: (ids["".join(pair)], len(pair[0])))
        model["byte_fallback"] = model["fuse_unk"] = True

    return _changed(backend, change)


def _llama_2():
    """As the one before, with spaces written by the normalizer, and words not taken apart before merging."""

    def change(data):
        data["pre_tokenizer"] = None
        spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        data["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]}

    return _changed(_sentencepiece_bpe(), change, "")


def _split():
    """Bytes of parts that a regular expression finds, as GPT-4 and Qwen have."""
    pattern = Regex(r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    parts = pre_tokenizers.Split(pattern, "isolated")
    bytes_of_parts = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _trained(
        models.BPE(),
        trainers.BpeTrainer,
        pre_tokenizers.Sequence([parts, bytes_of_parts]),
        normalizers.NFC(),
        size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


def _without_accents():
    return _trained(
        models.WordPiece(unk_token="<unk>", continuing_subword_prefix="@@"),
        trainers.WordPieceTrainer,
        pre_tokenizers.Whitespace(),
        normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]),
        continuing_subword_prefix="@@",
    )


def _unigram(**settings):
    return _trained(
        models.Unigram(), trainers.UnigramTrainer, pre_tokenizers.Metaspace(), normalizers.NFKC(), unk_token="<unk>"
    )


def _unigram_bytes():
    def change(model):
        lowest = min(score for _, score in model["vocab"])
        model["vocab"] += [[byte, lowest] for byte in BYTES]
        model["byte_fallback"] = True

    return _changed(_unigram(), change)


def _word_level():
    return _trained(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer, _words(), size=60)


KINDS = {
    "wordpiece": _wordpiece,
    "bpe": _bpe,
    "bpe-prefix": lambda: _bpe(continuing_subword_prefix="##"),
    "bpe-suffix": lambda: _bpe(end_of_word_suffix="</w>"),
    "byte-level": _byte_level,
    "ignore-merges": _ignore_merges,
    "sentencepiece-bpe": _sentencepiece_bpe,
    "llama-2-bpe": _llama_2,
    "split-bpe": _split,
    "without-accents": _without_accents,
    "unigram": _unigram,
    "unigram-bytes": _unigram_bytes,
    "word-level": _word_level,
}


WORDPIECE = ("wordpiece", "without-accents")  # where words can be unknown that are known to a smaller vocabulary


@functools.cache
def _json(kind):
    return KINDS[kind]().to_str()


def make_tokenizer(kind, *, added=(), **settings):
    """Return a new tokenizer of a kind, with tokens added behind its vocabulary."""
    settings = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"} | settings
    settings |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_json(kind)), **settings)
    if added:
        tokenizer.add_tokens(list(added))
    return tokenizer
