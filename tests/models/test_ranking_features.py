"""Every feature of the ranker against a loop in NumPy, and what must not change any of them."""

from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf

from shortlist.models._ranking_features import Catalogue, RankingFeatures

ITEMS, B, K, L = 14, 4, 6, 14
DAY = 86_400
NOW = 1_000_000_000
SOURCES = ("knn", "tower")


def random_case(seed: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """catalogue, vectors, query and candidates; request 0 has no history, 1 an unknown item and a full day."""
    rng = np.random.default_rng(seed)
    first = NOW - rng.integers(0, 4000, ITEMS) * DAY
    catalogue = {
        "genres": rng.integers(0, 2, (ITEMS, 3)).astype(np.float32),
        "year": np.where(rng.random(ITEMS) < 0.3, 0, rng.integers(1950, 2010, ITEMS)).astype(np.int16),
        "count": rng.integers(0, 90, ITEMS),
        "recent_count": rng.integers(0, 9, ITEMS),
        "first_time": first,
        "last_time": first + rng.integers(0, 5000, ITEMS) * DAY,  # after the request as well
    }
    catalogue["genres"][[3, 7]] = 0
    vectors = {
        "wals": rng.normal(size=(ITEMS, 4)).astype(np.float32),
        "tower": rng.normal(size=(ITEMS, 2)).astype(np.float32),
    }
    vectors["wals"][5] = 0
    history = np.zeros((B, L), np.int32)
    times = np.zeros((B, L), np.int64)
    for row, length in enumerate((0, 3, 12, 1)):
        history[row, :length] = rng.integers(2, ITEMS, length)
        times[row, :length] = np.sort(NOW - rng.integers(0, 40, length) * DAY // 8)
    history[1, 1] = 1  # not in the vocabulary
    query = {"user": np.full(B, 2, np.int32), "history": history, "history_time": times, "time": np.full(B, NOW)}
    items = np.stack([rng.permutation(np.arange(2, ITEMS))[:K] for _ in range(B)]).astype(np.int32)
    items[2, 4:] = 0
    items[3, 1:] = 0  # one candidate only, so its score has no spread
    scores = rng.normal(size=(B, len(SOURCES), K)).astype(np.float32)
    scores[1, 1] = 0.1  # all alike
    ranks = rng.integers(1, 30, (B, len(SOURCES), K)).astype(np.float32)
    return catalogue, vectors, query, {"items": items, "scores": scores, "ranks": ranks}


def compute(
    catalogue: dict[str, Any],
    vectors: dict[str, Any],
    query: dict[str, Any],
    candidates: dict[str, Any],
    length: int = 5,
) -> dict[str, np.ndarray]:
    """The features by name, `[B, K]` each."""
    build = RankingFeatures(Catalogue(**catalogue), vectors, SOURCES, length)
    given = {name: tf.constant(value) for name, value in query.items()}
    features = build(given, *(tf.constant(candidates[name]) for name in ("items", "scores", "ranks"))).numpy()
    assert features.dtype == np.float32
    assert features.shape[-1] == len(build.names) == len(set(build.names))
    return dict(zip(build.names, np.moveaxis(features, -1, 0), strict=True))


@pytest.mark.parametrize("length", [1, 5, 12, 20])  # one of the requests has 12 in its history
def test_every_feature_equals_its_loop(length: int) -> None:
    catalogue, vectors, query, candidates = random_case(length)
    got = compute(catalogue, vectors, query, candidates, length)
    for b in range(B):
        one = {name: value[b] for name, value in query.items()}
        columns = [candidates[name][b] for name in ("items", "scores", "ranks")]
        expected = oracles.ranking_features(catalogue, vectors, SOURCES, length, one, *columns)
        assert got.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(got[name][b], values, rtol=1e-4, atol=1e-4, err_msg=f"{name}, request {b}")


def test_scores_that_are_all_alike_say_nothing() -> None:
    """Seven times 0.1 has a mean that is not 0.1 in float32: the rounding must not become a feature."""
    catalogue, vectors, query, _ = random_case(0)
    items = np.tile(np.arange(2, 9, dtype=np.int32), (B, 1))
    for value in (0.1, -1234.567, 0.0):
        alike = {"items": items, "scores": np.full((B, 2, 7), value, np.float32), "ranks": np.ones((B, 2, 7), "f4")}
        np.testing.assert_array_equal(compute(catalogue, vectors, query, alike)["score_z:knn"], np.zeros((B, 7)))


def test_a_score_means_the_same_after_a_refit_that_scales_and_shifts_it() -> None:
    catalogue, vectors, query, candidates = random_case(1)
    before = compute(catalogue, vectors, query, candidates)
    after = compute(catalogue, vectors, query, {**candidates, "scores": 7 * candidates["scores"] + 3})
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, atol=1e-4, err_msg=name)


def test_the_numbers_of_the_item_rows_mean_nothing() -> None:
    catalogue, vectors, query, candidates = random_case(2)
    before = compute(catalogue, vectors, query, candidates)
    new = np.concatenate([[0, 1], 2 + np.random.default_rng(0).permutation(ITEMS - 2)])  # the new row of each old one
    assert (new != np.arange(ITEMS)).sum() > 5
    moved = {name: np.empty_like(values) for name, values in {**catalogue, **vectors}.items()}
    for name, values in {**catalogue, **vectors}.items():
        moved[name][new] = values
    history, items = new[query["history"]].astype(np.int32), new[candidates["items"]].astype(np.int32)
    after = compute(
        {name: moved[name] for name in catalogue},
        {name: moved[name] for name in vectors},
        {**query, "history": history},
        {**candidates, "items": items},
    )
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("width", [0, 3])
def test_padding_changes_nothing(width: int) -> None:
    catalogue, vectors, query, candidates = random_case(3)
    before = compute(catalogue, vectors, query, candidates)
    wider = {name: np.pad(query[name], ((0, 0), (0, width))) for name in ("history", "history_time")}
    more = {name: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 2)]) for name, x in candidates.items()}
    after = compute(catalogue, vectors, {**query, **wider}, more)
    for name, values in before.items():
        np.testing.assert_allclose(after[name][:, :K], values, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(after[name][:, K:], np.zeros((B, 2)), err_msg=name)


def test_a_history_without_columns_is_an_empty_one() -> None:
    catalogue, vectors, query, candidates = random_case(0)
    empty = {name: np.zeros((B, 3), query[name].dtype) for name in ("history", "history_time")}
    none = {name: value[:, :0] for name, value in empty.items()}
    expected = compute(catalogue, vectors, {**query, **empty}, candidates)
    for name, values in compute(catalogue, vectors, {**query, **none}, candidates).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
