"""Label maps in every spelling: one meaning gives one order, and what has no plain meaning is refused."""

import json
import re

import pytest
import torch
from architectures import arguments, build
from datasets import ClassLabel, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import hfcompress as hfc
from hfcompress import CompressionError
from hfcompress.models.labels import label_maps, label_names, label_order

MODEL = build("bert", 2)
NAMES = st.lists(st.text("abcXYZ09 _-", min_size=1, max_size=6), min_size=2, max_size=25, unique=True)


class Config:
    """Stands for a config that holds whatever was assigned to it."""

    def __init__(self, id2label, label2id):
        self.id2label, self.label2id = id2label, label2id


class Model(torch.nn.Module):
    """Stands for a classifier: a config, and nothing else that tells its classes."""

    def __init__(self, id2label, label2id):
        super().__init__()
        self.config = Config(id2label, label2id)


def defaults(names):
    return {index: f"LABEL_{index}" for index in range(len(names))}


ID2LABEL = {
    "numbers": lambda names: dict(enumerate(names)),
    "JSON": lambda names: json.loads(json.dumps(dict(enumerate(names)))),
    "JSON sorted as text": lambda names: json.loads(
        json.dumps({str(i): n for i, n in enumerate(names)}, sort_keys=True)
    ),
    "floats": lambda names: {float(index): name for index, name in enumerate(names)},
    "a list": list,
    "a tuple": tuple,
    "from behind": lambda names: dict(reversed(list(enumerate(names)))),
    "mixed": lambda names: {index if index % 2 else str(index): name for index, name in enumerate(names)},
    "default": defaults,
    "missing": lambda names: None,
    "empty": lambda names: {},
}
LABEL2ID = {
    "numbers": lambda names: {name: index for index, name in enumerate(names)},
    "text": lambda names: {name: str(index) for index, name in enumerate(names)},
    "by name": lambda names: {name: names.index(name) for name in sorted(names)},
    "a list": list,
    "default": lambda names: {name: index for index, name in defaults(names).items()},
    "default of two": lambda names: {"LABEL_0": 0, "LABEL_1": 1},
    "missing": lambda names: None,
    "empty": lambda names: {},
}
NOTHING = {"default", "default of two", "missing", "empty"}
SPELLINGS = [(one, other) for one in ID2LABEL for other in LABEL2ID if not {one, other} <= NOTHING]


def spelled(names, spelling):
    return ID2LABEL[spelling[0]](names), LABEL2ID[spelling[1]](names)


