"""Folding by hand, against a loop, and of models that fold and don't."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components._folding import overlap, untouched
from shortlist.models._base import masked_top_k


def ragged(*rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *map(len, rows)]), np.array([i for row in rows for i in row], np.int64)


# Items 2 and 3 are of group 0, 4 and 5 of group 1, 6 of both, 7 of none.
GROUPS = np.array([[0, 0], [0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [1, 1], [0, 0]], bool)


def test_the_share_by_hand() -> None:
    ranked = np.array([[4, 3, 6, 7], [5, 2, 4, 0], [4, 2, 0, 0], [7, 2, 3, 4], [0, 0, 0, 0]], np.int32)
    history = ragged([2], [4, 7], [6], [7], [2])
    shares, least = untouched(ranked, GROUPS, history, ragged([2], [4], [6], [], [2]), [2, 4])
    # The first user knows group 0: 4 is strange; 3, 6 and 7 are what the user could get instead. The second knows group
    # 1, the third both, the fourth none; the last got nothing.
    nan = np.nan
    np.testing.assert_array_equal(shares["untouched@2"], [1 / 2, 1 / 2, 0, nan, nan])
    np.testing.assert_array_equal(shares["untouched@4"], [1 / 4, 1 / 3, 0, nan, nan])
    np.testing.assert_array_equal(least["untouched_least@2"], [0, 0, 0, nan, nan])
    np.testing.assert_array_equal(least["untouched_least@4"], [1 / 4, 0, 0, nan, nan])


@given(st.integers(0, 2**32 - 1))
def test_the_share_equals_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, queries, depth = 14, 6, 5
    groups = rng.random((items, 3)) < 0.3
    groups[:2] = False
    histories = [list(rng.integers(2, items, rng.integers(0, 4))) for _ in range(queries)]
    ranked = np.array([rng.permutation(np.arange(2, items))[:depth] for _ in range(queries)])
    ranked[rng.random(ranked.shape) < 0.1] = 0
    shares, least = untouched(ranked, groups, ragged(*histories), ragged(*histories), [1, 3, 9])
    for q, history in enumerate(histories):
        touched = {g for i in history for g in np.flatnonzero(groups[i])}
        strange = [bool(own := set(np.flatnonzero(groups[i]))) and not own & touched for i in range(items)]
        free = sum(not strange[i] and i not in history for i in range(2, items))
        for k in (1, 3, 9):
            shown = [i for i in ranked[q][:k] if i >= 2]
            none = not touched or not shown
            expected = np.nan if none else np.mean([strange[i] for i in shown])
            assert shares[f"untouched@{k}"][q] == pytest.approx(expected, nan_ok=True)
            expected = np.nan if none else max(len(shown) - free, 0) / len(shown)
            assert least[f"untouched_least@{k}"][q] == pytest.approx(expected, nan_ok=True)


def test_overlap_by_hand() -> None:
    vectors = np.array([[9, 9], [9, 9], [1, 0], [2, 0.1], [0, 1], [0.1, 3], [1, 1], [5, 5]])
    # Nearest are 2 and 3, 4 and 5; 6, of both groups, shares one with all. 7 has no group. By chance 2 meets 4 and 5
    # among four others, and so do 3, 4 and 5 the other group, and 6 nobody strange.
    assert overlap(vectors, GROUPS, k=1) == (0.0, pytest.approx(4 * 2 / 4 / 5))
    vectors[[3, 4]] = vectors[[4, 3]]
    assert overlap(vectors, GROUPS, k=1)[0] == pytest.approx(4 / 5)
    vectors[2:6] = 0
    assert np.isnan(overlap(vectors, GROUPS)).all()


def factors(seen: np.ndarray, negatives: float, dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A logistic factorization by gradient descent, in which a cell that was not watched weighs `negatives`."""
    rng = np.random.default_rng(2)
    users, items = rng.normal(size=(len(seen), dim)), rng.normal(size=(seen.shape[1], dim))
    for _ in range(1000):
        p = 1 / (1 + np.exp(-users @ items.T))
        gradient = np.where(seen, p - 1, p * negatives)
        users, items = (
            users - 0.01 * (gradient @ items + users / 100),
            items - 0.01 * (gradient.T @ users + items / 100),
        )
    return users, items


def test_without_negatives_disjoint_blocks_fold_and_with_them_they_do_not() -> None:
    """Six languages that nobody mixes. A model of what was watched alone leaves them where they were thrown."""
    users, items, blocks, k = 120, 122, 6, 5
    rng = np.random.default_rng(0)
    block = np.arange(items) % blocks
    seen = rng.random((users, items)) < rng.beta(1, 2, items)
    seen &= block == (np.arange(users) % blocks)[:, np.newaxis]
    seen[:, :2] = False
    groups = np.eye(blocks, dtype=bool)[block]
    groups[:2] = False
    histories = ragged(*(list(np.flatnonzero(row)) for row in seen))
    found = []
    for negatives in (0.0, 0.2):
        mine, theirs = factors(seen, negatives)
        ranked = masked_top_k(np.where(seen, -np.inf, mine @ theirs.T), k)[0].numpy()
        shares, least = untouched(ranked, groups, histories, histories, [k])
        assert not np.nanmax(least[f"untouched_least@{k}"])
        found.append((np.nanmean(shares[f"untouched@{k}"]), *overlap(theirs, groups)))
    (folded, near, by_chance), (cured, apart, _) = found
    assert by_chance == pytest.approx(100 / 119)
    assert folded > 0.5
    assert near > 0.4
    assert cured < 0.1
    assert apart < near / 2


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ShortlistError, match=r"^`ranked` must be \[Q, K\] and `groups` \[I, G\]"):
        untouched(np.zeros((2, 3), np.int32), GROUPS, ragged([2]), ragged([2], [2]), [1])
