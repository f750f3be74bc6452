"""Hidden states and attention relations in the loss, against plain loops."""

import copy

import peft
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    CHECKPOINTING,
    VOCABULARY,
    build,
    rows,
    same_bits,
    state_of,
    word_tokenizer,
)
from datasets import Dataset
from plain_distillation import LABELS, assert_same_weights
from plain_layers import BOTH, DATA, WIDER, make, plain_objective, plain_training

from hfcompress import CompressionError, prune_structured, student_from_teacher
from hfcompress.distill.layer_losses import ForwardRecorder
from hfcompress.models.layers import attention_projections


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
    assert own.evaluate()["eval_distillation_loss"] == pytest.approx(0.0, abs=1e-6), "a copy has the teacher's outputs"


def test_a_deberta_with_shared_projections_learns_relations(tmp_path):
    """As DeBERTa-v3 does: queries and keys are those of the tokens."""
    student, teacher = (build("deberta-v2", LABELS, seed=seed, share_att_key=True) for seed in (1, 2))
    inputs = {key: DATA[key] for key in ("input_ids", "attention_mask")}
    recorded = ForwardRecorder(projections=attention_projections(student, -1))(student, inputs)
    assert {vectors.shape[:2] for vectors in recorded.attention} == {DATA["input_ids"].shape}
    before = state_of(student)
    make(student, teacher, tmp_path, args={"relation_weight": 1.0}).train()
    assert not same_bits(before, state_of(student))


def test_the_same_tokenizer_with_spare_embeddings_is_the_same(tmp_path):
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


def test_no_hook_stays_in_the_models(tmp_path):
    teacher, student = build("bert", LABELS, layers=4, seed=2), build("bert", LABELS, seed=1)
    make(student, teacher, tmp_path, args=BOTH).train()
    hooks = [h for model in (student, teacher) for m in model.modules() for h in m._forward_hooks.values()]
    assert not any("hfcompress" in str(hook) for hook in hooks), "transformers leaves hooks of its own"


def test_layers_need_exactly_one_teacher(tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2)
    with pytest.raises(CompressionError, match=r"hidden_weight=0\.3.*one teacher.*there are 0"):
        make(student, None, tmp_path, args=BOTH)
    with pytest.raises(CompressionError, match="there are 2"):
        make(student, [teacher, build("bert", LABELS, seed=3)], tmp_path, args=BOTH)


def test_layers_need_a_teacher_that_reads_the_same_tokens(tmp_path):
    student, other = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2, vocab_size=50)
    cached = Dataset.from_list(rows(DATA | {"teacher_logits": torch.zeros(24, LABELS)}))
    with pytest.raises(CompressionError, match="other tokens"):
        make(student, other, tmp_path, cached, args=BOTH)


@pytest.mark.parametrize("given", [{0: 5}, {3: 1}, {-1: 0}, {}])
def test_a_layer_map_out_of_range_is_refused_with_both_ranges(given, tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, layers=4, seed=2)
    with pytest.raises(CompressionError, match=r"layer_map=.*0 to 2.*0 to 4"):
        make(student, teacher, tmp_path, args={"hidden_weight": 1.0, "layer_map": given})


def test_relations_of_a_layer_that_does_not_exist_are_refused(tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2)
    with pytest.raises(CompressionError, match="2 layers, none with the index 7"):
        make(student, teacher, tmp_path, args={"relation_weight": 1.0, "relation_layer": 7})


def test_relations_of_shared_layers_are_refused(tmp_path):
    albert = build("albert", LABELS)
    with pytest.raises(CompressionError, match="0 stacks"):
        make(albert, copy.deepcopy(albert), tmp_path, args={"relation_weight": 1.0})


def test_relations_of_an_unknown_attention_layout_are_refused():
    teacher = build("bert", LABELS, seed=2)
    attention = teacher.bert.encoder.layer[1].attention.self
    attention.another, attention.key = attention.key, None
    with pytest.raises(CompressionError, match=r"encoder\.layer\.1.*relation_weight=0"):
        attention_projections(teacher, -1)


def test_layers_that_no_gradient_reaches_are_refused(tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2)
    args = {"relation_weight": 1.0, CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}
    with pytest.raises(CompressionError, match="No gradient reaches the attention"):
        make(student, teacher, tmp_path, args=args).train()


def test_a_shrunken_gpt2_learns_relations(tmp_path):
    teacher = build("gpt2", LABELS, layers=3, seed=2)
    student = copy.deepcopy(teacher)
    prune_structured(student, heads=0.5)
    before = state_of(student)
    make(student, teacher, tmp_path, args={"relation_weight": 1.0, "alpha": 0.0}).train()
    assert not same_bits(before, student.state_dict())


def test_relations_of_another_fused_attention_are_refused(tmp_path):
    student, teacher = build("gpt2", LABELS, seed=1), build("gpt2", LABELS, seed=2)
    student.transformer.h[-1].attn.split_size = 5
    with pytest.raises(CompressionError, match="no known attention layout"):
        make(student, teacher, tmp_path, args={"relation_weight": 1.0})


def test_relation_heads_that_do_not_divide_the_width_are_refused(tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2)
    with pytest.raises(CompressionError, match="5 relation heads do not divide a width of 32"):
        make(student, teacher, tmp_path, args={"relation_weight": 1.0, "relation_heads": 5}).train()


def test_a_student_from_a_teacher_starts_with_its_embeddings(tmp_path):
    teacher = build("bert", LABELS, layers=4, seed=2)
    student = student_from_teacher(teacher, 2)
    args = {"hidden_weight": 1.0, "layer_map": {0: 0}, "alpha": 1.0, "teacher_loss": "mse_logits"}
    trainer = make(student, teacher, tmp_path, args=args | {"logging_strategy": "steps", "logging_steps": 1})
    trainer.train()
    assert trainer.state.log_history[0]["hidden_term"] == 0.0
