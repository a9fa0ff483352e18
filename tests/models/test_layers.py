"""The shared layers against NumPy: quantiles with ties, powers, the end of a history."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.models._layers import QuantileNormalization, last_n, powers

numbers = st.integers(-20, 20).map(lambda n: n / 4)  # few values, so that quantiles tie, all exact in float32


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=12), st.lists(numbers, min_size=1, max_size=20), st.integers(2, 9))
def test_quantile_normalization_is_the_cumulative_frequency_and_monotone(
    fitted: list[float], asked: list[float], quantiles: int
) -> None:
    layer = QuantileNormalization(2, quantiles)
    layer.adapt(np.stack([fitted, np.negative(fitted)], axis=1))
    got = layer(tf.constant(np.stack([asked, np.negative(asked)], axis=1))).numpy()
    bounds = layer.boundaries.numpy().astype(np.float64)
    np.testing.assert_allclose(bounds[0], np.quantile(fitted, np.linspace(0, 1, quantiles)), rtol=1e-6, atol=1e-6)
    expected = [[oracles.quantile_share(bounds[f], v) for f, v in enumerate((a, -a))] for a in asked]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert (np.diff(got[np.argsort(asked, kind="stable"), 0]) >= 0).all()
    np.testing.assert_allclose(got[:, 0] + got[:, 1], 1, atol=1e-5)  # the mirror image


def test_quantile_normalization_by_hand() -> None:
    layer = QuantileNormalization(2, 5)
    layer.adapt(np.array([[0.0, 7], [0, 7], [0, 7], [10, 7], [20, 7]]))  # quantiles 0 0 0 10 20, and five times 7
    # 0 stands on quantiles 0, 1 and 2; 5 halfway between quantiles 2 and 3; 10 on 3; 7 on all of 0 to 4.
    column = [-1, 0, 5, 10, 20, 99]
    got = layer(tf.constant([[[a, b] for a, b in zip(column, [7, 7, 6.9, 7.1, 7, 7], strict=True)]]))
    assert got.shape == (1, 6, 2)
    np.testing.assert_allclose(got[0, :, 0], [0, 0.25, 0.625, 0.75, 1, 1])
    np.testing.assert_allclose(got[0, :, 1], [0.5, 0.5, 0, 1, 0.5, 0.5])


def test_quantile_normalization_where_edges_crowd_into_one_cell_and_where_they_do_not() -> None:
    rng = np.random.default_rng(4)
    fitted = np.stack([rng.normal(size=900), np.exp(4 * rng.normal(size=900)), rng.integers(0, 9, 900)], axis=1)
    layer = QuantileNormalization(3)
    layer.adapt(fitted)
    crowded = np.isnan(layer.cell_lines.numpy()).any(axis=(2, 3)).sum(axis=1)
    assert crowded[1] > 0
    np.testing.assert_array_equal(crowded[[0, 2]], 0)
    asked = np.concatenate([fitted[:300], 1.01 * fitted[:300], 1e6 * (fitted[:99] - 0.5)]).astype(np.float32)
    bounds = layer.boundaries.numpy().astype(np.float64)
    expected = [[oracles.quantile_share(bounds[f], float(v)) for f, v in enumerate(row)] for row in asked]
    np.testing.assert_allclose(layer(asked), expected, atol=1e-5)
    everywhere = [[-np.inf] * 3, [np.inf] * 3, [np.nan] * 3]
    np.testing.assert_array_equal(layer(tf.constant(everywhere))[:2], [[0] * 3, [1] * 3])
    for rows in (slice(0, 1), slice(5, 9)):  # what else is asked for changes nothing
        np.testing.assert_array_equal(layer(asked[rows]), layer(asked)[rows])


def test_quantile_normalization_of_nothing_is_nothing() -> None:
    assert QuantileNormalization(3, 4)(tf.zeros([0, 5, 3])).shape == (0, 5, 3)


def test_quantile_normalization_survives_its_config() -> None:
    layer = QuantileNormalization(2, 7, name="q")
    again = QuantileNormalization.from_config(layer.get_config())
    assert (again.num_features, again.num_quantiles, again.name) == (2, 7, "q")


def test_powers_by_hand() -> None:
    np.testing.assert_allclose(powers(tf.constant([[4.0, 0.25]])), [[4, 0.25, 16, 0.0625, 2, 0.5]])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=4), st.integers(1, 8), st.integers(0, 3))
def test_last_n_equals_a_slice(rows: list[list[int]], n: int, padding: int) -> None:
    width = max(map(len, rows)) + padding  # may be 0
    history = np.zeros((len(rows), width), np.int32)
    other = np.full((len(rows), width), 77, np.int64)  # what lies under the padding must not come through
    for r, row in enumerate(rows):
        history[r, : len(row)] = row
        other[r, : len(row)] = np.arange(len(row)) + 100
    got, times = last_n(tf.constant(history), n, tf.constant(other))
    for r, row in enumerate(rows):
        missing = [0] * max(n - len(row), 0)
        assert got[r].numpy().tolist() == row[-n:] + missing
        assert times[r].numpy().tolist() == [100 + p for p in range(len(row))][-n:] + missing
    assert (got.dtype, times.dtype) == (tf.int32, tf.int64)


@pytest.mark.parametrize("width", [0, 2])
def test_last_n_of_padding_is_padding(width: int) -> None:
    (got,) = last_n(tf.zeros([3, width], tf.int32), 4)
    np.testing.assert_array_equal(got, np.zeros((3, 4)))
