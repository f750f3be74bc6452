"""Students made of their teacher's layers."""

import copy

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, batch, build, same_bits, state_of
from torch import nn
from transformers import AutoModelForSequenceClassification

from hfcompress import CompressionError, student_from_teacher

STACKS = {
    "bert": "bert.encoder.layer",
    "gpt2": "transformer.h",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "electra": "electra.encoder.layer",
    "deberta-v2": "deberta.encoder.layer",
}
STACKED = [name for name in ARCHITECTURES if name != "albert"]
everywhere = pytest.mark.parametrize("architecture", STACKED)


def kept_of(teacher, student, architecture):
    """Indices of the teacher's layers that the student's layers equal, read from the weights."""
    stacks = [model.get_submodule(STACKS[architecture]) for model in (teacher, student)]
    return [[same_bits(layer.state_dict(), own.state_dict()) for layer in stacks[0]].index(True) for own in stacks[1]]


@torch.no_grad()
def logits(model):
    data = batch()
    return copy.deepcopy(model).eval()(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        (1, 4, [0]),
        (2, 4, [0, 3]),
        (3, 4, [0, 2, 3]),
        (4, 4, [0, 1, 2, 3]),
        (2, 6, [0, 5]),
        (3, 6, [0, 2, 5]),
        (6, 12, [0, 2, 4, 7, 9, 11]),
        ([0, 2], 4, [0, 2]),
        ((1, 3), 4, [1, 3]),
        ([0, -1], 4, [0, 3]),
        (range(0, 4, 2), 4, [0, 2]),
        ([3], 4, [3]),
    ],
)
def test_the_layers_asked_for_are_kept(layers, count, expected):
    teacher = build("bert", layers=count)
    student = student_from_teacher(teacher, layers)
    assert student.config.num_hidden_layers == len(expected)
    assert kept_of(teacher, student, "bert") == expected


@everywhere
def test_every_weight_is_the_teachers(architecture):
    num_labels = 5
    teacher = build(architecture, num_labels, layers=4)
    student = student_from_teacher(teacher, [0, 2])
    assert type(student) is type(teacher)
    assert student.config.num_labels == num_labels
    assert kept_of(teacher, student, architecture) == [0, 2]
    theirs, stack = teacher.state_dict(), STACKS[architecture]
    for key, value in student.state_dict().items():
        if not key.startswith(f"{stack}."):
            assert torch.equal(value, theirs[key]), key


@everywhere
def test_the_student_is_the_teacher_without_those_layers(architecture):
    teacher = build(architecture, layers=4)
    student = student_from_teacher(teacher, [0, 2])
    twin = copy.deepcopy(teacher)
    stack = twin.get_submodule(STACKS[architecture])
    # The twin keeps its config and the numbers of its layers: only the loop over the layers is shorter.
    kept = nn.ModuleList([stack[0], stack[2]])
    twin.get_submodule(STACKS[architecture].rpartition(".")[0]).register_module(
        STACKS[architecture].rpartition(".")[2], kept
    )
    twin.config.use_cache = False
    torch.testing.assert_close(logits(student), logits(twin), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(logits(student), logits(teacher))


@everywhere
def test_all_layers_are_a_copy(architecture):
    teacher = build(architecture)
    assert torch.equal(logits(student_from_teacher(teacher, 2)), logits(teacher))


@everywhere
def test_what_the_student_saves_loads_as_it_is(architecture, tmp_path):
    student = student_from_teacher(build(architecture, 5, layers=4), [0, 1, 3])
    student.save_pretrained(tmp_path)
    loaded, notes = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert torch.equal(logits(loaded), logits(student))


def test_a_layer_of_gpt2_finds_its_place_in_the_cache():
    student = student_from_teacher(build("gpt2", layers=4), [1, 3])
    assert [block.attn.layer_idx for block in student.transformer.h] == [0, 1]
    data = batch()
    with torch.no_grad():
        output = student.eval()(input_ids=data["input_ids"], attention_mask=data["attention_mask"], use_cache=True)
    assert len(output.past_key_values) == 2


@everywhere
def test_nothing_is_shared_with_the_teacher(architecture):
    teacher = build(architecture, layers=4)
    before, config = state_of(teacher), copy.deepcopy(teacher.config.to_dict())
    student = student_from_teacher(teacher, 2)
    storages = {tensor.untyped_storage().data_ptr() for tensor in teacher.state_dict().values()}
    assert storages.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in student.state_dict().values())
    assert student.config is not teacher.config
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(1.0)
    assert same_bits(teacher.state_dict(), before)
    assert teacher.config.to_dict() == config
    assert len(teacher.get_submodule(STACKS[architecture])) == 4


