"""The losses of logits against NumPy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hfcompress import CompressionError
from hfcompress.losses import LABEL_LOSSES, TEACHER_LOSSES, label_loss, mean_logits, probabilities, teacher_loss

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6)
LOGITS = hnp.arrays(np.float32, st.shared(SHAPES, key="shape"), elements=st.floats(-30, 30, width=32))
MILD = hnp.arrays(np.float32, st.shared(SHAPES, key="shape"), elements=st.floats(-10, 10, width=32))
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
PROBLEMS = "single_label_classification", "multi_label_classification", "regression"
SEVERAL_LABELS = PROBLEMS[1]


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def softmax(logits):
    return np.exp(log_softmax(logits))


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


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
def test_kl_is_the_divergence_times_the_squared_temperature(student, teacher, temperature):
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


@given(MILD, MILD)
def test_mse_with_several_labels_compares_their_probabilities(student, teacher):
    expected = ((sigmoid(student) - sigmoid(teacher)) ** 2).mean(-1)
    found = teacher_loss(torch.from_numpy(student), torch.from_numpy(teacher), "mse", problem=SEVERAL_LABELS)
    np.testing.assert_allclose(found.numpy(), expected, **CLOSE)


@given(MILD, MILD)
def test_mse_logits_with_several_labels_compares_their_logits(student, teacher):
    expected = ((student.astype(np.float64) - teacher) ** 2).mean(-1)
    found = teacher_loss(torch.from_numpy(student), torch.from_numpy(teacher), "mse_logits", problem=SEVERAL_LABELS)
    np.testing.assert_allclose(found.numpy(), expected, **CLOSE)


@given(MILD, MILD, st.sampled_from([0.5, 1.0, 3.0]))
def test_kl_with_several_labels_is_their_mean_divergence(student, teacher, temperature):
    p, q = sigmoid(student / temperature), sigmoid(teacher / temperature)
    expected = temperature**2 * (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean(-1)
    found = teacher_loss(torch.from_numpy(student), torch.from_numpy(teacher), "kl", temperature, SEVERAL_LABELS)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-5 * temperature**2)


@given(MILD, st.data(), st.sampled_from([0.0, 0.2]))
def test_label_losses_with_several_labels_follow_their_formulas(logits, data, smoothing):
    labels = data.draw(hnp.arrays(np.float32, logits.shape, elements=st.sampled_from([0.0, 1.0])))
    target = labels * (1 - smoothing) + smoothing / 2
    tensors = torch.from_numpy(logits), torch.from_numpy(labels)
    p = sigmoid(logits)
    brier = ((p - target) ** 2).mean(-1)
    np.testing.assert_allclose(label_loss(*tensors, "mse", smoothing, SEVERAL_LABELS).numpy(), brier, **CLOSE)
    cross_entropy = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean(-1)
    found = label_loss(*tensors, "cross_entropy", smoothing, SEVERAL_LABELS).numpy()
    np.testing.assert_allclose(found, cross_entropy, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["mse", "mse_logits"])
def test_in_regression_the_teacher_loss_is_the_squared_error(kind):
    logits, other = torch.randn(3, 1), torch.randn(3, 1)
    found = teacher_loss(logits, other, kind, problem="regression")
    torch.testing.assert_close(found, (logits - other).squeeze(1) ** 2)


@pytest.mark.parametrize("shape", [(3, 1), (3,)])
def test_in_regression_the_label_loss_is_the_squared_error(shape):
    logits, labels = torch.randn(3, 1), torch.randn(shape)
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
def test_losses_about_classes_are_refused_in_regression(refused):
    with pytest.raises(CompressionError, match="regression head"):
        refused()


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_labels_of_another_shape_than_the_logits_are_refused(problem):
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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("kind", LABEL_LOSSES)
def test_labels_may_have_any_integer_dtype(kind, dtype):
    logits, labels = torch.randn(2, 300), torch.tensor([0, 200])
    torch.testing.assert_close(label_loss(logits, labels.to(dtype), kind), label_loss(logits, labels, kind))


@pytest.mark.parametrize("kind", LABEL_LOSSES)
def test_no_examples_have_no_label_loss(kind):
    assert label_loss(torch.zeros(0, 2), torch.zeros(0).long(), kind).shape == (0,)


@pytest.mark.parametrize("kind", TEACHER_LOSSES)
@given(logits=LOGITS)
def test_equal_logits_have_no_teacher_loss(kind, logits):
    tensor = torch.from_numpy(logits)
    assert teacher_loss(tensor, tensor.clone(), kind, 2.0).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_adding_a_constant_to_the_logits_changes_nothing(kind):
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(teacher_loss(student + 5, teacher - 3, kind), teacher_loss(student, teacher, kind))


@pytest.mark.parametrize("kind", ["mse", "mse_logits"])
def test_the_temperature_changes_no_squared_difference(kind):
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(teacher_loss(student, teacher, kind, 4.0), teacher_loss(student, teacher, kind))


def test_the_temperature_changes_kl():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
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
def test_labels_that_are_not_class_indices_are_refused_by_shape(kind, labels):
    with pytest.raises(CompressionError, match=r"labels of shape \("):
        label_loss(torch.zeros(3, 4), labels, kind)


def test_an_unknown_teacher_loss_is_refused_with_the_known_ones():
    with pytest.raises(CompressionError, match=r"teacher_loss='cosine' is unknown.*mse, mse_logits, kl"):
        teacher_loss(torch.zeros(1, 2), torch.zeros(1, 2), "cosine")


def test_an_unknown_label_loss_is_refused_with_the_known_ones():
    with pytest.raises(CompressionError, match=r"label_loss='kl' is unknown.*mse, cross_entropy"):
        label_loss(torch.zeros(1, 2), torch.zeros(1).long(), "kl")


@pytest.mark.parametrize("problem", PROBLEMS)
@given(MILD, MILD, st.floats(0.01, 0.99))
def test_mean_logits_have_the_mean_of_the_probabilities(problem, one, other, share):
    tensors = torch.from_numpy(one), torch.from_numpy(other)
    if problem == "regression":
        expected = share * one + (1 - share) * other
    else:
        convert = softmax if problem == "single_label_classification" else sigmoid
        expected = share * convert(one) + (1 - share) * convert(other)
    found = probabilities(mean_logits(tensors, [share, 1 - share], problem), problem)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_mean_logits_of_one_model_are_its_own(problem):
    logits = torch.randn(3, 4)
    assert mean_logits([logits], [1.0], problem) is logits


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_mean_logits_of_equal_models_are_theirs(problem):
    logits = torch.randn(3, 4)
    torch.testing.assert_close(mean_logits([logits, logits.clone()], [0.3, 0.7], problem), logits)


def test_no_label_is_left_out_of_the_mean_where_it_cannot_be_checked(monkeypatch):
    """Such as on a GPU, where -100 would count as an example with a loss of 0."""
    monkeypatch.setattr("hfcompress.losses._check_indices", lambda *arguments: None)
    with pytest.raises(IndexError):
        label_loss(torch.zeros(2, 3), torch.tensor([1, -100]), "cross_entropy")
