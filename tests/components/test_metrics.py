import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components import _metrics as metrics

RANKED = np.array([[5, 7, 3, 9], [4, 2, 0, 0], [6, 8, 2, 3], [2, 3, 4, 5]], np.int32)
OFFSETS = np.array([0, 3, 5, 6, 6])
TARGETS = np.array([7, 9, 8, 2, 1, 6], np.int32)
LOG3, LOG5 = np.log2(3), np.log2(5)


def ragged(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, lists)])
    return offsets, np.array([item for own in lists for item in own], np.int32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]], list[int]]:
    """Lists without repetition, zeros at their ends, and targets with repetitions, row 1 and users without any."""
    users, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    ranked = np.zeros((users, width), np.int32)
    for row in ranked:
        items = draw(st.lists(st.integers(2, 9), max_size=width, unique=True))
        row[: len(items)] = items
    target = st.lists(st.integers(1, 9), max_size=8)
    targets = draw(st.lists(target, min_size=users, max_size=users))
    return ranked, targets, draw(st.lists(st.integers(1, 8), min_size=1, max_size=3, unique=True))


def test_hits_by_hand():
    expected = [[0, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(metrics.hits(RANKED, OFFSETS, TARGETS), np.array(expected, bool))


def test_a_target_of_one_query_is_no_hit_of_another_and_reserved_rows_never_are():
    ranked = np.array([[0, 1, 3], [0, 1, 2]], np.int32)
    hit = metrics.hits(ranked, np.array([0, 2, 5]), np.array([1, 2, 0, 1, 3], np.int32))
    assert not hit.any()


def test_keys_do_not_overflow_int32():
    ranked = np.full((3, 1), 2**31 - 1, np.int32)
    hit = metrics.hits(ranked, np.array([0, 0, 0, 1]), np.array([2**31 - 1], np.int32))
    np.testing.assert_array_equal(hit[:, 0], [False, False, True])


def test_ranking_metrics_by_hand():
    got = metrics.ranking_metrics(RANKED, OFFSETS, TARGETS, [1, 4])
    expected = {
        "ndcg@1": [0, 0, 1],  # user 0: hits at ranks 2 and 4 of 3 targets
        "ndcg@4": [(1 / LOG3 + 1 / LOG5) / (1 + 1 / LOG3 + 0.5), (1 / LOG3) / (1 + 1 / LOG3), 1],
        "hr@1": [0, 0, 1],
        "hr@4": [1, 1, 1],
        "recall@1": [0, 0, 1],
        "recall@4": [2 / 3, 1 / 2, 1],  # user 1: one hit, and one target out of vocabulary
        "precision@1": [0, 0, 1],
        "precision@4": [1 / 2, 1 / 4, 1 / 4],
        "mrr@1": [0, 0, 1],
        "mrr@4": [1 / 2, 1 / 2, 1],
        "map@1": [0, 0, 1],
        "map@4": [(1 / 2 + 2 / 4) / 3, (1 / 2) / 2, 1],
    }
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], [*values, np.nan], rtol=1e-12, err_msg=name)  # user 3 has no target


def test_repeated_targets_count_once_and_each_target_out_of_vocabulary_counts():
    ranked = np.array([[3, 4]], np.int32)
    recall = [
        metrics.ranking_metrics(ranked, *ragged([own]), [5])["recall@5"][0] for own in ([3, 3, 3], [3, 1, 1], [1, 1])
    ]
    np.testing.assert_allclose(recall, [1, 1 / 3, 0])


@settings(max_examples=150, deadline=None)
@given(cases())
def test_metrics_equal_the_loop_over_users_and_stay_between_0_and_1(case):
    ranked, targets, cutoffs = case
    got = metrics.ranking_metrics(ranked, *ragged(targets), cutoffs)
    for k in cutoffs:
        twins = [oracles.ranking_metrics(row.tolist(), own, k) for row, own in zip(ranked, targets, strict=True)]
        for name in twins[0]:
            values = got[f"{name}@{k}"]
            np.testing.assert_allclose(values, [twin[name] for twin in twins], rtol=1e-12, err_msg=name)
            assert ((values >= 0) & (values <= 1) | np.isnan(values)).all(), name
            assert np.isnan(values).tolist() == [not own for own in targets]


