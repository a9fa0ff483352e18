"""Neighbours: cosines against a loop over the history, and items near one item."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from model_contract import ModelContract

from shortlist import ShortlistError
from shortlist.models.neighbours import Neighbours


def fitted(vectors: np.ndarray, **settings: float) -> Neighbours:
    model = Neighbours(num_items=len(vectors), **settings)
    model.fit(vectors)
    return model


def ask(model: Neighbours, history: list[list[int]]) -> np.ndarray:
    return model.score_items({"history": tf.constant(history, tf.int32)}).numpy()


class TestNeighbours(ModelContract):
    refused = (
        ({"num_items": 0}, "`num_items` must be an integer of at least 1. Received: num_items=0."),
        ({"history_length": 0}, "`history_length` must be an integer of at least 1. Received: history_length=0."),
        ({"decay": 0.0}, "`decay` must be above 0 and at most 1. Received: decay=0.0."),
        ({"decay": 1.5}, "`decay` must be above 0 and at most 1. Received: decay=1.5."),
    )

    def make(self) -> Neighbours:
        return fitted(np.random.default_rng(0).normal(size=(12, 5)), history_length=3, decay=0.7)

    def query(self) -> dict[str, np.ndarray]:
        history = np.array([[2, 5, 7, 5], [11, 0, 0, 0], [0, 0, 0, 0], [3, 1, 4, 0]])
        return {"user": np.arange(4), "history": history, "history_time": history, "time": np.arange(4)}


def test_scores_by_hand() -> None:
    # Directions: 2 → (1, 0), 3 → (0, 1), 4 → (.6, .8). Item 3 was watched last and weighs 1, item 2 before it .5.
    model = fitted(np.array([[9, 9], [9, 9], [1, 0], [0, 2], [3, 4]]), decay=0.5)
    np.testing.assert_allclose(ask(model, [[2, 3]]), [[0, 0, 0.5, 1.0, 0.5 * 0.6 + 0.8]], rtol=1e-6)
    np.testing.assert_allclose(ask(model, [[3, 2]]), [[0, 0, 1.0, 0.5, 0.6 + 0.5 * 0.8]], rtol=1e-6)


@given(st.lists(st.integers(1, 8), max_size=7), st.integers(1, 5), st.sampled_from([0.3, 1.0]))
def test_any_history(history: list[int], length: int, decay: float) -> None:
    vectors = np.random.default_rng(1).normal(size=(9, 4))
    vectors[6] = 0  # an item that nobody watched
    model = fitted(vectors, history_length=length, decay=decay)
    expected = oracles.neighbour_scores(vectors, history, length, decay)
    np.testing.assert_allclose(ask(model, [[*history, 0, 0]])[0], expected, rtol=1e-5, atol=1e-6)
    assert expected[6] == 0


def test_items_near_one_item() -> None:
    model = fitted(np.array([[9, 9], [9, 9], [1, 0], [5, 5], [0, 2], [-1, 0]]))
    items, cosine = model.similar_items([2, 4], 3)
    np.testing.assert_array_equal(items, [[3, 4, 5], [3, 2, 5]])
    np.testing.assert_allclose(cosine, [[0.5**0.5, 0, -1], [0.5**0.5, 0, 0]], atol=1e-6)
    np.testing.assert_array_equal(model.similar_items([2, 4], 3, [[3], [0]])[0], [[4, 5, 0], [3, 2, 5]])


def test_what_cannot_be_fitted() -> None:
    model = Neighbours(num_items=3)
    with pytest.raises(ShortlistError) as error:
        ask(model, [[2]])
    assert str(error.value).startswith("`Neighbours` must be fitted before it is asked")
    with pytest.raises(ShortlistError) as error:
        model.fit(np.ones((4, 2)))
    assert str(error.value) == "`x` must be a vector for each of the 3 items. Received: shape=(4, 2)."
    with pytest.raises(ShortlistError, match=r"^`x` must be finite vectors\."):
        model.fit([[0.0], [0.0], [np.nan]])