@settings(max_examples=settings.default.max_examples // 4)  # of each spelling
@given(names=NAMES)
@pytest.mark.parametrize("spelling", SPELLINGS, ids=", ".join)
def test_every_spelling_of_a_map_gives_the_same_order(names, spelling):
    found = label_names(Model(*spelled(names, spelling)))
    assert list(found.items()) == list(enumerate(names))


@given(names=NAMES, data=st.data())
def test_the_order_is_that_of_a_plain_loop(names, data):
    shuffled = data.draw(st.permutations(names))
    one, other = (data.draw(st.sampled_from(SPELLINGS)) for _ in range(2))
    order = label_order(Model(*spelled(names, one)), Model(*spelled(shuffled, other)), strict=True)
    expected = []
    for name in names:
        for place, found in enumerate(shuffled):
            if found == name:
                expected.append(place)
    assert (list(range(len(names))) if order is None else order) == expected


@given(names=NAMES, spelling=st.sampled_from(SPELLINGS))
def test_the_maps_that_are_saved_are_as_transformers_spells_them(names, spelling):
    maps = label_maps(Config(*spelled(names, spelling)))
    assert list(maps["id2label"].items()) == list(enumerate(names))
    assert maps["label2id"] == {name: index for index, name in enumerate(names)}


UNCLEAR = {
    "contradiction": ({0: "no", 1: "yes"}, {"no": 1, "yes": 0}),
    "contradiction in JSON": ({"0": "no", "1": "yes"}, {"no": "1", "yes": "0"}),
    "contradiction in other case": ({0: "no", 1: "yes"}, {"NO": 1, "Yes": 0}),
    "other names": ({0: "no", 1: "yes"}, {"bad": 0, "good": 1}),
    "other numbers": ({0: "no", 1: "yes"}, {"no": 0, "yes": 1, "maybe": 2}),
    "default names permuted": ({0: "LABEL_1", 1: "LABEL_0"}, {"LABEL_0": 0, "LABEL_1": 1}),
    "one name twice": ({0: "no", 1: "no"}, {"no": 1}),
    "one name twice alone": ({0: "no", 1: "no"}, None),
    "two names of one class": (None, {"no": 0, "non": 0, "yes": 1}),
    "a gap": ({0: "no", 2: "yes"}, None),
    "from one": ({"1": "no", "2": "yes"}, None),
    "below zero": ({-1: "no", 0: "yes"}, None),
    "one class twice": ({0: "no", "0": "yes", 1: "maybe"}, None),
    "words for indices": ({"no": 0, "yes": 1}, None),
    "truth values for indices": ({False: "no", True: "yes"}, None),
    "fractions": ({0.5: "no", 1: "yes"}, None),
    "no names": ({0: None, 1: "yes"}, None),
    "a gap in the other": (None, {"no": 0, "yes": 2}),
    "words in the other": (None, {"no": "first", "yes": "second"}),
    "a word": ("no, yes", None),
    "counts": ({0: "LABEL_0", 1: "LABEL_1"}, {"a": 0, "b": 1, "c": 2}),
}


@pytest.mark.parametrize("maps", UNCLEAR.values(), ids=UNCLEAR)
def test_maps_without_a_plain_meaning_are_refused_with_both(maps):
    shown = re.escape(f"id2label={maps[0]!r} and label2id={maps[1]!r}")
    with pytest.raises(CompressionError, match=f"labels of the teacher have no plain meaning: .*{shown}"):
        label_names(Model(*maps), "teacher")


def test_as_many_names_as_the_model_has_classes():
    model = build("bert", 3)
    model.config.id2label, model.config.label2id = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    with pytest.raises(CompressionError, match="they name 2 classes, and the model has 3"):
        label_names(model)


def test_a_class_may_be_known_by_another_name_too():
    config = Config({"0": "no", "1": "yes"}, {"no": "0", "non": "0", "yes": "1"})
    assert label_maps(config) == {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "non": 0, "yes": 1}}


@given(names=NAMES.filter(lambda names: len({name.strip().casefold() for name in names}) == len(names)))
@pytest.mark.parametrize("change", [str.upper, str.swapcase, str.strip])
def test_the_maps_may_spell_a_name_in_other_case(change, names):
    label2id = {change(name): str(index) for index, name in enumerate(names)}
    assert list(label_names(Model(dict(enumerate(names)), label2id)).items()) == list(enumerate(names))


def test_names_that_differ_in_case_are_the_same():
    one, other = Model(["NEGATIVE", "POSITIVE"], None), Model(["positive", "negative"], None)
    assert label_order(one, other, strict=True) == [1, 0]


def test_names_that_differ_are_refused_where_one_order_is_needed():
    one, other = Model(["no", "yes"], None), Model(["bad", "good"], None)
    assert label_order(one, other) is None
    with pytest.raises(CompressionError, match=r"The other has 2 labels .*good.* the first 2 .*yes.*Set id2label"):
        label_order(one, other, strict=True)


def test_no_names_are_in_no_order():
    assert label_names(torch.nn.Linear(2, 2)) == {}
    assert label_order(MODEL, torch.nn.Linear(2, 2), strict=True) is None


def test_the_maps_of_one_model_and_its_copy_need_no_meaning():
    maps = {0: "no", 1: "no"}, {"no": 1}
    assert label_order(Model(*maps), Model(*maps), strict=True) is None


@pytest.mark.parametrize("who", ["first", "second"])
def test_a_model_agrees_with_itself_however_its_labels_are_spelled(who):
    """With twelve labels, so that "10" comes before "2" as text."""
    names = [f"class {index}" for index in range(12)]
    plain, spelled = build("bert", 12).eval(), build("bert", 12).eval()
    spelled.config.id2label = {str(index): name for index, name in enumerate(names)}
    spelled.config.label2id = {name: str(index) for index, name in enumerate(names)}
    plain.config.id2label = dict(enumerate(names))
    plain.config.label2id = {name: index for index, name in enumerate(names)}
    ids = torch.randint(5, 99, (16, 8))
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(16) % 12}
    models = {"first": spelled, "second": plain} if who == "first" else {"first": plain, "second": spelled}
    found = hfc.compare(models, data, repeats=1)
    assert found.rows["second"].agreement == 1.0


