"""Table: whose rows count, against a dict."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from model_contract import ModelContract

from shortlist import ShortlistError
from shortlist.models.table import Table

ITEMS, USERS = 8, 6


def fitted(rows: list[tuple[int, int, float]], most: int | None = None) -> Table:
    """Of rows of user, item and score."""
    users, items, scores = map(np.array, zip(*rows, strict=True))
    model = Table(num_items=ITEMS, most=most)
    model.fit(items, scores, users)
    return model


class TestTable(ModelContract):
    leaves_out = True
    refused = (
        ({"num_items": 0}, "`num_items` must be an integer of at least 1. Received: num_items=0."),
        ({"most": 0}, "`most` must be an integer of at least 1. Received: most=0."),
    )

    def make(self) -> Table:
        return fitted([(0, 2, 1.0), (0, 5, 3.0), (4, 5, -2.0), (4, 7, 0.5), (3, 2, 8.0)])

    def query(self) -> dict[str, np.ndarray]:
        history = np.array([[2, 3], [4, 0], [0, 0], [2, 0]])
        return {"user": np.array([4, 0, 3, 77]), "history": history, "history_time": history, "time": np.arange(4)}


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 2, 3, 4]), st.integers(2, ITEMS - 1), st.integers(-3, 3)), min_size=1, max_size=20
    ),
    st.sampled_from([None, 1, 3]),
)
def test_equals_a_dict(rows: list[tuple[int, int, int]], most: int | None) -> None:
    lists: dict[int, dict[int, float]] = {}
    for user, item, score in rows:
        own = lists.setdefault(user, {})
        own[item] = max(own.get(item, -np.inf), score)
    asked = np.arange(USERS)
    expected = np.full((USERS, ITEMS), -np.inf)
    for user in asked:
        own = lists.get(user if user >= 2 else 0) or lists.get(0, {})
        for item in sorted(own, key=lambda i: (-own[i], i))[:most]:
            expected[user, item] = own[item]
    scores = fitted(rows, most).score_items({"user": tf.constant(asked, tf.int32)})
    np.testing.assert_array_equal(scores, expected)


def test_what_cannot_be_fitted() -> None:
    def refusal(*given: object) -> str:
        with pytest.raises(ShortlistError) as error:
            Table(num_items=ITEMS).fit(*given)
        return str(error.value)

    assert refusal([2, 3], [1.0]) == (
        "`x`, `y` and `users` must have one entry a row, at least one. Received: x=(2,), y=(1,), users=(2,)."
    )
    assert refusal([], []).startswith("`x`, `y` and `users` must have one entry a row")
    assert refusal([1], [1.0]) == "`x` must be item rows from 2 to 7. Received: lowest=1, highest=1."
    assert refusal([2], [np.nan]) == "`y` must be finite. Received: y='NaN or infinity'."
    assert refusal([2], [1.0], [-1]) == "`users` must be user rows, or 0. Received: lowest=-1."
