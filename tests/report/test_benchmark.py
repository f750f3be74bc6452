"""Sizes, FLOPs and quality against independent counts."""

import copy
import math

import pytest
import torch
from architectures import ARCHITECTURES, EOS, SHRINKABLE, arguments, batch, build, rows, same_bits, state_of
from datasets import Dataset
from scipy.stats import entropy
from sklearn import metrics
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from hfcompress import CompressionError, compare, measure, prune_global_l1, student_from_teacher
from hfcompress.metrics import calibration_error
from hfcompress.models.profiling import count_flops, peak_bytes
from hfcompress.models.weights import select_matrices
from hfcompress.report.benchmark import packed_bytes
from hfcompress.report.intervals import wilson_interval

DATA = batch(19, num_labels=5)
INPUTS = {key: value for key, value in DATA.items() if key != "labels"}
QUICK = {"batch_size": 8, "repeats": 2}
everywhere = pytest.mark.parametrize("architecture", ARCHITECTURES)


@everywhere
@pytest.mark.parametrize("num_labels", [2, 5])
def test_sizes_are_those_counted_and_written(architecture, num_labels, tmp_path):
    model = build(architecture, num_labels)
    prune_global_l1(model, 0.25)
    result = measure(model)
    model.save_pretrained(tmp_path)
    file = (tmp_path / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(file[:8], "little")
    assert result.bytes == len(file) - header
    assert result.parameters == sum(parameter.numel() for parameter in model.parameters())
    matrices = [matrix.weight for matrix in select_matrices(model).matrices]
    assert result.zeros == sum(int((weight == 0).sum()) for weight in matrices)
    assert result.sparsity == result.zeros / sum(weight.numel() for weight in matrices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_half_the_bytes(dtype):
    assert 2 * measure(build("bert").to(dtype)).bytes == measure(build("bert")).bytes


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    result = measure(model)
    assert (result.parameters, result.bytes) == (16, 64)


def test_without_inputs_only_the_size_is_measured():
    result = measure(build("bert"))
    timed = ("flops", "latency_ms", "latency_iqr_ms", "batch_size", "throughput", "peak_bytes")
    quality = ("examples", "accuracy", "accuracy_interval", "f1", "cross_entropy", "calibration_error", "agreement")
    assert [getattr(result, name) for name in (*timed, *quality, "mcnemar")] == [None] * 14
    assert result.passes == ()
    assert (result.device, result.dtype, result.threads) == ("cpu", "float32", torch.get_num_threads())


def test_packed_bytes_are_values_and_entropy_of_places():
    model = build("bert")
    prune_global_l1(model, 0.9)
    wanted = 0
    for tensor in model.state_dict().values():
        density = float((tensor != 0).double().mean())
        bits = tensor.numel() * entropy([density, 1 - density], base=2)
        wanted += min(tensor.nbytes, int((tensor != 0).sum()) * tensor.itemsize + math.ceil(bits / 8))
    result = measure(model)
    assert result.bytes_packed == packed_bytes(model) == wanted < result.bytes
    assert result.nonzeros == sum(int((parameter != 0).sum()) for parameter in model.parameters())


def test_packed_bytes_are_never_more_than_dense():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    assert packed_bytes(model) == measure(model).bytes == 4 * (16 + 72)
    model[2].weight.data.zero_()
    assert packed_bytes(model) == 4 * (16 + 8)
    model[2].weight = nn.Parameter(torch.empty(0, 8))
    assert packed_bytes(model) == 4 * (16 + 8)


def transformer_flops(tokens, width, inner, layers):
    projections, feed_forward = 4 * width * width, 2 * width * inner
    attention = 2 * tokens * width  # for each token: the products of queries and keys, and the sums of values
    return layers * tokens * 2 * (projections + feed_forward + attention)


def test_flops_of_bert_base_are_those_of_the_formula():
    with torch.device("meta"):  # its shapes alone, no numbers
        model = BertForSequenceClassification(BertConfig())
        ids = torch.ones(3, 128, dtype=torch.long)
    pooler, head = 2 * 768 * 768, 2 * 768 * 2
    assert count_flops(model, {"input_ids": ids}) == 3 * (transformer_flops(128, 768, 3072, 12) + pooler + head)


def test_flops_of_gpt2_are_those_of_the_formula():
    model = build("gpt2")
    head = 16 * 2 * 32 * 2  # at every token
    assert measure(model, length=16, batch_size=3, repeats=1).flops == 3 * (transformer_flops(16, 32, 64, 2) + head)


def eager_flops(model, inputs):
    eager = copy.deepcopy(model).eval().requires_grad_(False)
    eager.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        eager(**inputs)
    return counter.get_total_flops()


@everywhere
def test_flops_are_those_of_written_out_attention(architecture):
    model = build(architecture, 5)
    first = {key: value[:8] for key, value in INPUTS.items()}
    assert measure(model, INPUTS, **QUICK).flops == eager_flops(model, first)


def test_attention_flops_grow_with_the_square_of_the_length():
    model = build("bert")
    lengths = [{"input_ids": torch.full((1, length), 7)} for length in (8, 16, 32)]
    short, middle, long = (measure(model, inputs, repeats=1).flops for inputs in lengths)
    # a + b n + c n^2 with a for pooler and head; 2 layers, 2 products of 2 * n * n * 32
    assert (long - middle) - 2 * (middle - short) == 2 * 2 * 2 * 32 * (32**2 - 3 * 16**2 + 2 * 8**2)


def test_zeros_are_multiplied_like_other_numbers():
    model = build("bert", 5)
    before = measure(model, INPUTS, **QUICK).flops
    prune_global_l1(model, 0.9)
    assert measure(model, INPUTS, **QUICK).flops == before


@everywhere
def test_quality_is_that_of_a_plain_loop(architecture):
    model = build(architecture, 5, dropout=True)
    result = measure(model, DATA, **QUICK)
    with torch.no_grad():
        logits = torch.stack(
            [model.eval()(**{k: v[i : i + 1] for k, v in INPUTS.items()}).logits[0] for i in range(19)]
        )
    correct = int((logits.argmax(-1) == DATA["labels"]).sum())
    assert (result.examples, result.batch_size) == (19, 8)
    assert result.accuracy == correct / 19
    assert result.cross_entropy == pytest.approx(float(cross_entropy(logits, DATA["labels"])), rel=1e-5)
    assert result.accuracy_interval == pytest.approx(wilson_interval(correct, 19))
    predictions, probabilities = logits.argmax(-1), logits.double().softmax(-1)
    assert result.f1 == pytest.approx(metrics.f1_score(DATA["labels"], predictions, average="macro"))
    assert result.calibration_error == pytest.approx(calibration_error(probabilities, DATA["labels"]), rel=1e-4)


def test_without_labels_there_is_no_accuracy():
    result = measure(build("bert", 5), INPUTS, **QUICK)
    assert (result.examples, result.accuracy, result.cross_entropy) == (None, None, None)
    assert result.flops > 0


def test_the_batch_is_no_larger_than_the_data():
    assert measure(build("bert", 5), INPUTS, batch_size=100, repeats=1).batch_size == 19


def test_models_with_inputs_of_their_own_are_timed_with_as_many():
    model = build("bert", 5)
    few = {name: value[:3] for name, value in INPUTS.items()}
    found = compare({"many": model, "few": model}, {"many": INPUTS, "few": few}, batch_size=16, repeats=1)
    assert [row.batch_size for row in found.rows.values()] == [3, 3]


def test_a_name_that_is_no_text_and_a_label_of_no_class_are_refused():
    model = build("bert", 5)
    with pytest.raises(CompressionError, match="The model 1 has no text for a name; call it '1'"):
        compare({1: model, 2: model}, INPUTS)
    labels = torch.zeros(19, dtype=torch.long)
    labels[4] = -100
    with pytest.raises(CompressionError, match=r"Row 4 \(from 0\).* -100, which is no class; leave out"):
        measure(model, INPUTS | {"labels": labels})


@pytest.mark.parametrize("repeats", [1, 3])
def test_times_are_positive(repeats):
    result = measure(build("bert", 5), INPUTS, batch_size=1, repeats=repeats)
    assert result.batch_size == 1
    assert result.latency_ms > 0
    assert result.latency_iqr_ms >= 0
    assert repeats > 1 or result.latency_iqr_ms == 0


def test_every_batch_size_and_length_is_timed():
    model = build("bert", 5)
    result = measure(model, batch_size=[1, 3], length=[8, 64], repeats=2)
    assert [(one.batch_size, one.tokens) for one in result.passes] == [(1, 8), (1, 64), (3, 8), (3, 64)]
    for one in result.passes:
        ids = torch.full((one.batch_size, one.tokens), 7)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert one.flops == eager_flops(model, inputs)
        assert one.peak_bytes == peak_bytes(model, inputs)
        assert len(one.times_ms) == 2
        assert one.latency_ms == sum(one.times_ms) / 2
        assert one.throughput == pytest.approx(1000 * one.batch_size / one.latency_ms)
    assert (result.flops, result.peak_bytes) == (result.passes[0].flops, result.passes[0].peak_bytes)
    assert result.accuracy is None


def test_each_round_reverses_the_order_of_the_models():
    order = []
    models = {name: build("bert", 5) for name in ("one", "two", "three")}
    for name, model in models.items():
        model.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    compare(models, INPUTS, repeats=3)
    rounds = [order[start : start + 3] for start in range(0, 18, 3)]
    assert rounds == [list(models), list(models)[::-1]] * 3  # three to warm up, three to count


def test_a_data_set_is_measured_like_padded_tensors():
    model = build("bert", 5)
    lengths = DATA["attention_mask"].sum(-1).tolist()
    data = [
        {"input_ids": ids[:length], "label": label, "text": "unread", "idx": 7}
        for ids, label, length in zip(DATA["input_ids"].tolist(), DATA["labels"].tolist(), lengths, strict=True)
    ]
    wanted = measure(model, DATA, **QUICK)
    for given in (data, Dataset.from_list(data), Dataset.from_list(data).with_format("torch")):
        found = measure(model, given, **QUICK)
        assert (found.examples, found.accuracy, found.f1) == (19, wanted.accuracy, wanted.f1)
        assert found.cross_entropy == pytest.approx(wanted.cross_entropy, rel=1e-5)
        assert found.passes[0].tokens == max(lengths[:8])


class Collating:
    """Stands for a tokenizer: pads on the left, with an id of its own."""

    padding_side = "left"

    def pad(self, rows, **_):
        longest = max(len(row["input_ids"]) for row in rows)
        return {
            key: torch.tensor([[9 * (key == "input_ids")] * (longest - len(r[key])) + r[key] for r in rows])
            for key in rows[0]
        }


def test_the_tokenizer_pads_where_it_is_given():
    model = build("gpt2", 5)
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    data = [{"input_ids": [5, 6, 7, 8]}, {"input_ids": [5, 6]}]
    for tokenizer in (Collating(), {"a": Collating()}):
        compare({"a": model}, data, processing_class=tokenizer, repeats=1)
        assert seen.pop().tolist() == [[5, 6, 7, 8], [9, 9, 5, 6]]
    compare({"a": model}, data, repeats=1)
    assert seen.pop().tolist() == [[5, 6, 7, 8], [5, 6, 0, 0]]


def predictions(model):
    with torch.no_grad():
        return model.eval()(**INPUTS).logits.argmax(-1)


def test_predictions_are_compared_with_those_of_the_reference():
    first, other = build("bert", 5), build("bert", 5, seed=1)
    wanted = predictions(first) == DATA["labels"], predictions(other) == DATA["labels"]
    agreement = float((predictions(first) == predictions(other)).double().mean())
    found = compare({"first": first, "other": other}, DATA, **QUICK).rows
    assert (found["first"].agreement, found["first"].mcnemar) == (None, None)
    for row in (found["other"], measure(other, DATA, reference=first, **QUICK)):
        assert row.agreement == agreement
        assert row.mcnemar.only_first == int((wanted[0] & ~wanted[1]).sum())
        assert row.mcnemar.only_this == int((wanted[1] & ~wanted[0]).sum())
    assert measure(other, DATA, reference=other, **QUICK).agreement == 1


def test_predictions_for_other_examples_are_not_compared():
    models = {"first": build("bert", 5), "other": build("bert", 5, seed=1)}
    own = {"first": DATA, "other": {key: value[:11] for key, value in DATA.items()}}
    assert compare(models, own, **QUICK).rows["other"].agreement is None
    own["first"] = INPUTS
    assert compare(models, own, **QUICK).rows["other"].mcnemar is None


def test_a_smaller_model_has_smaller_figures():
    model = build("bert", 5)
    found = compare({"full": model, "half": student_from_teacher(model, 1)}, DATA, **QUICK)
    ratios = found.ratios("half")
    assert all(ratios[name] < 1 for name in ("parameters", "nonzeros", "bytes", "bytes_packed", "bytes_in_memory"))
    assert all(ratios[name] < 1 for name in ("flops", "peak_bytes"))
    assert ratios["parameters"] == found.rows["half"].parameters / found.rows["full"].parameters


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_not_changed(training):
    model = build("bert", 5, dropout=True).train(training)
    model.bert.pooler.train(not training)
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    modes, before = [module.training for module in model.modules()], state_of(model)
    implementation, random_state = model.config._attn_implementation, torch.get_rng_state()
    measure(model, DATA, **QUICK)
    assert [module.training for module in model.modules()] == modes
    assert same_bits(model.state_dict(), before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    assert model.config._attn_implementation == implementation
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_mode_is_restored_where_the_model_fails():
    model = build("bert").train()
    with pytest.raises(CompressionError, match="index out of range"):
        measure(model, {"input_ids": torch.full((2, 3), 10_000)}, repeats=1)
    assert all(module.training for module in model.modules())


def test_inputs_may_come_straight_from_a_tokenizer():
    model = build("bert", 5)
    found = measure(model, BatchEncoding(dict(DATA)), **QUICK)
    assert found.accuracy == measure(model, DATA, **QUICK).accuracy


def test_models_are_measured_as_they_are_alone():
    models = {"one": build("bert", 5), "other": build("gpt2", 5)}
    both = compare(models, DATA, **QUICK)
    assert list(both.rows) == ["one", "other"]
    for name, model in models.items():
        alone = measure(model, DATA, **QUICK)
        for field in ("parameters", "bytes", "flops", "accuracy", "accuracy_interval", "cross_entropy", "examples"):
            assert getattr(both.rows[name], field) == getattr(alone, field), field


def test_each_model_may_have_inputs_of_its_own():
    models = {"wide": build("bert", 5), "narrow": build("bert", 5, vocab_size=20)}
    own = {"wide": DATA, "narrow": batch(11, length=4, num_labels=5, vocabulary=20)}
    result = compare(models, own, **QUICK)
    assert (result.rows["wide"].examples, result.rows["narrow"].examples) == (19, 11)
    assert result.rows["narrow"].flops == measure(models["narrow"], own["narrow"], **QUICK).flops


@pytest.mark.parametrize(
    ("models", "inputs", "numbers", "message"),
    [
        ({}, None, {}, "models is empty"),
        ({"a": "bert"}, DATA, {"batch_size": 0}, "batch_size=0"),
        ({"a": "bert"}, DATA, {"repeats": 0}, "repeats=0"),
        ({"a": "bert"}, DATA, {"batch_size": "16"}, "batch_size='16'"),
        ({"a": "bert"}, DATA, {"repeats": 2.5}, "repeats=2.5"),
        ({"a": "bert"}, {"train": [{"input_ids": [1]}]}, {}, "inputs for 'a' .* found {'train': 'list'}"),
        ({"a": "bert"}, {}, {}, "inputs for 'a'"),
        ({"a": "bert"}, {"labels": DATA["labels"]}, {}, "inputs for 'a'"),
        ({"a": "bert"}, {key: value[:0] for key, value in DATA.items()}, {}, "inputs for 'a'.*'input_ids': 0"),
        ({"a": "bert"}, DATA | {"labels": DATA["labels"][:3]}, {}, "inputs for 'a'.*'labels': 3"),
        ({"a": "bert"}, {"input_ids": DATA["input_ids"].tolist()}, {}, "inputs for 'a'"),
        ({"a": "bert", "b": "bert"}, {"a": DATA}, {}, "inputs has none for 'b'; it has 'a'"),
        ({"a": "bert"}, DATA, {"processing_class": {"b": None}}, "processing_class has none for 'a'; it has 'b'"),
        ({"a": "bert"}, None, {"length": [8, 0]}, "length=0 must be"),
        ({"a": "bert"}, None, {"batch_size": []}, r"batch_size=\[\]"),
        ({"a": "bert"}, [], {}, "inputs for 'a' .* found list of 0 rows with no columns"),
        ({"a": "bert"}, [{"text": "a"}], {}, "are texts, such as .*pass their tokenizer as processing_class"),
        ({"a": "bert"}, [{"input_ids": [1]}, {"input_ids": []}], {}, "'a' has 0 tokens"),
        ({"a": "bert"}, [{"input_ids": [1], "label": "good"}], {}, "column 'label' of the inputs for 'a'"),
        ({"a": "bert"}, DATA | {"labels": DATA["labels"].float()}, {}, "labels .* for 'a' must be class indices"),
        (
            {"a": "bert"},
            DATA | {"labels": DATA["labels"] - 9},
            {},
            r"inputs for .a. has the label -\d, which is no class",
        ),
        ({"a": "bert"}, DATA | {"labels": DATA["labels"] + 9}, {}, "labels of the inputs for 'a' go up to 13"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(models, inputs, numbers, message):
    with pytest.raises(CompressionError, match=message):
        compare({name: build(kind, 5) for name, kind in models.items()}, inputs, **numbers)


def test_a_model_on_the_meta_device_is_refused_by_name():
    with torch.device("meta"):
        model = build("bert")
    with pytest.raises(
        CompressionError, match=r"'model' cannot be measured: bert\.embeddings\..* is on the meta device"
    ):
        measure(model)


def test_a_module_that_is_not_a_classifier_is_refused():
    with pytest.raises(CompressionError, match="'model' has no parameters"):
        measure(nn.ReLU())
    with pytest.raises(CompressionError, match="No dummy text can be made"):
        measure(nn.Sequential(nn.Linear(2, 2)), length=4)


def test_a_model_that_cannot_pad_is_refused():
    with pytest.raises(CompressionError, match=r"GPT2ForSequenceClassification has no config\.pad_token_id"):
        measure(build("gpt2", pad_token_id=None), [{"input_ids": [5]}, {"input_ids": [5, 6]}])
    with pytest.raises(CompressionError, match=r"'model' does not read the inputs: .*padding token"):
        measure(build("gpt2", pad_token_id=None), length=4)


TWO = batch(19)


def flipped(model):
    """The same classifier with its two classes in the other order."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.classifier.weight.copy_(model.classifier.weight.flip(0))
        other.classifier.bias.copy_(model.classifier.bias.flip(0))
    model.config.id2label, other.config.id2label = {0: "NO", 1: "YES"}, {0: "YES", 1: "NO"}
    model.config.label2id, other.config.label2id = {"NO": 0, "YES": 1}, {"YES": 0, "NO": 1}
    return other


def test_predictions_are_compared_by_the_names_of_classes():
    model = build("bert")
    other = flipped(model)
    own = {"one": TWO, "other": TWO | {"labels": 1 - TWO["labels"]}}
    result = compare({"one": model, "other": other}, own, repeats=1)
    assert result.rows["other"].agreement == 1
    assert result.rows["other"].accuracy == result.rows["one"].accuracy
    assert result.rows["other"].mcnemar is not None
    assert measure(model, TWO, repeats=1, reference=other).agreement == 1


def test_the_same_labels_for_classes_in_other_orders_are_refused():
    model = build("bert")
    with pytest.raises(CompressionError, match="'one' and 'other' have their classes in different orders"):
        compare({"one": model, "other": flipped(model)}, TWO, repeats=1)


def test_f1_is_of_the_same_class_whatever_the_order():
    model, data = build("bert"), batch(24, 9)
    other, own = flipped(model), data | {"labels": 1 - data["labels"]}
    found = compare({"one": model, "other": other}, {"one": data, "other": own}, repeats=1).rows
    assert found["other"].accuracy == found["one"].accuracy < 1
    assert found["other"].f1 == pytest.approx(found["one"].f1)


def test_columns_beside_tensors_may_be_lists():
    model, data = build("bert"), batch(6, 9)
    expected = measure(model, data, repeats=1)
    lists = data | {name: data[name].tolist() for name in ("labels", "attention_mask")}
    found = measure(model, lists, repeats=1)
    assert (found.accuracy, found.cross_entropy) == (expected.accuracy, expected.cross_entropy)
    with pytest.raises(CompressionError, match="'labels' of the inputs for 'model' is no tensor"):
        measure(model, data | {"labels": ["a", "b"] * 3}, repeats=1)


@pytest.mark.parametrize("column", ["labels", "token_type_ids"])
def test_a_column_that_some_rows_lack_is_refused(column):
    own = rows(batch(6, 9))
    for row in own:
        row.setdefault("token_type_ids", [0] * len(row["input_ids"]))
    del own[4][column]
    with pytest.raises(
        CompressionError, match=f"Row 4 of the inputs for 'model' has no '{column}', and others have it"
    ):
        measure(build("bert"), own, repeats=1)


def test_a_reference_of_nan_is_compared_with_nothing():
    model, broken = build("bert"), build("bert", seed=1)
    broken.classifier.weight.data[0, 0] = float("nan")
    with pytest.raises(CompressionError, match="the same number of finite logits"):
        measure(model, TWO, repeats=1, reference=broken)


def test_logits_of_nan_have_no_accuracy():
    model = build("bert")
    model.classifier.weight.data[0, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"The model 'model' returns NaN or infinity for"):
        measure(model, TWO, repeats=1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.uint8, torch.uint16])
def test_labels_may_be_of_any_integer_dtype(dtype):
    model = build("bert")
    found = measure(model, TWO | {"labels": TWO["labels"].to(dtype)}, repeats=1)
    assert found.accuracy == measure(model, TWO, repeats=1).accuracy
    renamed = {name: value for name, value in TWO.items() if name != "labels"} | {"label": TWO["labels"]}
    assert measure(model, renamed, repeats=1).accuracy == found.accuracy


def test_class_indices_are_refused_for_a_multi_label_model():
    model = build("bert", problem_type="multi_label_classification")
    with pytest.raises(CompressionError, match="problem_type is 'multi_label_classification'"):
        measure(model, TWO, repeats=1)


# Token limits

# By name, the arguments of the model and how many tokens it reads. RoBERTa's positions start behind the padding index,
# MPNet's behind 1.
LIMITS = {name: ({"architecture": name}, 64) for name in SHRINKABLE if name != "t5"}
LIMITS |= {name: ({"architecture": name}, 63) for name in ("roberta", "xlm-roberta", "camembert")}
LIMITS["mpnet"] = ({"architecture": "mpnet"}, 62)
LIMITS["roberta 66"] = ({"architecture": "roberta", "max_position_embeddings": 66, "pad_token_id": 1}, 64)
every_limit = pytest.mark.parametrize(("options", "limit"), LIMITS.values(), ids=LIMITS)
FORMS = {
    "length": lambda tokens: {"length": tokens},
    "rows": lambda tokens: {"inputs": [{"input_ids": [5] * (tokens - 1) + [EOS]}, {"input_ids": [EOS]}]},
    "tensors": lambda tokens: {"inputs": {"input_ids": torch.tensor(2 * [[5] * (tokens - 1) + [EOS]])}},
}
every_form = pytest.mark.parametrize("form", FORMS)


@every_form
@every_limit
def test_texts_up_to_the_token_limit_are_measured(options, limit, form):
    model = build(**options)
    for tokens in (limit - 1, limit):
        assert measure(model, **FORMS[form](tokens), batch_size=1, repeats=1).passes[0].tokens == tokens


@every_form
@every_limit
def test_texts_above_the_token_limit_are_refused(options, limit, form):
    with pytest.raises(CompressionError, match=rf"\b{limit + 1}\b.*\b{limit}\b"):
        measure(build(**options), **FORMS[form](limit + 1), repeats=1)


@every_form
@pytest.mark.parametrize("architecture", ["xlnet", "t5", "bloom"])
def test_a_model_without_a_token_limit_reads_any_length(architecture, form):
    model = build(architecture)
    for tokens in (1, 4, 130):
        assert measure(model, **FORMS[form](tokens), batch_size=1, repeats=1).passes[0].tokens == tokens


def test_a_model_that_was_trained_under_autocast_is_measured_without(tmp_path):
    """accelerate leaves a forward under autocast on the model."""
    model, data = build("bert"), rows(batch(16, 10))
    args = arguments(TrainingArguments, tmp_path, max_steps=1, bf16=True)
    Trainer(model=model, args=args, train_dataset=data).train()
    forward = model.forward
    fresh = build("bert")
    fresh.load_state_dict(model.state_dict())
    seen = []
    model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    found = compare({"fresh": fresh, "trained": model}, data, repeats=2).rows["trained"]
    assert set(seen) == {torch.float32}
    assert found.agreement == 1.0
    assert model.forward == forward
