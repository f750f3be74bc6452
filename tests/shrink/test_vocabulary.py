"""A pruned vocabulary: the same logits for texts whose ids are kept, everywhere; refusals change nothing."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from architectures import (
    WITH_NEURONS,
    arguments,
    build,
    same_bits,
    state_of,
)
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import CORPUS, KINDS, SPECIAL, WORDPIECE, make_tokenizer
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    CanineConfig,
    CanineForSequenceClassification,
    CanineTokenizer,
    PreTrainedTokenizerFast,
)

import hfcompress as hfc
from hfcompress.models.classifier import input_names
from hfcompress.report import VocabularyReport

TEXTS = ["a film with a good plot", "very long scenes, bad acting", "the quick brown fox jumps over the lazy dog"]
COVERED = ["the plot", "a bad film with a good plot", "fox", "very very long scenes", "brown dog, lazy fox"]
IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(architecture="bert", kind="wordpiece", *, rows=0, **overrides):
    """A model and its tokenizer; of an encoder-decoder and of a causal model as well."""
    tokenizer = make_tokenizer(kind, model_max_length=60)
    ids = IDS | ({"pad_index": 1} if architecture == "xlm" else {})
    model = build(architecture, vocab_size=len(tokenizer) + rows, **(ids | overrides))
    return model.eval(), tokenizer


@torch.no_grad()
def logits(model, tokenizer, texts, pairs=None):
    """Those of texts padded together, where the tokenizer pads."""
    names = input_names(model)
    batch = tokenizer(texts, pairs, padding=len(texts) > 1, return_tensors="pt")
    return model.eval()(**{name: value for name, value in batch.items() if name in names}).logits


def load(folder):
    """A saved model, its weights in memory of their own: where a file is mapped, kernels may round otherwise."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model


def is_covered(report, tokenizer, *texts):
    return set(tokenizer(*texts)["input_ids"]) <= set(report.old_ids)


@pytest.mark.parametrize("architecture", WITH_NEURONS)
def test_covered_texts_have_the_same_bits_in_memory_and_reloaded(architecture, tmp_path):
    model, tokenizer = make(architecture)
    expected = [logits(model, tokenizer, COVERED), logits(model, tokenizer, COVERED[:2], COVERED[1:3])]
    alone = [logits(model, tokenizer, [text]) for text in COVERED]
    report = hfc.prune_vocabulary(model, tokenizer, TEXTS, alphabet="used")
    assert all(is_covered(report, tokenizer, text) for text in COVERED)
    assert report.covered == 1
    assert len(report.old_ids) < 0.6 * len(tokenizer)
    model.save_pretrained(tmp_path)
    report.tokenizer.save_pretrained(tmp_path)
    # By its class: AutoTokenizer would make byte-level BPE of any tokenizer beside a Qwen2, as of the original.
    loaded = load(tmp_path), type(tokenizer).from_pretrained(tmp_path)
    for one, new in ((model, report.tokenizer), loaded):
        assert torch.equal(logits(one, new, COVERED), expected[0])
        assert torch.equal(logits(one, new, COVERED[:2], COVERED[1:3]), expected[1])
        for text, before in zip(COVERED, alone, strict=True):
            assert torch.equal(logits(one, new, [text]), before)
    for (name, one), (_, other) in zip(model.named_modules(), loaded[0].named_modules(), strict=True):
        for key in ("padding_idx", "num_embeddings", "pad_index", "vocab_size"):
            assert vars(one).get(key) == vars(other).get(key), f"{name}.{key}"
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(report.tokenizer)


WORDS = sorted({word for text in CORPUS for word in text.split()})
texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=5)


