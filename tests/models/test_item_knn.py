"""ItemKNN against a loop over pairs of items."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_contract import ModelContract

from shortlist import ShortlistError
from shortlist.models.item_knn import ItemKNN


def fitted(seen: np.ndarray, neighbours: int, shrink: float) -> ItemKNN:
    model = ItemKNN(num_items=seen.shape[1], neighbours=neighbours, shrink=shrink)
    model.fit(tf.sparse.from_dense(seen.astype(np.float32)))
    return model


class TestItemKNN(ModelContract):
    refused = (
        ({"num_items": 0}, "`num_items` must be an integer of at least 1. Received: num_items=0."),
        ({"neighbours": 0}, "`neighbours` must be an integer of at least 1. Received: neighbours=0."),
        ({"shrink": -1}, "`shrink` must be a finite number of at least 0. Received: shrink=-1."),
        ({"shrink": float("nan")}, "`shrink` must be a finite number of at least 0. Received: shrink=nan."),
    )

    def make(self) -> ItemKNN:
        seen = np.random.default_rng(0).random((30, 12)) < 0.4
        seen[:, 0] = False
        return fitted(seen, neighbours=4, shrink=2.0)

    def query(self) -> dict[str, np.ndarray]:
        history = np.array([[2, 5, 7, 5], [11, 0, 0, 0], [0, 0, 0, 0], [1, 3, 0, 0]])
        return {"user": np.arange(4), "history": history, "history_time": history, "time": np.arange(4)}

    def test_equals_the_loop_over_pairs(self) -> None:
        seen = np.random.default_rng(0).random((30, 12)) < 0.4
        seen[:, 0] = False
        histories = [[2, 5, 7, 5], [11], [], [3]]
        expected = [oracles.item_knn_scores(seen, history, 4, 2.0) for history in histories]
        scores = self.make().score_items({"history": tf.constant(self.query()["history"], tf.int32)})
        np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_similarity_by_hand() -> None:
    # Items 2 and 3 share two users, 2 and 4 one; n = (2, 3, 1). Row 2 keeps 3 alone: 2 / (√(2 · 3) + 1).
    seen = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)
    scores = fitted(seen, neighbours=1, shrink=1.0).score_items({"history": tf.constant([[2]])})
    np.testing.assert_allclose(scores, [[0, 0, 0, 2 / (np.sqrt(6) + 1), 0]], rtol=1e-6)


def test_ties_go_to_the_lower_row() -> None:
    seen = np.ones((3, 7), bool)
    scores = fitted(seen, neighbours=2, shrink=0.0).score_items({"history": tf.constant([[4], [2]])})
    np.testing.assert_allclose(scores, [[1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_matrix_in_any_order(data: st.DataObject) -> None:
    users, items = data.draw(st.integers(1, 8)), data.draw(st.integers(3, 9))
    cells = data.draw(
        st.lists(st.tuples(st.integers(0, users - 1), st.integers(0, items - 1)), min_size=1, max_size=40)
    )
    neighbours, shrink = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([0.0, 0.5, 5.0]))
    seen = np.zeros((users, items), bool)
    seen[tuple(np.array(cells).T)] = True
    model = ItemKNN(num_items=items, neighbours=neighbours, shrink=shrink)
    model.fit(tf.SparseTensor(cells, np.full(len(cells), 3.5), (users, items)))  # duplicates, any value, any order
    history = np.arange(2, items)
    expected = [oracles.item_knn_scores(seen, [i], neighbours, shrink) for i in history]
    scores = model.score_items({"history": tf.constant(history[:, np.newaxis], tf.int32)})
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_refuses_another_width_and_no_matrix() -> None:
    model = ItemKNN(num_items=4)
    with pytest.raises(ShortlistError) as error:
        model.fit(tf.sparse.from_dense([[1.0, 1.0]]))
    assert str(error.value) == "`x` must have one column an item, 4 in all. Received: shape=(1, 2)."
    with pytest.raises(ShortlistError, match=r"^`x` must be a tf.SparseTensor"):
        model.fit(np.ones((2, 4)))
    with pytest.raises(
        ShortlistError, match=r"^`x` must have at least one cell; there is nothing to learn. Received: cells=0.$"
    ):
        model.fit(tf.sparse.from_dense(np.zeros((2, 4))))
    with pytest.raises(ShortlistError, match=r"^`ItemKNN` must be fitted before it is asked"):
        model.score_items({"history": tf.constant([[2]])})
