"""The first stage against a loop: quotas, fusion, exclusion, and the answer to an empty history."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.models._base import QUERY_SPEC, ranking_query
from shortlist.models._ranking_features import Catalogue, RankingFeatures
from shortlist.models._shortlist import Shortlist

ITEMS = 12


class Fixed:
    """A source that scores each request by the row that its user names, and is told what a `Query` tells."""

    def __init__(self, table: np.ndarray):
        self.table = tf.constant(table, tf.float32)

    def scores(self, query: dict[str, tf.Tensor]) -> tf.Tensor:
        assert query.keys() == QUERY_SPEC.keys()
        return tf.gather(self.table, query["user"])


def made(tables: list[np.ndarray], quota: list[int], size: int, popularity: np.ndarray) -> Shortlist:
    names = [f"s{n}" for n in range(len(tables))]
    plain = np.arange(ITEMS)
    catalogue = Catalogue(np.ones((ITEMS, 1), np.float32), plain, plain, plain, plain, plain)
    features = RankingFeatures(catalogue, {}, tuple(names), 3, quota)
    sources = {name: Fixed(table) for name, table in zip(names, tables, strict=True)}
    return Shortlist(sources, dict(zip(names, quota, strict=True)), size, popularity, features)


def query(history: np.ndarray) -> dict[str, tf.Tensor]:
    count = len(history)
    return {
        "user": tf.range(count),
        "history": tf.constant(history, tf.int32),
        "history_time": tf.zeros(history.shape, tf.int64),
        "time": tf.fill([count], tf.constant(10, tf.int64)),
    }


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_loop(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 3))
    sources = data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    tables = [rng.integers(-3, 4, (count, ITEMS)).astype(np.float32) for _ in range(sources)]  # with many ties
    popularity = rng.integers(0, 5, ITEMS).astype(np.float32)
    quota = data.draw(st.lists(st.integers(1, 4) | st.integers(1, ITEMS + 3), min_size=sources, max_size=sources))
    size = data.draw(st.integers(1, ITEMS + 5))
    history = rng.integers(1, ITEMS, (count, 2)) * (rng.random((count, 1)) < 0.7)
    history[0] = data.draw(st.sampled_from([(0, 0), (1, 0), (1, 1), (5, 1)]))  # nothing, nothing known, something
    exclude = rng.integers(-1, ITEMS, (count, data.draw(st.integers(0, 8))))
    if data.draw(st.booleans()):
        exclude = np.concatenate(
            [exclude, np.tile(np.arange(2, ITEMS), (count, 1))[:, 1:]], axis=1
        )  # hardly one is left
    answer = made(tables, quota, size, popularity)(query(history), tf.constant(exclude, tf.int32))
    answer = {name: value.numpy() for name, value in answer.items()}
    assert answer["items"].shape == answer["fused"].shape == answer["features"].shape[:2] == (count, size)
    for b in range(count):
        own = [table[b] for table in tables]
        items, fused, ranks = oracles.shortlist(own, quota, size, popularity, history[b], exclude[b])
        missing = size - len(items)
        assert answer["items"][b].tolist() == items + [0] * missing
        np.testing.assert_allclose(answer["fused"][b], fused + [-np.inf] * missing, rtol=1e-6)
        for s, limit in enumerate(quota):
            expected = [ranks[s].get(i, limit + 1) for i in items]
            np.testing.assert_array_equal(answer["ranks"][b, s, : len(items)], expected)
        allowed = [i for i in np.argsort(-answer["order"][b], kind="stable") if i >= 2 and i not in exclude[b]]
        assert allowed[: len(items)] == items
        rest = answer["order"][b][[i for i in allowed if all(i not in own for own in ranks)]]
        assert (np.diff(rest) <= 0).all()


def test_fusion_by_hand() -> None:
    """Item 3 is second for both sources, so it beats the two items that only one of them puts first."""
    one, other = np.zeros((1, ITEMS)), np.zeros((1, ITEMS))
    one[0, [2, 3, 4]] = 9, 8, 7
    other[0, [5, 3, 6]] = 9, 8, 7
    answer = made([one, other], [2, 3], 4, np.zeros(ITEMS))(query(np.array([[7]])), tf.zeros([1, 0], tf.int32))
    np.testing.assert_array_equal(answer["items"], [[3, 2, 5, 6]])  # 4 is beyond the quota; 2 and 5 tie
    np.testing.assert_allclose(answer["fused"], [[2 / 62, 1 / 61, 1 / 61, 1 / 63]], rtol=1e-6)
    np.testing.assert_array_equal(answer["ranks"], [[[2, 1, 3, 3], [2, 4, 1, 3]]])


def test_any_item_is_described_beside_the_shortlist() -> None:
    """Scores of the first source among the shortlist are 9, 8, 0 and 0, of mean 17/4; 4 is 7, and no source's."""
    one, other = np.zeros((1, ITEMS)), np.zeros((1, ITEMS))
    one[0, [2, 3, 4]] = 9, 8, 7
    other[0, [5, 3, 6]] = 9, 8, 7
    shortlist = made([one, other], [2, 3], 4, np.zeros(ITEMS))
    request = ranking_query(query(np.array([[7]])))
    answer = shortlist(request, tf.zeros([1, 0], tf.int32))
    proposals = shortlist.propose(request, tf.zeros([1, 0], tf.int32))
    features, ranks = shortlist.describe(request, proposals, tf.constant([[6, 4, 3, 0, 2]]), answer["items"])
    np.testing.assert_array_equal(ranks[0, :, :3], [[3, 3, 2], [3, 4, 2]])
    np.testing.assert_array_equal(ranks[0, :, 4], [1, 4])
    names = shortlist.features.names
    known, own = [3, 0, 1], [0, 2, 4]  # 6, 3 and 2: their places in the shortlist, and here
    np.testing.assert_allclose(features.numpy()[0, own], answer["features"].numpy()[0, known], rtol=1e-6)
    outside = dict(zip(names, features.numpy()[0, 1], strict=True))
    z = (7 - 17 / 4) / np.std([9, 8, 0, 0])
    expected = {"score_z:s0": z, "log_rank:s0": np.log(4), "log_rank:s1": np.log(5), "log_fused_rank": np.log(5)}
    for name, value in {**expected, "proposed:s0": 0, "proposed:s1": 0}.items():
        assert outside[name] == pytest.approx(value, rel=1e-5), name
    assert answer["features"].numpy()[0, :, names.index("proposed:s1")].tolist() == [1, 0, 1, 1]
    np.testing.assert_array_equal(features[0, 3], np.zeros(len(names)))


