"""The kernel against a sort of every row and against `masked_top_k`, whatever the size of the blocks."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components import _top_k
from shortlist.components._top_k import top_k
from shortlist.models._base import masked_top_k


def ragged(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *map(len, lists)]), np.array([i for own in lists for i in own], np.int32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, list[list[int]], int]:
    """Vectors of small whole numbers, so that products are exact and many scores are tied."""
    queries, items, dim = draw(st.integers(1, 7)), draw(st.integers(1, 150)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    q, v = (rng.integers(-2, 3, (n, dim)).astype(np.float32) for n in (queries, items))
    exclude = draw(st.lists(st.lists(st.integers(0, items - 1), max_size=12), min_size=queries, max_size=queries))
    return q, v, draw(st.sampled_from([1, 2, 5, 30, 200])), exclude, draw(st.sampled_from([0, 2]))


@settings(max_examples=120, deadline=None)
@given(cases(), st.sampled_from([(256, 8192), (2, 70), (3, 7)]))
def test_every_row_is_sorted_with_ties_to_the_lower_item(case, blocks) -> None:
    q, v, k, exclude, first_id = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_top_k, "ROWS", blocks[0])
        patch.setattr(_top_k, "COLUMNS", blocks[1])
        got = top_k(q, v, k, *ragged(exclude), first_id)
    items, values = oracles.top_k(q @ v.T, k, exclude, first_id)
    np.testing.assert_array_equal(got, np.where(values > -np.inf, items, 0))


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_the_same_lists_as_the_tensors_give(scale: float) -> None:
    """Of numbers with few digits products are exact, so that tied items stay tied in both."""
    rng = np.random.default_rng(0)
    q, v = ((rng.normal(size=(n, 16)) * scale).round().astype(np.float32) for n in (300, 9000))
    v[100:200] = v[300:400]
    exclude = [rng.choice(9000, rng.integers(0, 60), replace=False).tolist() for _ in range(300)]
    padded = np.full((300, 60), -1)
    for row, own in zip(padded, exclude, strict=True):
        row[: len(own)] = own
    theirs = masked_top_k(q @ v.T, 100, padded)[0].numpy()
    np.testing.assert_array_equal(top_k(q, v, 100, *ragged(exclude)), theirs)


def test_by_hand() -> None:
    q, v = np.array([[1.0], [-1.0]]), np.array([[9.0], [9.0], [1.0], [3.0], [3.0], [-0.0], [0.0]])
    got = top_k(q, v, 6, *ragged([[4, 0], []]))
    np.testing.assert_array_equal(got, [[3, 2, 5, 6, 0, 0], [5, 6, 2, 3, 4, 0]])
    np.testing.assert_array_equal(top_k(np.zeros((1, 1)), v, 3, *ragged([[]])), [[2, 3, 4]])  # all equal
    np.testing.assert_array_equal(top_k(q, v, 2, *ragged([[2, 3, 4, 5, 6], [0]])), [[0, 0], [5, 6]])


def test_no_queries_and_no_items() -> None:
    assert top_k(np.zeros((0, 3)), np.zeros((5, 3)), 4, np.array([0]), np.zeros(0, np.int32)).shape == (0, 4)
    none = top_k(np.zeros((2, 3)), np.zeros((2, 3)), 2, np.zeros(3, int), np.zeros(0, np.int32))  # reserved rows only
    np.testing.assert_array_equal(none, np.zeros((2, 2)))


@pytest.mark.parametrize(("row", "column"), [(0, 2), (700, 4999), (700, 64)])
def test_nan_is_refused_by_name_wherever_it_stands(row: int, column: int) -> None:
    rng = np.random.default_rng(0)
    q, v = rng.random((701, 4)), rng.random((5000, 4))
    v[column, 1] = np.nan
    none = np.zeros(702, int), np.zeros(0, np.int32)
    with pytest.raises(ShortlistError, match=r"^`wals` scores items with NaN.*NaN for query 0\.$"):
        top_k(q, v, 3, *none, name="wals")
    v[column], q[0, 0] = np.inf, 0
    with pytest.raises(ShortlistError, match=r"NaN for query 0\.$"):  # 0 · ∞
        top_k(q, v, 3, *none, name="wals")
    v[column], q[row, 2] = 0, np.nan
    with pytest.raises(ShortlistError, match=rf"NaN for query {row}\.$"):
        top_k(q, v, 3, *none, name="wals")