@every_kind
@settings(max_examples=max(2, settings.default.max_examples // 20))
@given(
    st.sampled_from(["bert", "roberta", "llama", "t5"]),
    texts,
    texts,
    st.sampled_from([1, 2]),
    st.sampled_from(["all", "used"]),
)
@example("bert", ["good film", "film", "dog"], ["dog film"], 2, "used")
def test_a_text_is_covered_by_its_ids_whatever_the_tokenizer(kind, architecture, chosen, others, count, alphabet):
    model, tokenizer = make(architecture, kind)
    old = copy.deepcopy(model)
    report = hfc.prune_vocabulary(model, tokenizer, chosen, min_count=count, alphabet=alphabet)
    unknown = tokenizer.unk_token_id if kind in WORDPIECE else None
    new_ids = {before: after for after, before in enumerate(report.old_ids)}
    covered = [text for text in [*others, *chosen] if is_covered(report, tokenizer, text)]
    covered = [text for text in covered if unknown not in tokenizer(text)["input_ids"]]
    for text in covered:
        assert report.tokenizer(text)["input_ids"] == [new_ids[index] for index in tokenizer(text)["input_ids"]]
        assert report.tokenizer.tokenize(text) == tokenizer.tokenize(text)
    if covered:
        assert torch.equal(logits(model, report.tokenizer, covered), logits(old, tokenizer, covered))
        pairs = covered[::-1]
        assert torch.equal(logits(model, report.tokenizer, covered, pairs), logits(old, tokenizer, covered, pairs))
    same = [
        is_covered(report, tokenizer, text) and report.tokenizer.tokenize(text) == tokenizer.tokenize(text)
        for text in chosen
    ]
    assert report.covered == pytest.approx(sum(same) / len(chosen))


@pytest.mark.parametrize("kind", ["wordpiece", "split-bpe", "llama-2-bpe", "unigram", "word-level"])
def test_added_tokens_of_all_kinds_are_found_as_before(kind, tmp_path):
    added = [
        AddedToken("<ent>", special=True),
        AddedToken("FOX jumps", normalized=True),
        AddedToken("😀", normalized=False),
        AddedToken(" ÉTÉ ", lstrip=True, rstrip=True),
        AddedToken("film", single_word=True, normalized=False),
    ]
    tokenizer = make_tokenizer(kind, added=added, model_max_length=60)
    model = build("bert", vocab_size=len(tokenizer), **IDS)
    texts = ["a film with a plot", "films<ent>the fox jumps 😀", "an  ÉTÉ  film😀 FOX jumps", "<mask>film <ent>"]
    expected = [tokenizer.tokenize(text) for text in texts]
    before = logits(model, tokenizer, texts)
    report = hfc.prune_vocabulary(model, tokenizer, texts, alphabet="used")
    report.tokenizer.save_pretrained(tmp_path)
    for new in (report.tokenizer, type(tokenizer).from_pretrained(tmp_path)):
        assert [new.tokenize(text) for text in texts] == expected
        assert torch.equal(logits(model, new, texts), before)
    assert set(map(str, added)) <= report.tokenizer.get_added_vocab().keys()


def test_every_id_that_the_config_names_is_renumbered():
    model, tokenizer = make("bart", pad_token_id=1, rows=3)
    fox, plot = (tokenizer.convert_tokens_to_ids(piece) for piece in ("fox", "plot"))
    model.config.decoder_start_token_id, model.config.forced_eos_token_id = fox, 2
    model.config.eos_token_id, model.config.sep_token_id = 2, -1
    model.config.suppress_tokens, model.config.unk_token_id = [plot, 999], len(tokenizer) + 1
    report = hfc.prune_vocabulary(model, tokenizer, ["a film"], alphabet="used")
    found = report.tokenizer.convert_ids_to_tokens
    assert found(model.config.decoder_start_token_id) == "fox"
    assert model.config.suppress_tokens[1:] == [999]
    assert found(model.config.suppress_tokens[0]) == "plot"
    assert model.config.sep_token_id == -1
    assert model.config.unk_token_id == len(report.tokenizer) == len(report.old_ids) - 1  # a row without a token
    assert [model.config.pad_token_id, model.config.eos_token_id, model.config.forced_eos_token_id] == [1, 2, 2]


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_the_padding_id_stays_where_positions_count_from_it(architecture, tmp_path):
    """Also where it is not among the first: all before it stay then."""
    tokenizer = make_tokenizer("wordpiece", model_max_length=40)
    pad = 1 if architecture == "mpnet" else tokenizer.convert_tokens_to_ids("fox")
    own = {"max_position_embeddings": pad + 60} | IDS | {"pad_token_id": pad}
    model = build(architecture, vocab_size=len(tokenizer), **own).eval()
    if pad != 1:
        tokenizer.pad_token = "fox"
    covered = ["the plot", "a bad film with a good plot"]
    expected = logits(model, tokenizer, covered)
    report = hfc.prune_vocabulary(model, tokenizer, TEXTS, alphabet="used")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert model.config.pad_token_id == report.tokenizer.pad_token_id == pad
    assert len(report.tokenizer) < len(tokenizer)
    for one in (model, loaded):
        assert torch.equal(logits(one, report.tokenizer, covered), expected)


@pytest.mark.parametrize("architecture", ["bert", "llama", "bart"])
def test_another_padding_id_moves_with_its_token(architecture):
    tokenizer = make_tokenizer("wordpiece", model_max_length=40)
    pad = tokenizer.convert_tokens_to_ids("fox")
    tokenizer.pad_token = "fox"
    model = build(architecture, vocab_size=len(tokenizer), **(IDS | {"pad_token_id": pad})).eval()
    covered = ["the plot", "a bad film with a good plot"]
    expected = logits(model, tokenizer, covered)
    report = hfc.prune_vocabulary(model, tokenizer, TEXTS, alphabet="used")
    assert model.config.pad_token_id == report.tokenizer.pad_token_id < pad
    assert report.tokenizer.pad_token == "fox"
    assert torch.equal(logits(model, report.tokenizer, covered), expected)
    assert {m.padding_idx for m in model.modules() if getattr(m, "padding_idx", None)} == {model.config.pad_token_id}


def test_rows_without_a_token_are_dropped():
    model, tokenizer = make(rows=28)
    report = hfc.prune_vocabulary(model, tokenizer, CORPUS, keep=list(tokenizer.get_vocab()))
    assert model.config.vocab_size == len(report.tokenizer) == len(tokenizer)
    assert report.parameters[0] - report.parameters[1] == 28 * 32
    assert report.bytes[0] - report.bytes[1] == 28 * 32 * 4


def test_a_vocabulary_that_is_used_whole_stays():
    model, tokenizer = make()
    before = state_of(model)
    report = hfc.prune_vocabulary(model, tokenizer, TEXTS, keep=list(tokenizer.get_vocab()))
    assert report.tokens == (len(tokenizer), len(tokenizer))
    assert report.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert same_bits(before, model.state_dict())


def test_tied_embeddings_stay_tied_and_keep_their_settings():
    model, tokenizer = make("t5")
    model.get_input_embeddings().weight.requires_grad_(False)
    model.train()
    hfc.prune_vocabulary(model, tokenizer, TEXTS)
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding) and len(m.weight) > 40]
    assert len({id(weight) for weight in weights}) == 1 < len(weights)
    assert not weights[0].requires_grad
    assert model.training


