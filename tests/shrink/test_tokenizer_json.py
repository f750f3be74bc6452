"""The smaller tokenizer: the same pieces for texts whose ids are kept, and no new unknown text for others."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import BYTES, CORPUS, KINDS, SPECIAL, WORDPIECE, make_tokenizer
from tokenizers import Tokenizer, processors

from hfcompress import CompressionError
from hfcompress.shrink.tokenizer_json import (
    added_ids,
    characters_without_piece,
    check_kind,
    model_ids,
    needed_ids,
    renumber,
)

WORDS = sorted({word for text in CORPUS for word in text.split()})
PARTS = ["un", "ly", "ing", "qu", "ü", "é", "电", "影", "##", "▁", "Ġ", "</w>", "<0x41>", "☃", "ﬁ", "<mask>", "'s"]
texts = st.lists(
    st.one_of(st.sampled_from(WORDS), st.sampled_from(PARTS), st.text(max_size=4)), min_size=1, max_size=8
).flatmap(lambda parts: st.sampled_from([" ".join(parts), "".join(parts)]))
some_texts = st.lists(texts, min_size=1, max_size=5)
fewer_examples = settings(max_examples=settings.default.max_examples // 5)  # of each kind of tokenizer
every_kind = pytest.mark.parametrize("kind", KINDS)


def smaller(backend, chosen, alphabet="all"):
    """The smaller backend, and the new ids of the old ones that it keeps."""
    data = json.loads(backend.to_str())
    used = {index for text in chosen for index in backend.encode(text).ids}
    kept = sorted(needed_ids(data, used, alphabet, used))
    new_ids = {old: new for new, old in enumerate(kept)}
    return Tokenizer.from_str(json.dumps(renumber(data, new_ids))), new_ids


def bare(text):
    """Decoded text without what marks pieces."""
    return text.replace("##", "").replace("@@", "").replace(" ", "")


def unknown_word(kind, backend, text):
    """Whether a WordPiece has made a word unknown, which is the exception that is documented."""
    return kind in WORDPIECE and "<unk>" in backend.encode(text).tokens


@every_kind
@fewer_examples
@given(some_texts, some_texts, st.sampled_from(["all", "used"]))
def test_a_text_whose_ids_are_kept_gets_the_same_pieces(kind, chosen, others, alphabet):
    backend = make_tokenizer(kind).backend_tokenizer
    new, new_ids = smaller(backend, chosen, alphabet)
    for text in [*chosen, *others, *WORDS[:40]]:
        old = backend.encode(text)
        if set(old.ids) <= new_ids.keys() and not unknown_word(kind, backend, text):
            found = new.encode(text)
            assert found.tokens == old.tokens
            assert found.ids == [new_ids[index] for index in old.ids]
            assert found.offsets == old.offsets
            assert new.decode(found.ids) == backend.decode(old.ids)


@every_kind
@fewer_examples
@given(some_texts, some_texts)
def test_another_text_is_not_unknown_where_its_characters_have_pieces(kind, chosen, others):
    backend = make_tokenizer(kind).backend_tokenizer
    new, _ = smaller(backend, chosen)
    lacking = characters_without_piece(json.loads(backend.to_str()), new.get_vocab())
    for text in others if kind != "word-level" else ():
        old = backend.encode(text)
        if "<unk>" not in old.tokens and not lacking & set("".join(old.tokens)):
            found = new.encode(text)
            assert "<unk>" not in found.tokens
            assert bare(new.decode(found.ids)) == bare(backend.decode(old.ids))


@every_kind
def test_with_the_whole_alphabet_no_character_loses_its_piece(kind):
    backend = make_tokenizer(kind).backend_tokenizer
    data = json.loads(backend.to_str())
    new, _ = smaller(backend, ["a film"])
    before, after = (characters_without_piece(data, pieces) for pieces in (model_ids(data), new.get_vocab()))
    assert before == after
    used, _ = smaller(backend, ["a film"], "used")
    if kind != "word-level":
        assert set("xyz") <= characters_without_piece(data, used.get_vocab())
        assert used.get_vocab_size() < new.get_vocab_size() < backend.get_vocab_size()


@every_kind
def test_special_and_added_tokens_stay_in_their_order(kind):
    backend = make_tokenizer(kind, added=["<new>", "🙂"]).backend_tokenizer
    new, _ = smaller(backend, ["<new> film"], "used")
    order = sorted(added_ids(json.loads(new.to_str())).items(), key=lambda item: item[1])
    assert [token for token, _ in order] == [*SPECIAL, "<new>", "🙂"]
    assert sorted(new.get_vocab().values()) == list(range(new.get_vocab_size()))
    assert new.encode("film 🙂<mask>").tokens[-3:] == backend.encode("film 🙂<mask>").tokens[-3:]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "bpe" in kind or kind in ("byte-level", "ignore-merges")])
@pytest.mark.parametrize("written", [list, " ".join])
def test_all_merges_among_kept_pieces_stay_in_order(kind, written):
    data = json.loads(make_tokenizer(kind).backend_tokenizer.to_str())
    data["model"]["merges"] = [written(merge) for merge in data["model"]["merges"]]
    backend = Tokenizer.from_str(json.dumps(data))
    used = set(backend.encode("a very long film").ids)
    kept = needed_ids(data, used, "all", used)
    new = renumber(data, {old: index for index, old in enumerate(sorted(kept))})
    pieces, prefix = new["model"]["vocab"], data["model"]["continuing_subword_prefix"] or ""
    expected = []
    for merge in data["model"]["merges"]:
        first, second = merge.split(" ") if written is not list else merge
        if {first, second, first + second.removeprefix(prefix)} <= pieces.keys():
            expected.append(merge)
    assert new["model"]["merges"] == expected
    assert 0 < len(expected) < len(data["model"]["merges"])
    found, same = Tokenizer.from_str(json.dumps(new)), {old: index for index, old in enumerate(sorted(kept))}
    assert found.encode("a very long film").ids == [same[index] for index in backend.encode("a very long film").ids]


@pytest.mark.parametrize("kind", ["unigram", "unigram-bytes"])
def test_the_score_of_unknown_text_stays(kind):
    data = json.loads(make_tokenizer(kind).backend_tokenizer.to_str())
    kept = sorted(needed_ids(data, {5, 6}, "used", {5, 6}))
    new = renumber(data, {old: index for index, old in enumerate(kept)})
    before, after = (min(score for _, score in one["model"]["vocab"]) for one in (data, new))
    assert before == after
    assert new["model"]["vocab"][new["model"]["unk_id"]][0] == "<unk>"


PROCESSORS = {
    "template": processors.TemplateProcessing("$A </s> <mask>", "$A <s> $B", [("<s>", 0), ("</s>", 2), ("<mask>", 4)]),
    "bert": processors.BertProcessing(("</s>", 2), ("<s>", 0)),
    "roberta": processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
    "sequence": processors.Sequence(
        [processors.ByteLevel(), processors.TemplateProcessing("$A <mask>", "$A $B <mask>", [("<mask>", 4)])]
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_post_processors_and_padding_get_the_new_ids(name):
    backend = make_tokenizer("byte-level").backend_tokenizer
    backend.post_processor = PROCESSORS[name]
    backend.enable_padding(pad_id=1, pad_token="<pad>", length=12)
    data = json.loads(backend.to_str())
    old = backend.encode("film", "plot").ids
    kept = needed_ids(data, set(old), "used", set(old))
    new_ids = {index: place for place, index in enumerate(sorted(kept, reverse=True))}
    new = Tokenizer.from_str(json.dumps(renumber(data, new_ids)))
    assert new.encode("film", "plot").ids == [new_ids[index] for index in old]
    assert {key: data[key] for key in ("normalizer", "pre_tokenizer", "decoder", "truncation")} == {
        key: json.loads(new.to_str())[key] for key in ("normalizer", "pre_tokenizer", "decoder", "truncation")
    }


def test_dropout_and_unknown_kinds_of_models_are_refused():
    data = json.loads(make_tokenizer("bpe").backend_tokenizer.to_str())
    data["model"]["dropout"] = 0.1
    with pytest.raises(CompressionError, match=r"dropout=0\.1.*dropout = None"):
        check_kind(data)
    data["model"]["type"] = "Hashes"
    with pytest.raises(CompressionError, match="'Hashes'; the vocabulary of WordPiece, BPE, Unigram"):
        check_kind(data)


def test_the_pieces_of_bpe_are_those_that_are_merged_and_no_others():
    """Of the many merges of a converted vocabulary that make a piece, those that a text goes through."""
    data = json.loads(make_tokenizer("sentencepiece-bpe").backend_tokenizer.to_str())
    ids, ranks = data["model"]["vocab"], {tuple(merge): rank for rank, merge in enumerate(data["model"]["merges"])}
    piece = max((p for p in ids if p not in (*SPECIAL, *BYTES)), key=len)
    symbols, passed = list(piece), {piece, *piece}
    while len(symbols) > 1:
        rank, index = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(symbols)))
        assert rank < len(ranks)
        symbols[index : index + 2] = ["".join(symbols[index : index + 2])]
        passed.add(symbols[index])
    kept = needed_ids(data, {ids[piece]}, "used", {ids[piece]})
    assert {p for p, index in ids.items() if index in kept} == passed | set(SPECIAL)
