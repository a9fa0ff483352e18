"""`masked_top_k`: any k, any number of exclusions, never a reserved or an excluded item."""

import re

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.models._base import masked_top_k, register
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
    batch, items, k = (data.draw(st.integers(1, high)) for high in (3, 7, 10))
    value = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])  # few values: many ties
    scores = np.array(data.draw(st.lists(value, min_size=batch * items, max_size=batch * items)), np.float32)
    scores = scores.reshape(batch, items)
    width = data.draw(st.integers(0, 9))
    id_or_pad = st.integers(-2, items + 1)  # beyond the last item as well
    exclude = np.array(data.draw(st.lists(id_or_pad, min_size=batch * width, max_size=batch * width)), np.int32)
    exclude = exclude.reshape(batch, width)
    for first_id, answer in ((2, _graph(scores, k, exclude)), (0, masked_top_k(scores, k, exclude, first_id=0))):
        expected = oracles.top_k(scores, k, exclude.tolist(), first_id)
        np.testing.assert_array_equal(answer[0], expected[0])
        np.testing.assert_array_equal(answer[1], expected[1])
        assert answer[0].dtype == tf.int32


def test_a_registered_name_belongs_to_one_class() -> None:
    taken = re.escape("`name` must be new. Received: 'popularity', which is shortlist.models.popularity.Popularity.")
    with pytest.raises(ValueError, match=taken):
        register(Popularity.registered_name)(type("Other", (tf.keras.Model,), {}))