def test_the_tokenizer_and_models_of_the_same_config_are_not_changed():
    model, tokenizer = make()
    other, ids, vocabulary = copy.copy(model.config), tokenizer(TEXTS)["input_ids"], tokenizer.get_vocab()
    twin = type(model)(model.config)
    report = hfc.prune_vocabulary(model, tokenizer, TEXTS[:1], alphabet="used")
    assert twin.config.vocab_size == other.vocab_size == len(tokenizer) > model.config.vocab_size
    assert tokenizer(TEXTS)["input_ids"] == ids
    assert tokenizer.get_vocab() == vocabulary
    report.tokenizer.add_tokens(["<new>"])
    report.tokenizer.pad_token = "<mask>"
    assert tokenizer.pad_token == "<pad>"
    assert "<new>" not in tokenizer.get_vocab()


# What is kept


def test_tokens_are_counted_over_the_texts_and_named_ones_stay():
    model, tokenizer = make()
    chosen = ["film film", "plot", "plot fox"]
    report = hfc.prune_vocabulary(model, tokenizer, chosen, min_count=2, keep=["quick"], alphabet="used")
    pieces = report.tokenizer.get_vocab()
    assert {"film", "plot", "quick", "f", "##o"} <= pieces.keys()
    assert "fox" not in pieces
    assert report.covered == 2 / 3
    assert report.texts == 3