@settings(max_examples=50, deadline=None)
@given(cases(), st.integers(1, 5))
def test_trailing_zeros_change_nothing(case, zeros):
    ranked, targets, cutoffs = case
    padded = np.pad(ranked, [(0, 0), (0, zeros)])
    plain = metrics.ranking_metrics(ranked, *ragged(targets), cutoffs)
    for name, values in metrics.ranking_metrics(padded, *ragged(targets), cutoffs).items():
        np.testing.assert_array_equal(values, plain[name])


def test_cutoffs_below_1_are_refused():
    with pytest.raises(ShortlistError, match=r"`cutoffs` must be at least 1. Received: \[10, 0\]."):
        metrics.ranking_metrics(RANKED, OFFSETS, TARGETS, [10, 0])


def test_coverage_by_hand():
    assert metrics.coverage(RANKED, 1, 10) == 4 / 10  # 5, 4, 6, 2
    assert metrics.coverage(RANKED, 2, 10) == 7 / 10  # and 7, 8, 3: the 2 is there already
    assert metrics.coverage(np.array([[0, 1], [0, 0]]), 2, 3) == 0


def test_bootstrap_interval_is_that_of_all_resamples():
    values = np.array([0.0, 1.0, 2.0, 4.0, 8.0])
    every = oracles.every_resample_mean(values)
    for level in (0.5, 0.95):
        mean, low, high = metrics.bootstrap_mean(values, samples=40_000, level=level)
        bounds = np.quantile(every, [(1 - level) / 2, (1 + level) / 2])
        assert mean == 3.0
        np.testing.assert_allclose([low, high], bounds, atol=0.11)  # sampling error; all means are multiples of .2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(0, 2**31))
def test_interval_contains_the_mean_and_lies_within_the_values(values, seed):
    mean, low, high = metrics.bootstrap_mean(np.array(values), samples=400, seed=seed)
    assert min(values) - 1e-12 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= max(values) + 1e-12


def test_one_user_and_equal_users_have_no_spread():
    assert metrics.bootstrap_mean(np.array([0.3])) == (0.3, 0.3, 0.3)
    assert metrics.bootstrap_mean(np.full(7, 0.1)) == pytest.approx((0.1, 0.1, 0.1), abs=1e-15)


def test_resamples_depend_on_the_seed_and_the_number_of_users_alone(monkeypatch):
    values = np.random.default_rng(1).random(37)
    first = metrics.bootstrap_mean(values, samples=301, seed=5)
    shifted = metrics.bootstrap_mean(values + 1, samples=301, seed=5)
    np.testing.assert_allclose(np.array(shifted) - 1, first, atol=1e-12)
    assert metrics.bootstrap_mean(values, samples=301, seed=6)[1:] != first[1:]
    monkeypatch.setattr(metrics, "BLOCK", 50)  # one sample a block
    assert metrics.bootstrap_mean(values, samples=301, seed=5) == first


def test_users_without_a_target_are_left_out():
    values = np.array([np.nan, 0.2, np.nan, 0.6, 1.0])
    assert metrics.bootstrap_mean(values) == metrics.bootstrap_mean(values[[1, 3, 4]])
    other = np.array([0.1, 0.1, np.nan, 0.1, 0.1])
    assert metrics.paired_bootstrap(values, other) == metrics.bootstrap_mean(np.array([0.2, 0.6, 1.0]) - 0.1)
    with pytest.raises(ShortlistError, match=r"one user with a target\. Received: 2 users, none with a target\."):
        metrics.bootstrap_mean(np.array([np.nan, np.nan]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=1, max_size=20), st.floats(0, 1))
def test_a_system_does_not_differ_from_itself(values, own):
    a = np.array([own, *values])
    assert metrics.paired_bootstrap(a, a) == (0.0, 0.0, 0.0)


def test_pairing_removes_what_users_share():
    rng = np.random.default_rng(0)
    users, gain = rng.random(300), rng.normal(0.02, 0.01, 300)
    difference, low, high = metrics.paired_bootstrap(users + gain, users)
    assert difference == pytest.approx(gain.mean())
    half = 1.96 * gain.std() / np.sqrt(300)  # the normal interval of a mean
    np.testing.assert_allclose([low, high], [gain.mean() - half, gain.mean() + half], atol=0.15 * half)


def test_pairs_must_be_of_the_same_users():
    with pytest.raises(ShortlistError, match=r"`a` and `b` must be of the same users\. Received: 3 and 1 users\."):
        metrics.paired_bootstrap(np.zeros(3), np.zeros(1))
