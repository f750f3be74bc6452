"""DistillationTrainer with hidden states and attention relations, against plain loops."""

import copy
import json
import math

import peft
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    CHECKPOINTING,
    VOCABULARY,
    arguments,
    batch,
    build,
    rows,
    same_bits,
    state_of,
    word_tokenizer,
)
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, HfArgumentParser

from hfcompress import (
    CompressionError,
    DistillationArguments,
    DistillationTrainer,
    prune_structured,
    student_from_teacher,
)
from hfcompress.distill.layer_losses import ForwardRecorder
from hfcompress.models.layers import attention_projections

LABELS = 3
DATA = batch(24, num_labels=LABELS)
BOTH = {"hidden_weight": 0.3, "relation_weight": 0.7}


def make(student, teacher, directory, data=DATA, *, args=None, **kwargs):
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "weight_decay": 0.0} | (args or {})
    training = arguments(DistillationArguments, directory, **settings)
    data = rows(data) if isinstance(data, dict) else data
    kwargs = {"train_dataset": data, "eval_dataset": data} | kwargs
    return DistillationTrainer(model=student, args=training, teacher=teacher, **kwargs)


def inputs_of(tensors):
    return {key: tensors[key] for key in ("input_ids", "attention_mask")}


def attention_of(model, inputs, layer):
    """Queries, keys and values of a layer of a BERT or GPT-2, from the hidden states that go into it."""
    hidden = model(**inputs, output_hidden_states=True).hidden_states[layer]
    if model.config.model_type == "gpt2":
        block = model.transformer.h[layer]
        return block.attn.c_attn(block.ln_1(hidden)).split(model.config.hidden_size, dim=-1)
    attention = model.bert.encoder.layer[layer].attention.self
    return [attention.query(hidden), attention.key(hidden), attention.value(hidden)]


def plain_hidden(student, teacher, mask, projection=None):
    student = student if projection is None else student @ projection.T
    return torch.stack(
        [((one[real] - other[real]) ** 2).mean() for one, other, real in zip(student, teacher, mask == 1, strict=True)]
    ).mean()


def plain_relations(student, teacher, heads, mask):
    """The loss of MiniLMv2 by its formula: one text, one relation head after the other."""
    found = []
    for one, other, real in zip(student, teacher, mask == 1, strict=True):
        for mine, theirs in zip(one[real].chunk(heads, -1), other[real].chunk(heads, -1), strict=True):
            p, q = ((x @ x.T / math.sqrt(x.shape[-1])).softmax(-1) for x in (mine, theirs))
            found.append((q * (q / p).log()).sum(-1).mean())
    return torch.stack(found).mean()


def plain_objective(student, teacher, here, *, layer_map, heads, relation_layer=-1, projection=None):
    inputs, mask = inputs_of(here), here["attention_mask"]
    ours, theirs = (model(**inputs, output_hidden_states=True) for model in (student, teacher.eval()))
    p, q = ours.logits.softmax(-1), theirs.logits.softmax(-1)
    one_hot = torch.nn.functional.one_hot(here["labels"], LABELS)
    hidden = [
        plain_hidden(ours.hidden_states[m], theirs.hidden_states[n], mask, projection) for m, n in layer_map.items()
    ]
    layers = len(ours.hidden_states) - 2, range(len(theirs.hidden_states) - 1)[relation_layer]
    attention = [attention_of(model, inputs, layer) for model, layer in zip((student, teacher), layers, strict=True)]
    relations = [plain_relations(mine, their, heads, mask) for mine, their in zip(*attention, strict=True)]
    answers = 0.5 * ((p - q) ** 2).mean() + 0.5 * ((p - one_hot) ** 2).mean()
    return answers + BOTH["hidden_weight"] * sum(hidden) / len(hidden) + BOTH["relation_weight"] * sum(relations) / 3


def plain_training(student, teacher, projection=None, **settings):
    parameters = [*student.parameters(), *([] if projection is None else [projection])]
    update = torch.optim.SGD(parameters, lr=0.1)
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
    for start in range(0, len(DATA["labels"]), 8):
        update.zero_grad()
        here = {key: value[start : start + 8] for key, value in DATA.items()}
        plain_objective(student, teacher, here, projection=projection, **settings).backward()
        update.step()


def assert_same_weights(one, other):
    for key, value in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[key], value, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_layers_are_learned_as_in_a_plain_loop(architecture, tmp_path):
    teacher = build(architecture, LABELS, layers=4, seed=2)
    student = build(architecture, LABELS, layers=2, seed=1)
    expected = copy.deepcopy(student)
    plain_training(expected, teacher, layer_map={0: 0, 1: 2, 2: 4}, heads=4)
    make(student, teacher, tmp_path, args=BOTH).train()
    assert_same_weights(student, expected)