@pytest.mark.parametrize("form", [iter, tuple, lambda texts: Dataset.from_dict({"text": texts})["text"]])
def test_texts_may_be_any_iterable(form):
    expected = hfc.prune_vocabulary(*make(), TEXTS)
    assert hfc.prune_vocabulary(*make(), form(TEXTS)).old_ids == expected.old_ids


def test_texts_may_be_pairs():
    model, tokenizer = make()
    expected = hfc.prune_vocabulary(*make(), ["fox", "dog", "film", "plot"])
    report = hfc.prune_vocabulary(model, tokenizer, [("fox", "dog"), ["film", "plot"]])
    assert (report.old_ids, report.covered, report.texts) == (expected.old_ids, 1, 2)


def test_the_report_says_what_it_saved():
    model, tokenizer = make()
    report = hfc.prune_vocabulary(model, tokenizer, ["a film", "a dog"], alphabet="used")
    assert isinstance(report, VocabularyReport)
    figures = json.loads(report.to_json())
    assert figures["tokens"] == [len(tokenizer), len(report.tokenizer)]
    assert figures["parameters"][1] == sum(parameter.numel() for parameter in model.parameters())
    assert figures["texts"] == 2
    text = report.to_text()
    assert "100.0% of the 2 texts get the same pieces as before" in text
    assert f"{figures['characters_without_piece']:,} characters of the old vocabulary have no piece" in text
    assert "<table" in report._repr_html_()


# Refusals


def untouched(model, tokenizer, match, texts=TEXTS, **settings):
    before, config, vocabulary = state_of(model), copy.deepcopy(model.config.to_dict()), tokenizer.get_vocab()
    modules = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(hfc.CompressionError, match=match):
        hfc.prune_vocabulary(model, tokenizer, texts, **settings)
    assert same_bits(before, model.state_dict())
    assert model.config.to_dict() == config
    assert tokenizer.get_vocab() == vocabulary
    for name, module in model.named_modules():
        assert vars(module) == modules[name]


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ("a film", r"texts must be a list .* not str: pass \[text\]"),
        ([], "texts holds no text"),
        (iter(()), "texts holds no text"),
        (7, "not int"),
        ({"text": ["a"]}, "not dict"),
        ([{"review": "a"}], r"Number 0 of texts is .*dataset\['text'\]"),
        (["a film", None], "Number 1 of texts is None, not a text like the first"),
        ([("a", "b"), "c"], "Number 1 of texts is 'c', not a pair of texts like the first"),
        (["", " "], "The texts hold no token but special ones"),
        (["a film", "a \ud800 film"], r"Number 1 of texts has '\\ud800', which is no character"),
        ([("a", "b"), ("c", "\udcff")], r"Number 1 of texts has '\\udcff'"),
    ],
)
def test_texts_that_are_none_are_refused(texts, match):
    untouched(*make(), match, texts)


@pytest.mark.parametrize("pairs", [[], ["b"]])
def test_rows_with_texts_are_the_texts(pairs):
    rows = [dict(zip(("text", "text_pair"), (text, *pairs), strict=False)) for text in TEXTS]
    reports = [hfc.prune_vocabulary(*make(), given) for given in (rows, [(t, *pairs) if pairs else t for t in TEXTS])]
    assert reports[0].to_dict() == reports[1].to_dict()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"keep": "fox"}, r"keep='fox' must list tokens: pass \['fox'\]"),
        ({"keep": ["zebrafish"]}, "keep names 'zebrafish', which is no token"),
        ({"keep": [3]}, "keep names 3"),
        ({"keep": None}, "keep=None"),
        ({"min_count": 0}, "min_count=0"),
        ({"min_count": 1.5}, r"min_count=1\.5"),
        ({"alphabet": "latin"}, "alphabet='latin' is unknown; choose one of all, used"),
    ],
)
def test_arguments_out_of_range_are_refused(settings, match):
    untouched(*make(), match, **settings)


