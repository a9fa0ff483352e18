"""Histories as the cells of new rows."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.models._fold_in import cells_of

graph = tf.function(cells_of, input_signature=[tf.TensorSpec([None, None], t) for t in (tf.int32, tf.float32)])


def by_loop(history: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, list[dict[int, float]]]:
    columns, cells = np.full(history.shape, -1, np.int32), []
    for row, (items, own) in enumerate(zip(history, weights, strict=True)):
        said: dict[int, list[float]] = {}
        for place, (item, weight) in enumerate(zip(items, own, strict=True)):
            if item >= 2:
                if item not in said:
                    columns[row, place] = item
                said.setdefault(item, []).extend([weight] if weight >= 0 else [])
        cells.append({item: sum(values) if values else 1.0 for item, values in said.items()})
    return columns, cells


def test_by_hand() -> None:
    history = [[5, 0, 5, 7], [1, 7, 0, 0], [0, 0, 0, 0]]
    weights = [[2.0, 9.0, 0.5, -1.0], [4.0, 0.0, 3.0, 3.0], [1.0, 1.0, 1.0, 1.0]]
    columns, confidences = graph(tf.constant(history), tf.constant(weights))
    assert columns.numpy().tolist() == [[5, -1, -1, 7], [-1, 7, -1, -1], [-1, -1, -1, -1]]
    assert [confidences.numpy()[at] for at in ((0, 0), (0, 3), (1, 1))] == [2.5, 1.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 4), st.integers(0, 7))
def test_equals_a_loop(data: st.DataObject, batch: int, length: int) -> None:
    draw = lambda values: data.draw(st.lists(values, min_size=batch * length, max_size=batch * length))  # noqa: E731
    items = st.integers(0, 6) | st.just(2**31 - 2)
    history = np.array(draw(items), np.int32).reshape(batch, length)
    weights = np.array(draw(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])), np.float32).reshape(batch, length)
    columns, confidences = (values.numpy() for values in graph(history, weights))
    expected, cells = by_loop(history, weights)
    np.testing.assert_array_equal(columns, expected)
    got = [
        {int(c): float(w) for c, w in zip(*line, strict=True) if c >= 0}
        for line in zip(columns, confidences, strict=True)
    ]
    assert got == cells