def test_models_with_other_labels_are_not_compared_on_one_data_set():
    models = {name: build("bert", 2) for name in ("a", "b")}
    models["a"].config.id2label, models["a"].config.label2id = {0: "no", 1: "yes"}, None
    models["b"].config.id2label, models["b"].config.label2id = {0: "good", 1: "bad"}, None
    data = {"input_ids": torch.full((2, 4), 7), "labels": torch.tensor([0, 1])}
    with pytest.raises(CompressionError, match=r"The model 'b' has 2 labels .*good.*the model 'a' 2 .*yes"):
        hfc.compare(models, data, repeats=1)


@pytest.mark.parametrize("maps", [UNCLEAR["contradiction"], UNCLEAR["one name twice alone"]])
def test_a_save_of_unclear_labels_is_refused_and_writes_nothing(maps, tmp_path):
    model = build("bert", 2)
    model.config.id2label, model.config.label2id = maps
    with pytest.raises(CompressionError, match="labels of the model have no plain meaning"):
        hfc.save_compressed(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_labels_spelled_as_text_are_saved_in_their_order(tmp_path):
    model = build("bert", 12)
    model.config.id2label = {str(index): f"class {index}" for index in sorted(range(12), key=str)}
    model.config.label2id = {f"class {index}": str(index) for index in range(12)}
    hfc.save_compressed(model, tmp_path / "new")
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert list(written["id2label"].items()) == [(str(index), f"class {index}") for index in range(12)]
    assert written["label2id"] == {f"class {index}": index for index in range(12)}


UNREAD = {  # by transformers, but with one meaning
    "a list": (["no", "yes", "maybe"], {"no": 0, "yes": 1, "maybe": 2}),
    "two lists": (["no", "yes", "maybe"], ["no", "yes", "maybe"]),
    "a list of one": ({0: "no", 1: "yes", 2: "maybe"}, ["no", "yes", "maybe"]),
    "the other alone": (None, {"no": "0", "yes": "1", "maybe": "2"}),
}


@pytest.mark.parametrize("maps", UNREAD.values(), ids=UNREAD)
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "distilbert"])
def test_maps_that_transformers_does_not_read_are_no_obstacle(architecture, maps, tmp_path):
    model = build(architecture, 3).eval()
    model.config.id2label, model.config.label2id = maps
    hfc.prune_structured(model, neurons=0.5)
    hfc.save_compressed(model, tmp_path / "new")
    student = hfc.student_from_teacher(model, 1)
    assert label_order(student, model, strict=True) is None
    again = hfc.load_compressed(tmp_path / "new")
    assert again.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert again.config.label2id == {"no": 0, "yes": 1, "maybe": 2}
    assert (model.config.id2label, model.config.label2id) == maps


@pytest.mark.parametrize("column", ["label", "labels", "label_ids"])
@pytest.mark.parametrize(
    ("names", "found"),
    [(["yes", "no"], True), (["No", "YES"], False), (["bad", "good"], False), (["LABEL_0", "LABEL_1"], False)],
)
def test_class_names_of_a_data_set_in_another_order(names, found, column, tmp_path):
    model = build("bert", id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    data = Dataset.from_list([{"input_ids": [5, 6], column: 0}, {"input_ids": [7, 8], column: 1}])
    data = data.cast_column(column, ClassLabel(names=names))
    args = arguments(hfc.DistillationArguments, tmp_path, alpha=0.0)
    for read in (
        lambda: hfc.measure(model, data, repeats=1),
        lambda: hfc.DistillationTrainer(model=model, args=args, train_dataset=data),
        lambda: hfc.DistillationTrainer(model=model, args=args, eval_dataset={"one": data}),
    ):
        if found:
            with pytest.raises(CompressionError, match="'yes' is class 0 of the data and class 1 of the model"):
                read()
        else:
            read()
    aligned = data.align_labels_with_mapping(model.config.label2id, column) if found else data
    hfc.measure(model, aligned, repeats=1)
