"""The losses against NumPy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hfcompress import CompressionError
from hfcompress.losses import (
    LABEL_LOSSES,
    TEACHER_LOSSES,
    hidden_state_loss,
    label_loss,
    mean_logits,
    probabilities,
    relation_loss,
    teacher_loss,
)

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6)
LOGITS = hnp.arrays(np.float32, st.shared(SHAPES, key="shape"), elements=st.floats(-30, 30, width=32))
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def softmax(logits):
    return np.exp(log_softmax(logits))


@given(LOGITS, LOGITS)
def test_mse_is_the_mean_squared_difference_of_the_probabilities(student, teacher):
    expected = ((softmax(student) - softmax(teacher)) ** 2).mean(-1)
    found = teacher_loss(torch.from_numpy(student), torch.from_numpy(teacher), "mse")
    np.testing.assert_allclose(found.numpy(), expected, **CLOSE)


@given(LOGITS, LOGITS)
def test_mse_logits_is_the_mean_squared_difference_of_the_logits(student, teacher):
    expected = ((student.astype(np.float64) - teacher) ** 2).mean(-1)
    found = teacher_loss(torch.from_numpy(student), torch.from_numpy(teacher), "mse_logits")
    np.testing.assert_allclose(found.numpy(), expected, **CLOSE)


@given(LOGITS, LOGITS, st.sampled_from([0.5, 1.0, 2.0, 10.0]))
def test_kl_is_the_divergence_at_the_temperature_times_its_square(student, teacher, temperature):
    log_p, log_q = (log_softmax(logits / np.float64(temperature)) for logits in (student, teacher))
    expected = temperature**2 * (np.exp(log_q) * (log_q - log_p)).sum(-1)
    found = teacher_loss(torch.from_numpy(student), torch.from_numpy(teacher), "kl", temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5 * temperature**2)


@given(LOGITS, st.data(), st.sampled_from([0.0, 0.1, 0.5]))
def test_label_losses_follow_their_formulas(logits, data, smoothing):
    examples, classes = logits.shape
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=examples, max_size=examples)))
    target = np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes
    tensors = torch.from_numpy(logits), torch.from_numpy(labels)
    brier = ((softmax(logits) - target) ** 2).mean(-1)
    np.testing.assert_allclose(label_loss(*tensors, "mse", smoothing).numpy(), brier, **CLOSE)
    cross_entropy = -(target * log_softmax(logits)).sum(-1)
    np.testing.assert_allclose(label_loss(*tensors, "cross_entropy", smoothing).numpy(), cross_entropy, **CLOSE)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


MILD = hnp.arrays(np.float32, st.shared(SHAPES, key="shape"), elements=st.floats(-10, 10, width=32))


@given(MILD, MILD, st.sampled_from([0.5, 1.0, 3.0]))
def test_with_several_labels_each_is_a_distribution_of_its_own(student, teacher, temperature):
    tensors, problem = (torch.from_numpy(student), torch.from_numpy(teacher)), "multi_label_classification"
    brier = ((sigmoid(student) - sigmoid(teacher)) ** 2).mean(-1)
    np.testing.assert_allclose(teacher_loss(*tensors, "mse", problem=problem).numpy(), brier, **CLOSE)
    squared = ((student.astype(np.float64) - teacher) ** 2).mean(-1)
    np.testing.assert_allclose(teacher_loss(*tensors, "mse_logits", problem=problem).numpy(), squared, **CLOSE)
    p, q = sigmoid(student / temperature), sigmoid(teacher / temperature)
    divergence = temperature**2 * (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean(-1)
    found = teacher_loss(*tensors, "kl", temperature, problem).numpy()
    np.testing.assert_allclose(found, divergence, rtol=1e-3, atol=1e-5 * temperature**2)


@given(MILD, st.data(), st.sampled_from([0.0, 0.2]))
def test_label_losses_with_several_labels_follow_their_formulas(logits, data, smoothing):
    labels = data.draw(hnp.arrays(np.float32, logits.shape, elements=st.sampled_from([0.0, 1.0])))
    target = labels * (1 - smoothing) + smoothing / 2
    tensors, problem = (torch.from_numpy(logits), torch.from_numpy(labels)), "multi_label_classification"
    brier = ((sigmoid(logits) - target) ** 2).mean(-1)
    np.testing.assert_allclose(label_loss(*tensors, "mse", smoothing, problem).numpy(), brier, **CLOSE)
    p = sigmoid(logits)
    cross_entropy = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean(-1)
    found = label_loss(*tensors, "cross_entropy", smoothing, problem).numpy()
    np.testing.assert_allclose(found, cross_entropy, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 1), (3,)])
def test_in_regression_both_losses_are_the_squared_error(shape):
    logits, other, labels = torch.randn(3, 1), torch.randn(3, 1), torch.randn(shape)
    for kind in ("mse", "mse_logits"):
        found = teacher_loss(logits, other, kind, problem="regression")
        torch.testing.assert_close(found, (logits - other).squeeze(1) ** 2)
    found = label_loss(logits, labels, "mse", problem="regression")
    torch.testing.assert_close(found, (logits.squeeze(1) - labels.reshape(3)) ** 2)


@pytest.mark.parametrize(
    "refused",
    [
        lambda: teacher_loss(torch.zeros(1, 1), torch.zeros(1, 1), "kl", problem="regression"),
        lambda: label_loss(torch.zeros(1, 1), torch.zeros(1), "cross_entropy", problem="regression"),
        lambda: label_loss(torch.zeros(1, 1), torch.zeros(1), "mse", 0.1, problem="regression"),
    ],
)
def test_combinations_without_a_meaning_are_refused(refused):
    with pytest.raises(CompressionError, match="regression head"):
        refused()


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_labels_of_another_shape_than_the_outputs_are_refused(problem):
    with pytest.raises(CompressionError, match=r"labels of shape \(3,\) do not fit logits of shape \(3, 2\)"):
        label_loss(torch.zeros(3, 2), torch.zeros(3), "mse", problem=problem)


def test_an_unknown_problem_is_refused_with_the_known_ones():
    with pytest.raises(CompressionError, match=r"problem_type='ranking' is unknown.*regression"):
        teacher_loss(torch.zeros(1, 2), torch.zeros(1, 2), problem="ranking")


@pytest.mark.parametrize("labels", [[0, -100], [2, 0]])
@pytest.mark.parametrize("kind", LABEL_LOSSES)
def test_a_label_outside_the_classes_is_refused_by_value(kind, labels):
    with pytest.raises(CompressionError, match=r"label (-100|2) is none of the 2 classes"):
        label_loss(torch.zeros(2, 2), torch.tensor(labels), kind)


@pytest.mark.parametrize("kind", TEACHER_LOSSES)
@given(logits=LOGITS)
def test_a_student_that_answers_like_its_teacher_has_no_loss(kind, logits):
    tensor = torch.from_numpy(logits)
    assert teacher_loss(tensor, tensor.clone(), kind, 2.0).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_adding_a_constant_to_the_logits_changes_nothing(kind):
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(teacher_loss(student + 5, teacher - 3, kind), teacher_loss(student, teacher, kind))


def test_the_temperature_matters_to_kl_alone():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    for kind in ("mse", "mse_logits"):
        assert torch.equal(teacher_loss(student, teacher, kind, 4.0), teacher_loss(student, teacher, kind))
    assert not torch.allclose(teacher_loss(student, teacher, "kl", 4.0), teacher_loss(student, teacher, "kl"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", TEACHER_LOSSES)
def test_teacher_losses_are_float32_for_any_dtype(kind, dtype):
    student, teacher = torch.randn(3, 4).to(dtype), torch.randn(3, 4).to(dtype)
    found = teacher_loss(student, teacher, kind, 2.0)
    assert found.dtype == torch.float32
    assert found.shape == (3,)
    torch.testing.assert_close(found, teacher_loss(student.float(), teacher.float(), kind, 2.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", LABEL_LOSSES)
def test_label_losses_are_float32_for_any_dtype(kind, dtype):
    logits, labels = torch.randn(3, 4).to(dtype), torch.tensor([0, 3, 1])
    found = label_loss(logits, labels, kind)
    assert found.dtype == torch.float32
    assert found.shape == (3,)
    torch.testing.assert_close(found, label_loss(logits.float(), labels, kind))


def test_half_precision_logits_of_any_size_give_finite_losses():
    student = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    for kind in TEACHER_LOSSES:
        assert teacher_loss(student, -student, kind).isfinite().all()
    for kind in LABEL_LOSSES:
        assert label_loss(student, torch.tensor([1]), kind).isfinite().all()


@pytest.mark.parametrize("kind", TEACHER_LOSSES)
def test_gradients_reach_the_student(kind):
    student = torch.randn(3, 4, requires_grad=True)
    teacher_loss(student, torch.randn(3, 4), kind).sum().backward()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((3, 4), (2, 4)), ((3, 4), (4,)), ((3, 1), (3, 4))])
def test_logits_of_different_shapes_are_refused_by_shape(shapes):
    student, teacher = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(CompressionError, match=r"student's logits have shape \(3, .*teacher's \("):
        teacher_loss(student, teacher)


@pytest.mark.parametrize("labels", [torch.zeros(3, 4).long(), torch.zeros(2).long(), torch.zeros(3), torch.tensor(0)])
@pytest.mark.parametrize("kind", LABEL_LOSSES)
def test_labels_that_are_no_class_indices_are_refused_by_shape(kind, labels):
    with pytest.raises(CompressionError, match=r"labels of shape \("):
        label_loss(torch.zeros(3, 4), labels, kind)


def test_unknown_kinds_are_refused_with_the_known_ones():
    with pytest.raises(CompressionError, match=r"teacher_loss='cosine' is unknown.*mse, mse_logits, kl"):
        teacher_loss(torch.zeros(1, 2), torch.zeros(1, 2), "cosine")
    with pytest.raises(CompressionError, match=r"label_loss='kl' is unknown.*mse, cross_entropy"):
        label_loss(torch.zeros(1, 2), torch.zeros(1).long(), "kl")


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
@given(MILD, MILD, st.floats(0.01, 0.99))
def test_the_mean_of_several_answers_is_that_of_their_probabilities(problem, one, other, share):
    tensors = torch.from_numpy(one), torch.from_numpy(other)
    if problem == "regression":
        expected = share * one + (1 - share) * other
    else:
        of = softmax if problem == "single_label_classification" else sigmoid
        expected = share * of(one) + (1 - share) * of(other)
    found = probabilities(mean_logits(tensors, [share, 1 - share], problem), problem)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert mean_logits(tensors[:1], [1.0], problem) is tensors[0]


# Layers


STATES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
VALUES = st.floats(-8, 8, width=32)


@st.composite
def layers(draw, same_width):
    """What the layers of two models say, a mask with at least one token a text, and a number of relation heads."""
    batch, tokens, head_width = draw(STATES)
    heads = draw(st.integers(1, 3))
    other = head_width if same_width else draw(st.integers(1, 5))
    states = [
        draw(hnp.arrays(np.float32, (batch, tokens, heads * width), elements=VALUES)) for width in (head_width, other)
    ]
    mask = draw(hnp.arrays(np.int64, (batch, tokens), elements=st.integers(0, 1)))
    mask[np.arange(batch), draw(st.integers(0, tokens - 1))] = 1
    return *states, mask, heads


@given(layers(same_width=True))
def test_hidden_states_differ_by_the_mean_square_over_real_tokens(drawn):
    student, teacher, mask, _ = drawn
    found = hidden_state_loss(*map(torch.from_numpy, (student, teacher, mask)))
    for row in range(len(mask)):
        real = mask[row] == 1
        expected = ((student[row][real].astype(np.float64) - teacher[row][real]) ** 2).mean()
        np.testing.assert_allclose(found[row], expected, **CLOSE)
    whole = hidden_state_loss(torch.from_numpy(student), torch.from_numpy(teacher))
    np.testing.assert_allclose(whole, ((student.astype(np.float64) - teacher) ** 2).mean((1, 2)), **CLOSE)


@given(layers(same_width=False))
def test_relations_differ_by_the_divergence_of_a_plain_loop(drawn):
    student, teacher, mask, heads = drawn
    found = relation_loss(torch.from_numpy(student), torch.from_numpy(teacher), heads, torch.from_numpy(mask))
    for row in range(len(mask)):
        real = mask[row] == 1
        divergences = []
        for head in range(heads):
            relations = []
            for model in (student, teacher):
                width = model.shape[-1] // heads
                vectors = model[row][real][:, head * width : (head + 1) * width].astype(np.float64)
                relations.append(log_softmax(vectors @ vectors.T / np.sqrt(width)))
            log_p, log_q = relations
            divergences += list((np.exp(log_q) * (log_q - log_p)).sum(-1))
        np.testing.assert_allclose(found[row], np.mean(divergences), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [hidden_state_loss, lambda one, other, mask: relation_loss(one, other, 2, mask)])
def test_padding_has_no_part_in_the_losses_of_layers_or_their_gradients(loss):
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    student, teacher = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    other = torch.where(mask[..., None] == 1, teacher, 1e4)
    found = loss(student, teacher, mask)
    assert found.equal(loss(student, other, mask))
    assert found[1] == 0
    found.sum().backward()
    assert student.grad.isfinite().all()
    assert (student.grad != 0).any(-1).equal(mask == 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layers_in_half_precision_give_finite_losses_in_float32(dtype):
    student, teacher = (torch.full((2, 3, 4), value, dtype=dtype) for value in (3e4, -3e4))
    for loss in (hidden_state_loss(student, teacher), relation_loss(student, teacher, 1)):
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()


def test_layers_that_do_not_fit_are_refused_by_shape():
    states = torch.zeros(2, 3, 4)
    with pytest.raises(CompressionError, match=r"\(2, 3, 4\).*\(2, 5, 4\).*same tokens"):
        hidden_state_loss(states, torch.zeros(2, 5, 4))
    with pytest.raises(CompressionError, match=r"4 wide, the teacher's 6"):
        hidden_state_loss(states, torch.zeros(2, 3, 6))
    with pytest.raises(CompressionError, match=r"\(2, 5, 4\)"):
        relation_loss(states, torch.zeros(2, 5, 4), 2)
    with pytest.raises(CompressionError, match="3 relation heads do not divide a width of 4"):
        relation_loss(states, states, 3)
    with pytest.raises(CompressionError, match=r"mask of shape \(2, 4\).*\(2, 3\)"):
        relation_loss(states, states, 2, torch.ones(2, 4))
