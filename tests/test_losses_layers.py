"""The losses of hidden states and self-attention relations against NumPy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hfcompress import CompressionError
from hfcompress.losses import hidden_state_loss, relation_loss

STATES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
VALUES = st.floats(-8, 8, width=32)
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@st.composite
def layers(draw, same_width):
    """Draw two models' states, a mask with at least one token per example, and a number of relation heads."""
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
def test_hidden_state_loss_is_the_mean_square_over_tokens(drawn):
    student, teacher, mask, _ = drawn
    found = hidden_state_loss(*map(torch.from_numpy, (student, teacher, mask)))
    for row in range(len(mask)):
        real = mask[row] == 1
        expected = ((student[row][real].astype(np.float64) - teacher[row][real]) ** 2).mean()
        np.testing.assert_allclose(found[row], expected, **CLOSE)


@given(layers(same_width=True))
def test_without_a_mask_all_tokens_count(drawn):
    student, teacher, _, _ = drawn
    found = hidden_state_loss(torch.from_numpy(student), torch.from_numpy(teacher))
    np.testing.assert_allclose(found, ((student.astype(np.float64) - teacher) ** 2).mean((1, 2)), **CLOSE)


@given(layers(same_width=False))
def test_relation_loss_is_the_divergence_of_a_plain_loop(drawn):
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


LOSSES = pytest.mark.parametrize(
    "loss",
    [hidden_state_loss, lambda one, other, mask: relation_loss(one, other, 2, mask)],
    ids=["states", "relations"],
)


@LOSSES
def test_padding_does_not_change_the_loss(loss):
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    other = torch.where(mask[..., None] == 1, teacher, 1e4)
    assert loss(student, teacher, mask).equal(loss(student, other, mask))


@LOSSES
def test_an_example_that_is_all_padding_has_no_loss(loss):
    found = loss(torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [0, 0, 0]]))
    assert found[0] > 0
    assert found[1] == 0


@LOSSES
def test_padding_has_no_gradient(loss):
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    student, teacher = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    loss(student, teacher, mask).sum().backward()
    assert student.grad.isfinite().all()
    assert (student.grad != 0).any(-1).equal(mask == 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_losses_in_float32(dtype):
    student, teacher = (torch.full((2, 3, 4), value, dtype=dtype) for value in (3e4, -3e4))
    for loss in (hidden_state_loss(student, teacher), relation_loss(student, teacher, 1)):
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()


@LOSSES
def test_different_tokens_are_refused_by_shape(loss):
    with pytest.raises(CompressionError, match=r"\(2, 3, 4\).*\(2, 5, 4\).*same tokens"):
        loss(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), None)


def test_hidden_states_of_different_widths_are_refused():
    with pytest.raises(CompressionError, match=r"4 wide, the teacher's 6"):
        hidden_state_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 6))


@pytest.mark.parametrize("heads", [3, 0, -2])
def test_relation_heads_that_do_not_divide_the_width_are_refused(heads):
    with pytest.raises(CompressionError, match=f"{heads} relation heads do not divide a width of 4"):
        relation_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), heads)


@LOSSES
def test_a_mask_of_another_shape_is_refused(loss):
    with pytest.raises(CompressionError, match=r"mask of shape \(2, 4\).*\(2, 3\)"):
        loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 4))
