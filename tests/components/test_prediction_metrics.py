"""Metrics that see scores: by hand, against loops over all pairs, and at their edges."""

import re
from collections.abc import Callable

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components import metrics as m

SCORES = np.array([0.9, 0.5, 0.7, 0.5, 0.2, 0.1])
POSITIVE = np.array([True, True, False, False, True, False])
MINUTES = np.array([30.0, 10, 99, 99, 5, 99])  # what a negative has is not looked at
PAGE = np.array([4, 4, 4, 4, 9, 9])


@st.composite
def impressions(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Few different scores, so that many are tied; pages of three users."""
    n = draw(st.integers(1, 20))

    def column(values: st.SearchStrategy) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=n, max_size=n)))

    page = column(st.integers(0, 4))
    return {
        "scores": column(st.sampled_from([-1.0, 0.0, 0.25, 0.5, np.inf])),
        "positive": column(st.booleans()),
        "watch_time": column(st.floats(0, 100)),
        "page": page,
        "user": page % 3,
    }


def test_by_hand() -> None:
    user = np.zeros(6, int)
    # 9 pairs: .9 beats all three, .5 loses to .7, ties with .5, beats .1, .2 loses to two and beats .1.
    assert m.auc(SCORES, POSITIVE) == pytest.approx((3 + 0.5 + 1 + 1) / 9)
    lost, total = m.mispredicted_watch_time(SCORES, POSITIVE, MINUTES, PAGE, user, 2)
    np.testing.assert_allclose(lost, [10 * 1.5, 0])
    np.testing.assert_allclose(total, [30 * 2 + 10 * 2 + 5, 0])
    loss = m.weighted_user_loss(SCORES, POSITIVE, MINUTES, PAGE, user, 2)
    np.testing.assert_allclose(loss, [15 / 85, np.nan])
    p = np.array([0.5, 0.25, 0.25])
    assert m.log_loss(p, np.array([True, False, True])) == pytest.approx(-np.log([0.5, 0.75, 0.25]).mean())
    assert m.rmse(np.array([1.0, 2]), np.array([2.0, 5])) == pytest.approx(np.sqrt(5))
    assert m.mae(np.array([1.0, 2]), np.array([2.0, 5])) == 2
    errors = np.array([3.0, 4, 1])
    np.testing.assert_allclose(m.user_rmse(errors, np.zeros(3), np.array([0, 0, 2]), 3), [np.sqrt(12.5), np.nan, 1])


@settings(max_examples=100, deadline=None)
@given(impressions())
def test_every_pair_counts_once(rows: dict[str, np.ndarray]) -> None:
    ones, nobody = np.ones(len(rows["scores"])), np.zeros(len(rows["scores"]))
    lost, total = oracles.lost_pairs(rows["scores"], rows["positive"], ones, nobody)
    np.testing.assert_allclose(m.auc(rows["scores"], rows["positive"]), 1 - lost / total if total else np.nan)
    aucs = m.user_auc(rows["scores"], rows["positive"], rows["user"], 4)
    losses = m.weighted_user_loss(**rows, users=4)
    for user in range(4):
        own = rows["user"] == user
        scores, positive, time, page = (rows[c][own] for c in ("scores", "positive", "watch_time", "page"))
        lost, total = oracles.lost_pairs(scores, positive, np.ones(own.sum()), np.zeros(own.sum()))
        np.testing.assert_allclose(aucs[user], 1 - lost / total if total else np.nan)
        lost, total = oracles.lost_pairs(scores, positive, time, page)
        np.testing.assert_allclose(losses[user], lost / total if total else np.nan, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(impressions())
def test_what_leaves_the_order_alone_changes_nothing_and_the_reverse_mirrors_it(rows: dict[str, np.ndarray]) -> None:
    rows["scores"] = np.minimum(rows["scores"], 2)
    loss = m.weighted_user_loss(**rows, users=3)
    np.testing.assert_allclose(m.weighted_user_loss(**{**rows, "scores": np.exp(rows["scores"])}, users=3), loss)
    np.testing.assert_allclose(
        m.weighted_user_loss(**{**rows, "scores": -rows["scores"]}, users=3), 1 - loss, atol=1e-12
    )
    np.testing.assert_allclose(m.weighted_user_loss(**{**rows, "watch_time": 7 * rows["watch_time"]}, users=3), loss)
    order = np.random.default_rng(0).permutation(len(rows["scores"]))
    shuffled = {name: column[order] for name, column in rows.items()}
    np.testing.assert_allclose(m.weighted_user_loss(**shuffled, users=3), loss)


def test_equal_scores_everywhere_are_a_coin() -> None:
    rows = {"positive": POSITIVE, "watch_time": MINUTES, "page": PAGE, "user": np.array([0, 0, 0, 0, 1, 1])}
    np.testing.assert_allclose(m.weighted_user_loss(np.zeros(6), **rows, users=2), [0.5, 0.5])
    assert m.auc(np.zeros(6), POSITIVE) == 0.5
    found = m.calibration(np.full(6, 3.0), np.where(POSITIVE, MINUTES, 0))
    assert found["bucket"] == [5]
    assert (found["rows"], found["expected"], found["actual"]) == ([6], [3.0], [7.5])
    assert found["error"] == pytest.approx([3 / 7.5 - 1])


def test_one_kind_alone_has_no_auc_and_no_loss() -> None:
    for only in (np.ones(6, bool), np.zeros(6, bool)):
        assert np.isnan(m.auc(SCORES, only))
        assert np.isnan(m.weighted_user_loss(SCORES, only, MINUTES, PAGE, PAGE, 10)).all()
    none = np.zeros(0)
    assert np.isnan([m.auc(none, none > 0), m.rmse(none, none), m.mae(none, none), m.log_loss(none, none > 0)]).all()
    assert m.calibration(none, none)["rows"] == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=40), st.integers(1, 10))
def test_calibration_equals_the_loop(rows: list[tuple[int, int]], buckets: int) -> None:
    expected, actual = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    found, twin = m.calibration(expected, actual, buckets), oracles.calibration(expected, actual, buckets)
    assert found["bucket"] == list(twin)
    assert found["rows"] == [n for n, _, _ in twin.values()]
    np.testing.assert_allclose(found["expected"], [x for _, x, _ in twin.values()], atol=1e-12)
    np.testing.assert_allclose(found["actual"], [y for _, _, y in twin.values()], atol=1e-12)
    assert all(
        a <= x + 1e-9 and x <= b + 1e-9 for a, x, b in zip(found["low"], found["expected"], found["high"], strict=True)
    )
    assert sorted(found["low"]) == found["low"]
    for x, y, error in zip(found["expected"], found["actual"], found["error"], strict=True):
        assert (error is None) == (y == 0)
        assert error is None or error == pytest.approx(x / y - 1)


def test_deciles_of_different_predictions_have_equal_shares() -> None:
    found = m.calibration(np.random.default_rng(0).permutation(1000) / 10, np.ones(1000))
    assert found["bucket"] == list(range(10))
    assert found["rows"] == [100] * 10
    assert found["low"] == pytest.approx([10.0 * b for b in range(10)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=20))
def test_log_loss_is_finite_and_least_at_the_truth(rows: list[tuple[float, bool]]) -> None:
    p, positive = (np.array(column) for column in zip(*rows, strict=True))
    assert 0 <= m.log_loss(p, positive) <= -np.log(1e-15) + 1e-9
    assert m.log_loss(positive.astype(float), positive) == pytest.approx(0, abs=1e-12)
    share = positive.mean()
    assert m.log_loss(np.full(len(p), share), positive) <= m.log_loss(np.full(len(p), p.mean()), positive) + 1e-9


NAN = np.array([0.5, np.nan, np.nan])
THREE = np.array([True, False, True])
ONE = np.zeros(3, int)  # one page of one user


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.auc(NAN, THREE, "wals"), "`wals` predicts NaN, which nothing can be said about."),
        (lambda: m.auc(NAN, THREE, "wals"), "Received: 2 of 3 rows."),
        (lambda: m.user_auc(NAN, THREE, ONE, 1, "knn"), "`knn` predicts NaN"),
        (lambda: m.weighted_user_loss(NAN, THREE, np.ones(3), ONE, ONE, 1, "tower"), "`tower` predicts NaN"),
        (lambda: m.log_loss(NAN, THREE, "head"), "`head` predicts NaN"),
        (lambda: m.rmse(np.array([1.0, np.inf]), np.ones(2), "camf"), "`camf` predicts what is no finite number"),
        (lambda: m.calibration(NAN, np.ones(3), name="ranker"), "`ranker` predicts what is no finite number"),
        (
            lambda: m.log_loss(np.array([0.5, 1.5, 0.1]), THREE),
            "`probability` must predict chances from 0 to 1. Received: 1.5. Odds are not chances",
        ),
        (
            lambda: m.mae(np.ones(2), np.ones(3), "camf"),
            "`camf` must predict every row. Received: 2 predictions for 3 rows.",
        ),
        (
            lambda: m.weighted_user_loss(np.ones(3), THREE, np.array([1, 0, -2.0]), ONE, ONE, 1),
            "`watch_time` of a positive must be a finite number of at least 0. Received: -2.0.",
        ),
    ],
)
def test_what_is_no_prediction_is_refused_by_name(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ShortlistError, match=re.escape(message)):
        call()