def test_a_frozen_teacher_gives_a_student_that_can_be_trained():
    teacher = build("bert").requires_grad_(False)
    student = student_from_teacher(teacher, 1)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    student(**batch()).loss.backward()
    assert student.classifier.weight.grad is not None


def test_dtype_and_mode_are_the_teachers():
    teacher = build("bert").to(torch.bfloat16).eval()
    student = student_from_teacher(teacher, 1)
    assert student.dtype == torch.bfloat16
    assert not any(module.training for module in student.modules())
    assert any(module.training for module in student_from_teacher(teacher.train(), 1).modules())


def test_making_a_student_leaves_the_random_state_as_it_is():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.DiffLlamaConfig(vocab_size=100, **sizes)  # draws numbers even without weights
    for teacher in (build("bert"), AutoModelForSequenceClassification.from_config(config)):
        before = torch.get_rng_state()
        student_from_teacher(teacher, 1)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "layers",
    [0, 5, -1, True, 2.0, "2", "01", None, [], [4], [-5], [1, 0], [0, 0], [0, True], [0, 1.0], [3, -1], {0, 1}],
    ids=repr,
)
def test_layers_that_make_no_sense_are_refused_by_value(layers):
    with pytest.raises(CompressionError, match="layers=") as refusal:
        student_from_teacher(build("bert", layers=4), layers)
    assert repr(layers) in str(refusal.value)


def test_a_model_with_shared_layers_is_refused_and_told_why():
    with pytest.raises(CompressionError, match=r"AlbertForSequenceClassification has 0 stacks .* shared layers"):
        student_from_teacher(build("albert"), 1)


def test_a_teacher_that_is_no_transformers_model_is_refused():
    with pytest.raises(CompressionError, match="PreTrainedModel, not Sequential"):
        student_from_teacher(nn.Sequential(nn.Linear(2, 2)), 1)


def test_a_student_that_would_not_load_again_is_refused():
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    config = ModernBertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    teacher = ModernBertForSequenceClassification(config)
    with pytest.raises(CompressionError, match=r"layers \[1, 2\] would not load again"):
        student_from_teacher(teacher, [1, 2])
    student = student_from_teacher(teacher, [0, 2])
    assert student.config.layer_types == [config.layer_types[0], config.layer_types[2]]


@pytest.mark.parametrize("layers", [[0, 2], [0, 3], [0, 1, 4], [0, 1]], ids=str)
def test_each_layer_keeps_its_attention_window_or_none_is_made(layers, tmp_path):
    """Before transformers 5.3 a layer of ModernBERT was given its window by its index, not by config.layer_types."""
    teacher = build("modernbert", num_hidden_layers=5, local_attention=2)
    windows = [kind == "sliding_attention" for kind in teacher.config.layer_types]
    assert windows == [False, True, False, True, False]
    refusal = ""
    try:
        student = student_from_teacher(teacher, layers)
    except CompressionError as error:
        refusal = str(error)
    if refusal:
        assert f"layers {layers} would not load again" in refusal
        assert layers != [0, 1]
        return
    student.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(student))
    twin = copy.deepcopy(teacher)
    twin.model.layers = nn.ModuleList([twin.model.layers[index] for index in layers])
    torch.testing.assert_close(logits(again), logits(twin), rtol=1e-6, atol=1e-6)


def test_a_gpt_neo_config_is_the_same_read_by_its_pattern():
    """Up to transformers 5.3 a config is refused whose attention_types are of another number of layers."""
    teacher = build("gpt-neo", layers=4, attention_types=[[["global", "local"], 2]])
    config = student_from_teacher(teacher, [0, 2, 3]).config
    assert config.attention_layers == ["global", "global", "local"]
    assert config.expand_attention_types_params(config.attention_types) == config.attention_layers


def test_settings_that_depend_on_the_depth_are_refused():
    teacher = build("gpt2", layers=4, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(CompressionError, match=r"layers \[0, 3\] would not load again"):
        student_from_teacher(teacher, 2)
    assert teacher.config.num_hidden_layers == 4


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("SmolLM3", {"num_key_value_heads": 2, "no_rope_layer_interval": 4}),
        ("Longformer", {"attention_window": [4, 8, 4, 8], "max_position_embeddings": 64}),
        ("Llama", {"num_key_value_heads": 2}),
        ("MPNet", {}),
        ("BigBird", {"attention_type": "original_full"}),
        ("HunYuanDenseV1", {"num_key_value_heads": 2, "head_dim": 8}),
    ],
)
def test_configs_with_a_value_for_each_layer_come_along(kind, config, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {"vocab_size": 100, "pad_token_id": 1}
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(**sizes, **config)
    student = student_from_teacher(AutoModelForSequenceClassification.from_config(made), [0, 3])
    student.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        wanted, found = (model.eval()(input_ids=ids).logits for model in (student, again))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
