"""EASE against NumPy's general inverse, and against the problem that it solves."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_contract import ModelContract

from shortlist import ShortlistError
from shortlist.models._ease import LEAF, invert
from shortlist.models.ease import EASE


def fitted(seen: np.ndarray, l2: float, neighbours: int | None = None) -> EASE:
    model = EASE(num_items=seen.shape[1], l2=l2, neighbours=neighbours)
    model.fit(tf.sparse.from_dense(seen.astype(np.float32)))
    return model


def random_matrix(users: int, items: int) -> np.ndarray:
    seen = np.random.default_rng(users).random((users, items)) < 0.3
    seen[:, :2] = False  # the reserved rows
    seen[0] = False  # a user without anything
    return seen


def rows_of(model: EASE) -> np.ndarray:
    """B, row by row: the scores of histories of one item."""
    items = np.arange(2, model.num_items)
    return model.score_items({"history": tf.constant(items[:, np.newaxis], tf.int32)}).numpy()


class TestEASE(ModelContract):
    refused = (
        ({"num_items": 0}, "`num_items` must be an integer of at least 1. Received: num_items=0."),
        ({"l2": 0}, "`l2` must be above 0, or the inverse need not exist. Received: l2=0."),
        ({"l2": float("nan")}, "`l2` must be a finite number of at least 0. Received: l2=nan."),
        ({"neighbours": 0}, "`neighbours` must be an integer of at least 1. Received: neighbours=0."),
    )

    def make(self) -> EASE:
        return fitted(random_matrix(30, 12), l2=2.0, neighbours=4)

    def query(self) -> dict[str, np.ndarray]:
        history = np.array([[2, 5, 7, 5], [11, 0, 0, 0], [0, 0, 0, 0], [1, 3, 0, 0]])
        return {"user": np.arange(4), "history": history, "history_time": history, "time": np.arange(4)}

    @pytest.mark.parametrize("neighbours", [4, 12, 40, None])
    def test_scores_sum_the_kept_weights_of_distinct_items(self, neighbours: int | None) -> None:
        seen = random_matrix(30, 12)
        kept = oracles.keep_largest(oracles.ease_weights(seen, 2.0), neighbours or 12)
        expected = [kept[[2, 5, 7]].sum(0), kept[11], np.zeros(12), kept[3]]
        history = tf.constant(self.query()["history"], tf.int32)
        scores = fitted(seen, 2.0, neighbours).score_items({"history": history})
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)


def test_weights_by_hand() -> None:
    # Two users have both items: XᵀX + 1 = [[3, 2], [2, 3]], its inverse [[3, −2], [−2, 3]] / 5, B_ij = 2 / 3.
    np.testing.assert_allclose(
        rows_of(fitted(np.array([[0, 0, 1, 1]] * 2), l2=1.0)), [[0, 0, 0, 2 / 3], [0, 0, 2 / 3, 0]], rtol=1e-6
    )


@pytest.mark.parametrize(("users", "items"), [(400, 3 * LEAF), (2 * LEAF, 3 * LEAF + 7)], ids=["by users", "by items"])
def test_the_exact_solution_at_a_size_that_is_halved(users: int, items: int) -> None:
    seen = random_matrix(users, items)
    expected = oracles.ease_weights(seen, 20.0)[2:]
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(rows_of(fitted(seen, 20.0)), expected, rtol=1e-4, atol=1e-7)


def test_no_other_weights_with_an_empty_diagonal_lose_less() -> None:
    """The gradient of |X − XB|² + l2·|B|² vanishes off the diagonal, which is 0."""
    seen, l2 = random_matrix(40, 15), 3.0
    b, x = np.concatenate([np.zeros((2, 15)), rows_of(fitted(seen, l2))]), seen.astype(float)
    gradient = -2 * x.T @ (x - x @ b) + 2 * l2 * b
    np.fill_diagonal(gradient, 0)
    assert np.abs(gradient).max() < 1e-4 < np.abs(x.T @ (x - x @ b)).max()
    assert not np.diag(b).any()


def test_halving_inverts_any_positive_definite_matrix() -> None:
    factor = np.random.default_rng(0).normal(size=(2 * LEAF + 3, 2 * LEAF + 3))
    a = factor @ factor.T + 10 * np.eye(len(factor))
    inverse = a.copy()
    invert(inverse)
    np.testing.assert_allclose(inverse @ a, np.eye(len(a)), atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_matrix_in_any_order(data: st.DataObject) -> None:
    users, items = data.draw(st.integers(1, 8)), data.draw(st.integers(3, 9))
    cell = st.tuples(st.integers(0, users - 1), st.integers(2, items - 1))
    cells = data.draw(st.lists(cell, min_size=1, max_size=40))
    l2 = data.draw(st.sampled_from([0.01, 1.0, 200.0]))
    seen = np.zeros((users, items), bool)
    seen[tuple(np.array(cells).T)] = True
    model = EASE(num_items=items, l2=l2, neighbours=None)
    model.fit(tf.SparseTensor(cells, np.full(len(cells), 3.5), (users, items)))  # duplicates, any value, any order
    np.testing.assert_allclose(rows_of(model), oracles.ease_weights(seen, l2)[2:], rtol=1e-4, atol=1e-6)


def test_refuses_to_be_fitted_to_too_many_items() -> None:
    seen = tf.SparseTensor([[0, 2]], [1.0], [1, 20_003])
    with pytest.raises(ShortlistError) as error:
        EASE(num_items=20_003).fit(seen)
    assert str(error.value) == (
        "`num_items` must be at most 20,002, for 20,000 items: EASE inverts a matrix of items by items. Leave rare "
        "items out, such as by --set transform.min_count=5, or use item_knn. Received: num_items=20003."
    )


def test_refuses_another_width_and_no_matrix() -> None:
    model = EASE(num_items=4)
    with pytest.raises(ShortlistError) as error:
        model.fit(tf.sparse.from_dense([[1.0, 1.0]]))
    assert str(error.value) == "`x` must have one column an item, 4 in all. Received: shape=(1, 2)."
    with pytest.raises(ShortlistError, match=r"^`x` must be a tf.SparseTensor"):
        model.fit(np.ones((2, 4)))
    with pytest.raises(ShortlistError, match=r"^`x` must have at least one cell"):
        model.fit(tf.sparse.from_dense(np.zeros((2, 4))))
    with pytest.raises(ShortlistError, match=r"^`EASE` must be fitted before it is asked"):
        model.score_items({"history": tf.constant([[2]])})