def test_a_tokenizer_that_does_not_fit_is_refused():
    model, tokenizer = make()
    tokenizer.add_tokens(["<new>"])
    untouched(model, tokenizer, r"gives '<new>' the id .*resize_token_embeddings\(len\(tokenizer\)\)")
    model.config.vocab_size = 7
    untouched(model, tokenizer, "but its config says vocab_size=7")
    with pytest.raises(hfc.CompressionError, match="must be a transformers tokenizer, not Tokenizer"):
        hfc.prune_vocabulary(model, tokenizer.backend_tokenizer, TEXTS)


def test_models_that_have_no_row_for_each_token_are_refused():
    config = CanineConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with torch.device("cpu"):
        model = CanineForSequenceClassification(config)
    untouched(model, make_tokenizer("wordpiece"), "Canine.*(vocab_size|no embedding)")
    untouched(model, CanineTokenizer(), "CanineTokenizer is not a fast tokenizer")
    head = BertForMaskedLM(make()[0].config)
    untouched(head, make_tokenizer("wordpiece"), "BertForMaskedLM has a head with an output for each token")


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_quantized_and_meta_models_are_refused():
    model, tokenizer = make()
    with torch.device("meta"):
        meta = type(model)(model.config)
    untouched(meta, tokenizer, "is on the meta device")
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    with pytest.raises(hfc.CompressionError, match="quantized"):
        hfc.prune_vocabulary(quantized, tokenizer, TEXTS)


def test_a_model_that_reads_ids_otherwise_is_refused_and_restored():
    model, tokenizer = make()

    def parity(module, args, kwargs):
        module.shift = float(kwargs["input_ids"].sum() % 7)

    def add(module, args, kwargs, outputs):
        outputs.logits = outputs.logits + module.shift
        return outputs

    model.shift = 0.0
    handles = (
        model.register_forward_pre_hook(parity, with_kwargs=True),
        model.register_forward_hook(add, with_kwargs=True),
    )
    before, config = state_of(model), model.config
    with pytest.raises(hfc.CompressionError, match="returns other logits for the same texts"):
        hfc.prune_vocabulary(model, tokenizer, TEXTS)
    assert same_bits(before, model.state_dict())
    assert model.config is config
    assert config.vocab_size == model.get_input_embeddings().num_embeddings == len(tokenizer)
    for handle in handles:
        handle.remove()
    hfc.prune_vocabulary(model, tokenizer, TEXTS)


# With the other verbs

ALONE = """
import sys
sys.modules["hfcompress"] = None
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
batch = tokenizer(["the plot", "a bad film with a good plot"], padding=True, return_tensors="pt")
with torch.no_grad():
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    logits = model(**batch).logits.double().flatten().tolist()
    print(logits, batch["input_ids"][0, -1].item(), model.config.pad_token_id)
"""


def test_the_folder_loads_where_there_is_no_hfcompress(tmp_path):
    model, tokenizer = make("roberta", "byte-level")
    expected = logits(model, tokenizer, COVERED[:2])
    report = hfc.prune_vocabulary(model, tokenizer, TEXTS)
    model.save_pretrained(tmp_path)
    report.tokenizer.save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{expected.double().flatten().tolist()} 1 1"


def test_it_composes_with_pruning_shrinking_and_packing(tmp_path):
    model, tokenizer = make("bert", "unigram")
    hfc.prune_global_l1(model, 0.5)
    hfc.prune_structured(model, heads=0.25, neurons=0.3, importance="l1")
    expected = logits(model, tokenizer, COVERED)
    report = hfc.prune_vocabulary(model, tokenizer, TEXTS)
    zeros = hfc.sparsity_report(model).sparsity
    assert torch.equal(logits(model, report.tokenizer, COVERED), expected)
    hfc.save_compressed(model, tmp_path, sparse="auto", processing_class=report.tokenizer)
    loaded, new = hfc.load_compressed(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded, new, COVERED), expected)
    assert hfc.sparsity_report(loaded).sparsity == zeros > 0.3
    hfc.prune_structured(loaded, neurons=0.5, importance="l1")
    again = hfc.prune_vocabulary(loaded, new, TEXTS[:1], alphabet="used")
    assert again.tokens[1] < report.tokens[1]
    rows = hfc.compare(
        {"small": loaded, "packed": copy.deepcopy(loaded)}, TEXTS[:1], processing_class=again.tokenizer, repeats=2
    )
    assert "packed" in rows.to_text()


