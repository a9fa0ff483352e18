"""`masked_top_k`: any k, any number of exclusions, never a reserved or an excluded item; and what a request keeps."""

import re

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.models._base import masked_top_k, register
from shortlist.models._requests import kept
from shortlist.models.popularity import Popularity


def test_by_hand() -> None:
    scores = np.array([[9.0, 8.0, 1.0, 3.0, 2.0], [9.0, 8.0, 5.0, 5.0, -np.inf]], np.float32)
    items, values = masked_top_k(scores, 4, exclude=np.array([[3, -1], [-1, -1]]))
    np.testing.assert_array_equal(items, [[4, 2, 0, 0], [2, 3, 0, 0]])
    np.testing.assert_array_equal(values, [[2, 1, -np.inf, -np.inf], [5, 5, -np.inf, -np.inf]])


def test_without_reserved_rows_the_rest_is_minus_one() -> None:
    items, values = masked_top_k(np.array([[1.0, 2.0]]), 3, exclude=np.array([[0, 0]]), first_id=0)
    np.testing.assert_array_equal(items, [[1, -1, -1]])
    np.testing.assert_array_equal(values, [[2, -np.inf, -np.inf]])


_graph = tf.function(
    masked_top_k,
    input_signature=[
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([None, None], tf.int32),
    ],
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_sorting_the_allowed_items(data: st.DataObject) -> None:
    batch, k, width = (data.draw(st.integers(low, high)) for low, high in ((1, 3), (1, 10), (0, 9)))
    items = data.draw(st.integers(1, 7) | st.integers(300, 3000))  # few and many beside k and the exclusions
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    values = [-np.inf, -1.0, 0.0, 0.5, 2.0][: data.draw(st.integers(1, 5))]  # few values: many ties
    scores = rng.choice(values, (batch, items)).astype(np.float32)
    exclude = rng.integers(-2, min(items, 20) + 2, (batch, width))  # beyond the last item as well
    for first_id, answer in ((2, _graph(scores, k, exclude)), (0, masked_top_k(scores, k, exclude, first_id=0))):
        expected = oracles.top_k(scores, k, exclude.tolist(), first_id)
        np.testing.assert_array_equal(answer[0], expected[0])
        np.testing.assert_array_equal(answer[1], expected[1])
        assert answer[0].dtype == tf.int32


def test_equals_sorting_whatever_a_sample_of_the_scores_says() -> None:
    """Rows that the sample is like, that it overrates, that it underrates, that tie, and that lack what is wanted."""
    rng, k = np.random.default_rng(5), 30
    alike, tied = rng.normal(size=1000), rng.integers(0, 3, 1000)
    above, below, lacking = alike.copy(), alike.copy(), np.full(1000, -np.inf)
    above[::16] += 100
    below[::16] -= 100
    lacking[rng.integers(2, 1000, k // 2)] = 1
    exclude = rng.integers(2, 1000, (2, 40))
    exclude[:, :20] = np.argsort(-alike)[:20]
    for rows in ((alike, alike + 1), (alike, above), (alike, below), (alike, tied), (alike, lacking)):
        scores = np.stack(rows).astype(np.float32)
        for answer, expected in zip(
            _graph(scores, k, exclude), oracles.top_k(scores, k, exclude.tolist(), 2), strict=True
        ):
            np.testing.assert_array_equal(answer, expected)


def test_no_rows_have_no_best() -> None:
    items, values = _graph(np.zeros((0, 1000), np.float32), 30, np.zeros((0, 4), np.int32))
    assert items.shape == values.shape == (0, 30)


def test_a_registered_name_belongs_to_one_class() -> None:
    taken = re.escape("`name` must be new. Received: 'popularity', which is shortlist.models.popularity.Popularity.")
    with pytest.raises(ValueError, match=taken):
        register(Popularity.registered_name)(type("Other", (tf.keras.Model,), {}))


@pytest.mark.parametrize("shape", [(3, 5), (2, 0), (0, 4), (1, 1)])
def test_what_is_kept_keeps_its_order(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    keep, rows, times = rng.random(shape) < 0.5, rng.integers(2, 90, shape), rng.random(shape)
    wide = max([0, *keep.sum(axis=1)])
    found = kept(*map(tf.constant, (keep, rows, times)))
    for values, own in zip((rows, times), found, strict=True):
        expected = np.zeros((shape[0], wide), values.dtype)
        for row in range(shape[0]):
            expected[row, : keep[row].sum()] = values[row, keep[row]]
        np.testing.assert_array_equal(own, expected)