def test_past_the_shortlist_the_first_source_orders_the_rest() -> None:
    scores = np.array([[50.0, 40, -3, 4, 2, 9, 0, 8, -1, 7, 6, 1]])
    answer = made([scores, -scores], [2, 1], 2, np.zeros(ITEMS))(query(np.array([[7]])), tf.constant([[5]]))
    # Item 7 leads the first source and item 2 the second; 9 is the other's only proposal that does not fit in.
    np.testing.assert_array_equal(answer["items"], [[2, 7]])
    order = [i for i in np.argsort(-answer["order"][0], kind="stable") if i not in (0, 1, 5)]
    assert order == [2, 7, 9, 10, 3, 4, 11, 6, 8]


@pytest.mark.parametrize("quota", [1_000, 40_000])
def test_the_order_of_a_long_shortlist_is_that_of_the_fusion(quota: int) -> None:
    """At rank 1,000 two neighbours differ by 1e-6 in their fused score."""
    scores = np.random.default_rng(0).permutation(quota + 500).astype(np.float32)[np.newaxis]
    plain = np.zeros(quota + 500)
    catalogue = Catalogue(np.ones((quota + 500, 1), np.float32), plain, plain, plain, plain, plain)
    features = RankingFeatures(catalogue, {}, ("a", "b"), 3)
    sources = {"a": Fixed(-scores), "b": Fixed(scores)}
    answer = Shortlist(sources, {"a": 3, "b": quota}, quota, plain, features)(
        query(np.array([[7]])), tf.zeros([1, 0], tf.int32)
    )
    best = np.argsort(-answer["order"][0].numpy(), kind="stable")
    best = best[best >= 2]
    np.testing.assert_array_equal(best[:quota], answer["items"][0])


def test_what_a_source_leaves_out_it_does_not_propose_and_others_may() -> None:
    out = -np.inf
    tables = [np.full((2, ITEMS), out, np.float32), np.arange(2 * ITEMS, dtype=np.float32).reshape(2, ITEMS)]
    tables[0][0, [4, 7]] = 1.0, 3.0
    asked = query(np.array([[2], [3]]))
    found = made(tables, [5, 2], 6, np.zeros(ITEMS))(ranking_query(asked), tf.zeros((2, 0), tf.int32))
    # The first source proposes 7, then 4, to the first and nothing to the second; the second 11 and 10 to both.
    np.testing.assert_array_equal(found["items"], [[7, 11, 4, 10, 0, 0], [11, 10, 0, 0, 0, 0]])
    np.testing.assert_array_equal(found["ranks"][0, 0, :4], [1, 6, 2, 6])
    assert np.isfinite(found["features"].numpy()).all()
    assert np.isfinite(found["order"].numpy()).all()