@pytest.mark.parametrize("cached", [False, True])
def test_a_student_learns_from_a_teacher_with_the_full_vocabulary(cached, tmp_path):
    teacher, old = make("bert")
    student = copy.deepcopy(teacher)
    report = hfc.prune_vocabulary(student, old, TEXTS, alphabet="used")
    data = Dataset.from_dict({"text": COVERED, "labels": [0, 1, 0, 1, 1]})
    if cached:
        data = hfc.cache_teacher_logits(teacher, data, processing_class=old, cache_dir=tmp_path / "cache")
        data = data.remove_columns("text").add_column("input_ids", report.tokenizer(COVERED)["input_ids"])
    else:
        data = data.map(lambda row: report.tokenizer(row["text"]))
    args = arguments(
        hfc.DistillationArguments,
        tmp_path,
        alpha=1.0,
        teacher_loss="mse_logits",
        learning_rate=0.0,
        logging_strategy="steps",
        logging_steps=1,
    )
    trainer = hfc.DistillationTrainer(
        model=student,
        teacher=teacher,
        args=args,
        train_dataset=data,
        processing_class=report.tokenizer,
        teacher_processing_class=old,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses
    assert max(losses) < 1e-10  # the same logits, each model by its own ids


def test_a_teacher_with_other_ids_is_not_given_the_students(tmp_path):
    teacher, old = make("bert")
    student = copy.deepcopy(teacher)
    report = hfc.prune_vocabulary(student, old, TEXTS, alphabet="used")
    data = Dataset.from_dict({"text": COVERED, "labels": [0, 1, 0, 1, 1]}).map(
        lambda row: report.tokenizer(row["text"])
    )
    with pytest.raises(hfc.CompressionError, match=r"The student's vocabulary has .* pass teacher_processing_class="):
        hfc.DistillationTrainer(
            model=student,
            teacher=teacher,
            args=arguments(hfc.DistillationArguments, tmp_path),
            train_dataset=data,
            processing_class=report.tokenizer,
        )


def test_special_tokens_keep_their_names_and_order():
    model, tokenizer = make("bert", "sentencepiece-bpe")
    report = hfc.prune_vocabulary(model, tokenizer, TEXTS, alphabet="used")
    assert report.tokenizer.convert_ids_to_tokens(range(5)) == SPECIAL
    assert report.tokenizer.special_tokens_map == tokenizer.special_tokens_map


def test_a_token_that_is_special_by_name_alone_is_kept():
    pieces = [*SPECIAL, "good", "bad", "film", "[unused1]", "rest"]
    backend = Tokenizer(WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
    tokenizer.sep_token = "[unused1]"  # which no text, no config and no post-processor names
    report = hfc.prune_vocabulary(build(vocab_size=len(pieces)), tokenizer, ["good film"])
    assert report.tokenizer.convert_tokens_to_ids("[unused1]") == report.tokenizer.sep_token_id is not None
    assert "rest" not in report.tokenizer.get_vocab()


def test_a_word_that_was_unknown_is_not_counted_as_covered():
    """It held a character without a piece of its own within a word, which a shorter path can reach."""
    pieces = [*SPECIAL, "a", "b", "c", "##b", "ab", "##bc", "x", "##x"]
    backend = Tokenizer(WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    assert tokenizer.tokenize("abc xbc") == ["<unk>", "x", "##bc"]
    report = hfc.prune_vocabulary(build(vocab_size=len(pieces)), tokenizer, ["abc", "xbc"])
    assert report.tokenizer.tokenize("abc") == ["a", "##bc"]
    assert report.covered == 0.5
    assert report.characters_without_piece == 2  # "##a" and "##c"
