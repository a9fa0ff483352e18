"""What the trainer of WALS makes of interactions, by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.trainers._common import interaction_matrix
from shortlist.trainers.wals import Config, confidences, from_arrow, from_scipy

ROWS = {  # user 2 watches item 3 twice and item 4 once; user 3 item 2; the last three are no cells
    "user": np.array([2, 3, 2, 2, 2, 1, 3]),
    "item": np.array([3, 2, 4, 3, 2, 3, 1]),
    "positive": np.array([True, True, True, True, False, True, True]),
}
WEIGHT = np.array([1.0, 2.0, 4.0, 3.0, 9.0, 9.0, 9.0])  # the mean of the cells' is 2.5


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [("linear", [1 + 2 * 1.6, 1 + 2 * 1.6, 1 + 2 * 0.8]), ("log", 1 + 2 * np.log([2.6, 2.6, 1.8]))],
)
def test_confidences_grow_with_what_was_watched(confidence: Any, expected: Any) -> None:
    x = interaction_matrix(ROWS, num_users=4, num_items=5)
    c = confidences(Config(confidence=confidence, alpha=2.0), x, ROWS, WEIGHT)
    np.testing.assert_array_equal(c.indices, [[2, 3], [2, 4], [3, 2]])
    np.testing.assert_array_equal(c.indices, x.indices)
    np.testing.assert_allclose(c.values, expected, rtol=1e-6)
    assert c.values.dtype == tf.float32


@pytest.mark.parametrize("form", ["csr_matrix", "coo_array", "csc_matrix"])
def test_from_scipy_keeps_every_cell(form: str) -> None:
    dense = np.array([[0, 2, 0], [1, 0, 3]])
    x = from_scipy(getattr(scipy.sparse, form)(dense))
    assert x.values.dtype == tf.float32
    np.testing.assert_array_equal(tf.sparse.to_dense(tf.sparse.reorder(x)), dense)


def test_from_arrow_numbers_the_ids_in_their_order() -> None:
    table = pa.table({"user": ["b", "a", "b"], "film": [7, 9, 2], "rating": [4.5, 1.0, 3.0]})
    x, users, items = from_arrow(table, item="film", value="rating")
    assert (users.to_pylist(), items.to_pylist()) == (["a", "b"], [2, 7, 9])
    np.testing.assert_array_equal(tf.sparse.to_dense(tf.sparse.reorder(x)), [[0, 0, 1], [3, 4.5, 0]])
    np.testing.assert_array_equal(from_arrow(table, item="film")[0].values, np.ones(3))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: from_scipy(np.ones((2, 2))),
            "`x` must be a sparse matrix of SciPy, such as csr_matrix. Received: ndarray.",
        ),
        (
            lambda: from_arrow(pa.table({"user": ["a"], "film": ["x"]})),
            "`item` must be a column of the table. Received: user, film.",
        ),
        (
            lambda: from_arrow(pa.table({"user": ["a", None], "item": ["x", "y"]})),
            "`user` must hold no null; drop those rows. Received: 1 nulls.",
        ),
    ],
)
def test_other_tables_are_refused(make: Any, text: str) -> None:
    with pytest.raises(ShortlistError) as error:
        make()
    assert str(error.value) == text
