"""Least squares from sums over tokens, against NumPy's solver on the tokens themselves."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfcompress.shrink.least_squares import Products, best_change, solve

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)


def tokens(seed, count, inputs, outputs):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((count, inputs), (count, outputs))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def products(x, d):
    found = Products.zeros(x.shape[1], d.shape[1], x.device)
    found.add(x, d)
    return found


def error(x, d, change):
    return float((d - x @ change).square().sum())


@given(seeds, st.integers(1, 3000), sizes, sizes, st.floats(1e-3, 10))
def test_it_is_the_augmented_least_squares_solution(seed, count, inputs, outputs, penalty):
    x, d = tokens(seed, count, inputs, outputs)
    strength = penalty * float(x.square().sum(0).mean())
    rows = np.concatenate([x.numpy(), np.sqrt(strength) * np.eye(inputs)])
    expected = np.linalg.lstsq(rows, np.concatenate([d.numpy(), np.zeros((inputs, outputs))]), rcond=None)[0]
    np.testing.assert_allclose(solve(products(x, d), penalty).numpy(), expected, rtol=1e-8, atol=1e-8)


@given(seeds, st.integers(1, 50), sizes, sizes)
def test_the_gain_is_the_fall_of_the_squared_error(seed, count, inputs, outputs):
    x, d = tokens(seed, count, inputs, outputs)
    change = tokens(seed + 1, inputs, 1, outputs)[1]
    expected = error(x, d, torch.zeros_like(change)) - error(x, d, change)
    np.testing.assert_allclose(products(x, d).gain(change), expected, rtol=1e-8, atol=1e-8)


@given(seeds, sizes, sizes, sizes)
def test_sums_of_parts_are_the_sums_of_all(seed, count, inputs, outputs):
    x, d = tokens(seed, 2 * count, inputs, outputs)
    parts = products(x[:count], d[:count])
    parts.add(x[count:], d[count:])
    torch.testing.assert_close(parts.inputs, x.T @ x)
    torch.testing.assert_close(parts.missing, x.T @ d)
    torch.testing.assert_close(parts.squares, d.square().sum())


@given(seeds, st.integers(1, 30), sizes, sizes)
def test_what_a_weight_makes_can_be_left_out(seed, count, inputs, outputs):
    x, d = tokens(seed, count, inputs, outputs)
    weight = tokens(seed + 1, inputs, 1, outputs)[1]
    found, expected = products(x, d).without(weight), products(x, d - x @ weight)
    torch.testing.assert_close(found.inputs, expected.inputs)
    torch.testing.assert_close(found.missing, expected.missing, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.squares, expected.squares, rtol=1e-9, atol=1e-9)


@given(seeds, st.integers(1, 30), sizes, sizes)
def test_the_change_chosen_never_raises_the_held_out_error(seed, count, inputs, outputs):
    x, d = tokens(seed, count, inputs, outputs)
    x_held, d_held = tokens(seed + 1, 5, inputs, outputs)  # pure noise
    penalties = (1e-3, 1.0, 1e3)
    change = best_change(products(x, d), products(x_held, d_held), penalties)
    errors = [error(x_held, d_held, solve(products(x, d), penalty)) for penalty in penalties]
    without = float(d_held.square().sum())
    assert error(x_held, d_held, change) <= min(*errors, without) * (1 + 1e-9)


def test_a_large_penalty_changes_nothing():
    x, d = tokens(0, 20, 5, 3)
    assert solve(products(x, d), 1e15).abs().max() < 1e-14


def test_what_cannot_be_solved_changes_nothing():
    x, d = tokens(0, 20, 5, 3)
    for inputs, missing in ((0 * x, d), (x * float("nan"), d), (x, d / 0)):
        assert not solve(products(inputs, missing), 0.1).any()
        assert not best_change(products(inputs, missing), products(inputs, missing), (0.1, 1.0)).any()
    assert solve(products(x[:1], d[:1]), 1e-3).isfinite().all()  # fewer tokens than inputs


def test_tokens_in_float32_are_summed_in_float64():
    x, d = (part.float() for part in tokens(0, 3000, 4, 2))
    found = products(x, d)
    assert found.inputs.dtype == torch.float64
    torch.testing.assert_close(found.inputs, x.double().T @ x.double(), rtol=1e-12, atol=1e-12)