def test_the_layers_can_be_chosen(tmp_path):
    teacher, student = build("bert", LABELS, layers=4, seed=2), build("bert", LABELS, layers=2, seed=1)
    expected = copy.deepcopy(student)
    plain_training(expected, teacher, layer_map={2: 3}, heads=8, relation_layer=1)
    chosen = {"layer_map": '{"2": 3}', "relation_heads": 8, "relation_layer": 1}
    make(student, teacher, tmp_path, args=BOTH | chosen).train()
    assert_same_weights(student, expected)


WIDER = {"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 96}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_teacher_of_another_width_is_met_by_a_projection_that_learns_too(accumulated, tmp_path):
    teacher, student = build("bert", LABELS, seed=2, **WIDER), build("bert", LABELS, seed=1)
    expected = copy.deepcopy(student)
    batches = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    trainer = make(student, teacher, tmp_path, args=BOTH | batches)
    start = trainer._projection.weight.detach().clone()
    assert start.shape == (48, 32)
    projection = start.clone().requires_grad_()
    plain_training(expected, teacher, projection, layer_map={0: 0, 1: 1, 2: 2}, heads=2)
    trainer.train()
    assert_same_weights(student, expected)
    assert not torch.equal(projection, start)
    torch.testing.assert_close(trainer._projection.weight, projection, rtol=1e-5, atol=1e-5)


def test_the_projection_is_no_part_of_what_is_saved_but_resumes_with_the_training(tmp_path):
    settings = BOTH | {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    teacher, student = build("bert", LABELS, seed=2, **WIDER), build("bert", LABELS, seed=1, dropout=True)
    names = list(student.state_dict())
    whole = make(student, teacher, tmp_path, args=settings)
    whole.train()
    whole.save_model(tmp_path / "saved")
    for folder in ("saved", "checkpoint-2"):
        with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            assert sorted(file.keys()) == sorted(names)
    assert not (tmp_path / "saved" / "projection.safetensors").exists()
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")

    other = build("bert", LABELS, seed=3, dropout=True)
    resumed = make(other, teacher, tmp_path, args=settings | {"seed": 42})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same_bits(other.state_dict(), student.state_dict())
    assert torch.equal(resumed._projection.weight, whole._projection.weight)
    assert load_file(tmp_path / "checkpoint-6" / "projection.safetensors")["weight"].equal(whole._projection.weight)


def test_the_log_and_the_evaluation_show_the_terms(tmp_path):
    teacher, student = build("bert", LABELS, layers=4, seed=2), build("bert", LABELS, seed=1)
    settings = {"logging_strategy": "steps", "logging_steps": 3, "learning_rate": 0.0}
    trainer = make(student, teacher, tmp_path, args=BOTH | settings)
    with torch.no_grad():
        expected = float(plain_objective(student, teacher, DATA, layer_map={0: 0, 1: 2, 2: 4}, heads=4))
    trainer.train()
    log = trainer.state.log_history[0]
    weights = {"teacher_term": 0.5, "label_term": 0.5, "hidden_term": 0.3, "relation_term": 0.7}
    assert sum(weight * log[name] for name, weight in weights.items()) == pytest.approx(expected, rel=1e-5)
    assert log["loss"] == pytest.approx(expected, rel=1e-4)
    assert trainer.evaluate()["eval_distillation_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.predict(rows(DATA)).predictions.shape == (24, LABELS)


def test_alpha_may_be_zero_or_one_beside_layers(tmp_path):
    unlabelled = {key: value for key, value in DATA.items() if key != "labels"}
    for alpha, data in ((0.0, DATA), (1.0, unlabelled)):
        teacher, student = build("bert", LABELS, layers=4, seed=2), build("bert", LABELS, seed=1)
        before = state_of(student)
        trainer = make(student, teacher, tmp_path, data, args=BOTH | {"alpha": alpha})
        trainer.train()
        assert not same_bits(before, student.state_dict())
        assert "eval_distillation_loss" in trainer.evaluate()


def test_cached_logits_do_not_stand_in_for_layers(tmp_path):
    states = []
    for data in (DATA, DATA | {"teacher_logits": torch.full((24, LABELS), 7.0)}):
        teacher, student = build("bert", LABELS, layers=4, seed=2), build("bert", LABELS, seed=1)
        make(student, teacher, tmp_path, data, args=BOTH).train()
        states.append(state_of(student))
    assert same_bits(*states)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns_from_layers(architecture, tmp_path):
    teacher, student = build(architecture, LABELS, layers=4, seed=2), build(architecture, LABELS, layers=2, seed=1)
    weights = BOTH if architecture != "albert" else {"hidden_weight": 1.0}  # its layers share one attention
    trainer = make(student, teacher, tmp_path, args=weights | {"logging_strategy": "steps", "logging_steps": 1})
    trainer.train()
    terms = [name for name in trainer.state.log_history[0] if name.endswith("_term")]
    assert len(terms) == 2 + len(weights)
    own = make(copy.deepcopy(teacher), teacher, tmp_path, args=weights | {"alpha": 1.0})
    assert own.evaluate()["eval_distillation_loss"] == pytest.approx(0.0, abs=1e-6), "a copy says what the teacher says"


def test_a_deberta_that_projects_its_positions_with_the_same_modules_learns_relations(tmp_path):
    """As DeBERTa-v3 does: queries and keys are those of the tokens."""
    student, teacher = (build("deberta-v2", LABELS, seed=seed, share_att_key=True) for seed in (1, 2))
    inputs = {key: DATA[key] for key in ("input_ids", "attention_mask")}
    watch = ForwardRecorder(student, hidden=False, layer=-1)
    assert {vectors.shape[:2] for vectors in watch(student, inputs).attention} == {DATA["input_ids"].shape}
    before = state_of(student)
    make(student, teacher, tmp_path, args={"relation_weight": 1.0}).train()
    assert not same_bits(before, state_of(student))


def test_the_same_tokenizer_with_spare_embeddings_reads_the_same_tokens(tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2, vocab_size=VOCABULARY + 4)
    tokenizer = word_tokenizer()
    tokenizers = {"processing_class": tokenizer, "teacher_processing_class": word_tokenizer()}
    make(student, teacher, tmp_path, args={"hidden_weight": 1.0}, **tokenizers).train()


@pytest.mark.parametrize("wider", [{}, {"hidden_size": 48, "num_attention_heads": 6}], ids=["same width", "wider"])
@pytest.mark.parametrize("search", [False, True], ids=["trainings", "trials"])
def test_the_weights_of_layers_may_change_between_trainings(search, wider, tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2, **wider)
    made = {"model_init": lambda: build("bert", LABELS, seed=1)} if search else {}
    trainer = make(None if search else student, teacher, tmp_path, args={"max_steps": 1}, **made)
    losses = []
    for weight in (0.0, 1.0, 2.0, 0.0):
        trainer.args.hidden_weight = weight
        if not search:
            student.load_state_dict(build("bert", LABELS, seed=1).state_dict())
        losses.append(trainer.train().training_loss)
        if weight:
            projections = [
                p for group in trainer.optimizer.param_groups for p in group["params"] if p.shape == (48, 32)
            ]
            assert len(projections) == bool(wider)
    assert losses[1] > losses[0] + 0.1
    assert losses[0] == pytest.approx(losses[3])
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)


def test_a_refused_change_of_the_layers_is_refused_again(tmp_path):
    trainer = make(build("bert", LABELS, seed=1), build("bert", LABELS, seed=2), tmp_path, args={"max_steps": 1})
    trainer.args.hidden_weight, trainer.args.layer_map = 1.0, {0: 9}
    for _ in range(2):
        with pytest.raises(CompressionError, match="layer_map"):
            trainer.train()


def test_each_trial_compares_the_layers_of_its_own_student(tmp_path):
    depths = iter((2, 2, 3, 1))  # the first is made to find out what is trained
    teacher = build("bert", LABELS, seed=2, layers=3)
    trainer = make(
        None, teacher, tmp_path, args=BOTH | {"max_steps": 1},
        model_init=lambda: build("bert", LABELS, seed=1, layers=next(depths)),
    )  # fmt: skip
    for depth in (2, 3, 1):
        fresh = make(build("bert", LABELS, seed=1, layers=depth), teacher, tmp_path, args=BOTH | {"max_steps": 1})
        assert trainer.train().training_loss == pytest.approx(fresh.train().training_loss)


def test_a_gpt2_student_learns_from_the_layers_of_a_bert(tmp_path):
    teacher, student = build("bert", LABELS, layers=4, seed=2, **WIDER), build("gpt2", LABELS, seed=1)
    before = state_of(student)
    make(student, teacher, tmp_path, args=BOTH).train()
    assert not same_bits(before, student.state_dict())


COMPOSED = {
    "gradient checkpointing": {CHECKPOINTING: True},
    "torch.compile": {"torch_compile": True, "torch_compile_backend": "eager"},
    "bf16": {"bf16": True},
    "a teacher in bfloat16": {"teacher_dtype": "bfloat16"},
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own access
@pytest.mark.parametrize("name", COMPOSED)
def test_layers_compose_with(name, tmp_path):
    architecture, gradients = "gpt2" if name == "torch.compile" else "bert", []
    for settings in ({}, COMPOSED[name]):
        teacher, student = build(architecture, LABELS, seed=2), build(architecture, LABELS, layers=1, seed=1)
        before = state_of(student)
        make(student, teacher, tmp_path, args=BOTH | {"max_steps": 1} | settings).train()
        gradients.append(torch.cat([(student.state_dict()[k] - before[k]).flatten() for k in before]))
    exact, found = gradients
    assert (exact - found).norm() <= exact.norm() * (0.1 if "bf" in name else 1e-5)


def test_a_student_with_an_adapter_learns_from_layers(tmp_path):
    teacher, student = build("bert", LABELS, layers=4, seed=2), build("bert", LABELS, seed=1)
    tuned = peft.get_peft_model(student, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))
    make(tuned, teacher, tmp_path, args=BOTH).train()
    assert all(parameter.any() for name, parameter in tuned.named_parameters() if "lora_B" in name)


def test_the_models_keep_no_trace_of_being_watched(tmp_path):
    teacher, student = build("bert", LABELS, layers=4, seed=2), build("bert", LABELS, seed=1)
    make(student, teacher, tmp_path, args=BOTH).train()
    hooks = [h for model in (student, teacher) for m in model.modules() for h in m._forward_hooks.values()]
    assert not any("hfcompress" in str(hook) for hook in hooks), "transformers leaves hooks of its own"


# Refusals


def test_layers_need_exactly_one_teacher_that_reads_the_same_tokens(tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2)
    with pytest.raises(CompressionError, match=r"hidden_weight=0\.3.*one teacher.*there are 0"):
        make(student, None, tmp_path, args=BOTH)
    with pytest.raises(CompressionError, match="there are 2"):
        make(student, [teacher, build("bert", LABELS, seed=3)], tmp_path, args=BOTH)
    other = build("bert", LABELS, seed=2, vocab_size=50)
    cached = DATA | {"teacher_logits": torch.zeros(24, LABELS)}
    with pytest.raises(CompressionError, match="other tokens"):
        make(student, other, tmp_path, _dataset(cached), args=BOTH)


def _dataset(tensors):
    from datasets import Dataset

    return Dataset.from_list(rows(tensors))


@pytest.mark.parametrize("given", [{0: 5}, {3: 1}, {-1: 0}, {}])
def test_a_map_that_leaves_the_models_is_refused_with_both_ranges(given, tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, layers=4, seed=2)
    with pytest.raises(CompressionError, match=r"layer_map=.*0 to 2.*0 to 4"):
        make(student, teacher, tmp_path, args={"hidden_weight": 1.0, "layer_map": given})


@pytest.mark.parametrize("given", ["[1, 2]", "no json", {"a": 1}, {1.9: 1}, 3])
def test_a_map_that_is_none_is_refused_by_value(given, tmp_path):
    with pytest.raises(CompressionError, match="layer_map="):
        DistillationArguments(output_dir=str(tmp_path), layer_map=given)


@pytest.mark.parametrize("name", ["hidden_weight", "relation_weight"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan, "much"])
def test_weights_out_of_range_are_refused_by_value(name, value, tmp_path):
    with pytest.raises(CompressionError, match=f"{name}={value!r}"):
        DistillationArguments(output_dir=str(tmp_path), **{name: value})


def test_relations_of_layers_that_are_not_there_or_not_understood_are_refused(tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2)
    with pytest.raises(CompressionError, match="2 layers, none with the index 7"):
        make(student, teacher, tmp_path, args={"relation_weight": 1.0, "relation_layer": 7})
    albert = build("albert", LABELS)
    with pytest.raises(CompressionError, match="0 stacks"):
        make(albert, copy.deepcopy(albert), tmp_path, args={"relation_weight": 1.0})
    attention = teacher.bert.encoder.layer[1].attention.self
    attention.another, attention.key = attention.key, None
    with pytest.raises(CompressionError, match=r"encoder\.layer\.1.*relation_weight=0"):
        attention_projections(teacher, -1)


def test_layers_that_no_gradient_reaches_are_refused(tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2)
    args = {"relation_weight": 1.0, CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}
    with pytest.raises(CompressionError, match="No gradient reaches the attention"):
        make(student, teacher, tmp_path, args=args).train()


def test_a_shrunken_gpt2_learns_relations_and_another_fused_attention_is_refused(tmp_path):
    teacher = build("gpt2", LABELS, layers=3, seed=2)
    student = copy.deepcopy(teacher)
    prune_structured(student, heads=0.5)
    before = state_of(student)
    make(student, teacher, tmp_path, args={"relation_weight": 1.0, "alpha": 0.0}).train()
    assert not same_bits(before, student.state_dict())
    student.transformer.h[-1].attn.split_size = 5
    with pytest.raises(CompressionError, match="no known attention layout"):
        make(student, teacher, tmp_path, args={"relation_weight": 1.0})


def test_the_projection_is_clipped_like_the_student(tmp_path):
    teacher, student = build("bert", LABELS, seed=2, **WIDER), build("bert", LABELS, seed=1)
    args = {"hidden_weight": 1000.0, "learning_rate": 1.0, "max_steps": 1, "max_grad_norm": 1.0}
    trainer = make(student, teacher, tmp_path, args=args)
    before = trainer._projection.weight.detach().clone()
    trainer.train()
    assert float((trainer._projection.weight.detach() - before).norm()) == pytest.approx(1.0, rel=1e-4)


def test_each_trial_of_a_search_begins_with_the_same_projection(tmp_path):
    states = []
    training = arguments(DistillationArguments, tmp_path, optim="sgd", hidden_weight=1.0)
    trainer = DistillationTrainer(
        model_init=lambda: build("bert", LABELS, seed=1),
        args=training,
        teacher=build("bert", LABELS, seed=2, **WIDER),
        train_dataset=rows(DATA),
    )
    for _ in range(2):
        trainer.train()
        states.append(state_of(trainer.model))
    assert same_bits(*states)


def test_a_checkpoint_of_another_kind_of_training_is_refused_and_one_without_optimizer_goes_on(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    wide = build("bert", LABELS, seed=2, **WIDER)
    make(build("bert", LABELS, seed=1), wide, tmp_path / "plain", args=settings).train()
    checkpoint = str(tmp_path / "plain" / "checkpoint-1")
    trainer = make(build("bert", LABELS, seed=1), wide, tmp_path, args={"hidden_weight": 1.0})
    with pytest.raises(CompressionError, match="had no projection of hidden states, this one has one"):
        trainer.train(resume_from_checkpoint=checkpoint)
    light = settings | {"save_only_model": True, "hidden_weight": 1.0}
    make(build("bert", LABELS, seed=1), wide, tmp_path / "light", args=light).train()
    again = make(build("bert", LABELS, seed=1), wide, tmp_path, args={"hidden_weight": 1.0})
    again.train(resume_from_checkpoint=str(tmp_path / "light" / "checkpoint-1"))


def test_an_optimizer_that_would_not_train_the_projection_is_refused(tmp_path):
    student, wide = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2, **WIDER)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(CompressionError, match="optimizers="):
        make(student, wide, tmp_path, args={"hidden_weight": 1.0}, optimizers=(optimizer, None))


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_relation_heads_that_are_no_number_are_refused_by_value(value, tmp_path):
    with pytest.raises(CompressionError, match=f"relation_heads={value}"):
        DistillationArguments(output_dir=str(tmp_path), relation_heads=value)


def test_relation_heads_that_do_not_divide_the_width_are_refused(tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2)
    with pytest.raises(CompressionError, match="5 relation heads do not divide a width of 32"):
        make(student, teacher, tmp_path, args={"relation_weight": 1.0, "relation_heads": 5}).train()


def test_the_arguments_come_from_a_command_line_and_go_through_json(tmp_path):
    (args,) = HfArgumentParser(DistillationArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--alpha", "0.7", "--hidden_weight", "1", "--layer_map", '{"0": 0, "2": 6}']
    )
    assert args.layer_map == {0: 0, 2: 6}
    assert json.loads(args.to_json_string())["layer_map"] == {"0": 0, "2": 6}
    again = DistillationArguments(output_dir=str(tmp_path), layer_map=json.loads(args.to_json_string())["layer_map"])
    assert again.layer_map == args.layer_map


def test_a_student_of_the_teachers_layers_starts_with_its_embeddings(tmp_path):
    teacher = build("bert", LABELS, layers=4, seed=2)
    student = student_from_teacher(teacher, 2)
    args = {"hidden_weight": 1.0, "layer_map": {0: 0}, "alpha": 1.0, "teacher_loss": "mse_logits"}
    trainer = make(student, teacher, tmp_path, args=args | {"logging_strategy": "steps", "logging_steps": 1})
    trainer.train()
    assert trainer.state.log_history[0]["hidden_term"] == 0.0
