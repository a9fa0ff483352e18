"""Maximal marginal relevance and reasons against loops."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from shortlist.models._diversity import mmr_order, nearest_watched

ITEMS = 30


def table(rng: np.random.Generator) -> np.ndarray:
    """Vectors of length 1, some of them 0."""
    vectors = rng.normal(size=(ITEMS, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[rng.random(ITEMS) < 0.1] = 0
    return vectors


def padded(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Different items a row, 0 past the last."""
    found = np.zeros((rows, width), np.int32)
    for row in found:
        length = rng.integers(0, width + 1)
        row[:length] = 2 + rng.permutation(ITEMS - 2)[:length]
    return found


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(1, 12), st.integers(0, 14))
def test_orders_as_the_loop(seed: int, rows: int, width: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    items, vectors = padded(rng, rows, width), table(rng)
    diversity = rng.choice([0.0, 1.0, rng.random()], rows).astype(np.float32)
    order = mmr_order(tf.constant(items), vectors, tf.constant(diversity), tf.constant(steps)).numpy()
    assert order.shape == items.shape
    for own, places, weight in zip(items, order, diversity, strict=True):
        expected = oracles.mmr(own[own > 0].tolist(), vectors, weight, steps)
        assert own[places].tolist() == expected + [0] * (width - len(expected))


def test_by_hand() -> None:
    """Three alike and one other: it comes third as soon as λ > (1 − λ) / 4, and second as soon as λ > (1 − λ) / 2."""
    vectors = np.array([[0, 0], [0, 0], [1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    cases = {0.0: [2, 3, 4, 5], 0.19: [2, 3, 4, 5], 0.21: [2, 3, 5, 4], 0.33: [2, 3, 5, 4], 0.34: [2, 5, 3, 4]}
    for diversity, expected in {**cases, 1.0: [2, 5, 3, 4]}.items():
        order = mmr_order(tf.constant([[2, 3, 4, 5]]), vectors, tf.constant([diversity]), tf.constant(4))
        assert [[2, 3, 4, 5][place] for place in order[0].numpy()] == expected
    assert mmr_order(tf.constant([[2, 3, 4, 5]]), vectors, tf.constant([1.0]), tf.constant(1)).numpy().tolist() == [
        [0, 1, 2, 3]
    ]


@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(0, 6), st.integers(0, 6))
def test_names_the_nearest_watched_item(seed: int, rows: int, width: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    items, history, vectors = padded(rng, rows, width), padded(rng, rows, length), table(rng)
    history[rng.random(history.shape) < 0.1] = 1  # an unknown one
    got = nearest_watched(tf.constant(items), tf.constant(history), vectors).numpy()
    assert got.shape == items.shape
    for row in range(rows):
        known = [watched for watched in history[row].tolist() if watched >= 2]
        assert got[row].tolist() == oracles.nearest_watched(items[row].tolist(), known, vectors)


@pytest.mark.parametrize(("history", "expected"), [([2, 3], 3), ([3, 5, 3], 3), ([2], 2), ([4], 0), ([5], 0)])
def test_the_nearest_by_hand(history: list[int], expected: int) -> None:
    vectors = np.array([[0, 0], [0, 0], [0.6, 0.8], [1, 0], [-1, 0], [0, 1]], np.float32)
    vectors = np.append(vectors, [[1, 0]], axis=0).astype(np.float32)
    assert nearest_watched(tf.constant([[6]]), tf.constant([history]), vectors).numpy().tolist() == [[expected]]
