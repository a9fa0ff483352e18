import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components import _intervals, metrics

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
    monkeypatch.setattr(_intervals, "BLOCK", 50)  # one sample a block
    np.testing.assert_allclose(metrics.bootstrap_mean(values, samples=301, seed=5), first, rtol=1e-12)


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


def test_targets_of_a_slice_are_judged_as_if_there_were_no_others():
    found = metrics.find_targets(RANKED, OFFSETS, TARGETS)
    got = found.metrics([4], np.array([False, True, True, True, False, False]))  # 9 and 8 of user 0, 2 of user 1
    np.testing.assert_allclose(got["recall@4"], [1 / 2, 1, np.nan, np.nan])
    np.testing.assert_allclose(got["ndcg@4"], [(1 / LOG5) / (1 + 1 / LOG3), 1 / LOG3, np.nan, np.nan])
    np.testing.assert_allclose(got["map@4"], [(1 / 4) / 2, 1 / 2, np.nan, np.nan])
    none = found.metrics([4], np.zeros(6, bool))
    assert all(np.isnan(values).all() for values in none.values())


@settings(max_examples=60, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_a_slice_equals_the_loop_over_its_targets(case, random):
    ranked, targets, cutoffs = case
    chosen = {item for item in range(1, 10) if random.random() < 0.5}
    offsets, items = ragged(targets)
    got = metrics.find_targets(ranked, offsets, items).metrics(cutoffs, np.isin(items, list(chosen)))
    kept = [[item for item in own if item in chosen] for own in targets]
    for name, values in metrics.ranking_metrics(ranked, *ragged(kept), cutoffs).items():
        np.testing.assert_array_equal(got[name], values)


def test_weighted_ndcg_by_hand():
    weights = np.array([30.0, 10, 5, 8, 2, 0])
    got = metrics.find_targets(RANKED, OFFSETS, TARGETS).gain_ndcg(weights, [1, 4])
    first = (30 / LOG3 + 10 / LOG5) / (30 + 10 / LOG3 + 5 / 2)  # 7 at rank 2, 9 at rank 4; 8 is missed
    np.testing.assert_allclose(got["weighted_ndcg@4"], [first, (8 / LOG3) / (8 + 2 / LOG3), np.nan, np.nan])
    np.testing.assert_allclose(got["weighted_ndcg@1"], [0, 0, np.nan, np.nan])  # user 2 has watched for no time
    with pytest.raises(ShortlistError, match=r"`gain` must be at least 0\. Received: -1\.0\."):
        metrics.find_targets(RANKED, OFFSETS, TARGETS).gain_ndcg(weights - 1, [1])


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 2**31))
def test_weighted_ndcg_equals_the_loop_and_with_equal_weights_ndcg(case, seed):
    ranked, targets, cutoffs = case
    offsets, items = ragged(targets)
    found = metrics.find_targets(ranked, offsets, items)
    weights = np.random.default_rng(seed).integers(0, 4, len(items)).astype(float)
    got = found.gain_ndcg(weights, cutoffs)
    for k in cutoffs:
        twins = [
            oracles.weighted_ndcg(row.tolist(), own, weights[start : start + len(own)], k)
            for row, own, start in zip(ranked, targets, offsets[:-1], strict=True)
        ]
        np.testing.assert_allclose(got[f"weighted_ndcg@{k}"], twins, atol=1e-12)
    once = [list(dict.fromkeys(own)) for own in targets]
    offsets, items = ragged(once)
    found = metrics.find_targets(ranked, offsets, items)
    for k in cutoffs:
        equal = found.gain_ndcg(np.full(len(items), 2.5), [k])[f"weighted_ndcg@{k}"]
        np.testing.assert_allclose(equal, found.metrics([k])[f"ndcg@{k}"], atol=1e-12)


GENRES = np.array([[0, 0], [0, 0], [1, 0], [1, 1], [0, 1], [0, 0], [2, 0]], np.float32)  # 5 has none
COUNTS = np.array([0, 0, 8, 4, 2, 1, 0])


def test_lists_by_hand():
    ranked = np.array([[2, 3, 4], [6, 5, 0], [0, 0, 0], [2, 6, 0]], np.int32)
    got = metrics.novelty(ranked, COUNTS, 8, [1, 3])
    np.testing.assert_allclose(got["novelty@1"], [0, 3, np.nan, 0])  # nobody watched 6: as if one had
    np.testing.assert_allclose(got["novelty@3"], [(0 + 1 + 2) / 3, 3, np.nan, 1.5])
    got = metrics.diversity(ranked, GENRES, [1, 3])
    assert np.isnan(got["diversity@1"]).all()
    half = np.sqrt(0.5)
    np.testing.assert_allclose(got["diversity@3"], [1 - (half + half + 0) / 3, np.nan, np.nan, 0], atol=1e-12)
    np.testing.assert_allclose(metrics.popularity_percentile(COUNTS)[2:], [0.9, 0.7, 0.5, 0.3, 0.1])
    tied = metrics.popularity_percentile(np.array([9, 9, 1, 3, 3, 0]))
    np.testing.assert_allclose(tied, [np.nan, np.nan, 3 / 8, 3 / 4, 3 / 4, 1 / 8])
    offsets, history = ragged([[4, 2], [2], [3], []])
    got = metrics.popularity_bias(ranked, COUNTS, offsets, history, [3])["popularity_bias@3"]
    np.testing.assert_allclose(got, [0.7 - 0.7, 0.2 - 0.9, np.nan, np.nan], atol=1e-12)


def test_gini_by_hand():
    assert metrics.gini(np.array([[2, 3], [4, 5]]), 2, 4) == 0  # each once
    assert metrics.gini(np.array([[2], [2], [2]]), 1, 4) == pytest.approx(3 / 4)  # one has all: 1 − 1 / I
    assert metrics.gini(np.array([[2, 3], [2, 0]]), 2, 2) == pytest.approx(1 / 6)  # 2 and 1
    assert np.isnan(metrics.gini(np.zeros((2, 2), np.int32), 2, 4))


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 2**31), st.integers(1, 40))
def test_lists_equal_the_loop(case, seed, block):
    ranked, targets, cutoffs = case
    rng = np.random.default_rng(seed)
    genres = rng.integers(0, 2, (10, 3)).astype(np.float32)
    counts, watchers = rng.integers(0, 5, 10), rng.integers(0, 5, 10)
    history = [[item for item in own if item >= 2] for own in targets]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK", block)
        got = {
            **metrics.novelty(ranked, watchers, 7, cutoffs),
            **metrics.diversity(ranked, genres, cutoffs),
            **metrics.popularity_bias(ranked, counts, *ragged(history), cutoffs),
        }
        hit = metrics.hits(ranked, *ragged(targets))
    np.testing.assert_array_equal(hit, metrics.hits(ranked, *ragged(targets)))
    for k in cutoffs:
        twins = [
            oracles.list_metrics(row.tolist(), k, watchers, 7, genres.astype(float), counts, own)
            for row, own in zip(ranked, history, strict=True)
        ]
        for name in twins[0]:
            values = got[f"{name}@{k}"]
            np.testing.assert_allclose(values, [twin[name] for twin in twins], atol=1e-9, err_msg=name)
        if (ranked[:, :k] >= 2).any():
            assert metrics.gini(ranked, k, 8) == pytest.approx(oracles.gini(ranked.tolist(), k, 8), abs=1e-12)


def test_equal_to_ir_measures_on_runs_without_ties():
    """Theirs divides Recall and AP by all relevant items, ours by those that can be reached: at most k here."""
    ir_measures = pytest.importorskip("ir_measures", reason="needs ir-measures, see the extra dev")
    rng = np.random.default_rng(0)
    queries, items = 60, 80
    ranked = np.argsort(rng.random((queries, items)), axis=1).astype(np.int32) + 2
    targets = [rng.choice(np.arange(2, items + 2), n, replace=False).tolist() for n in rng.integers(1, 31, queries)]
    for k in (1, 5, 10, 30):
        names = {"ndcg": "nDCG", "hr": "Success", "recall": "R", "precision": "P", "mrr": "RR", "map": "AP"}
        measures = {name: ir_measures.parse_measure(f"{theirs}@{k}") for name, theirs in names.items()}
        run = {str(q): {str(i): float(-place) for place, i in enumerate(row)} for q, row in enumerate(ranked)}
        judged = {str(q): dict.fromkeys(map(str, own), 1) for q, own in enumerate(targets)}
        theirs = {name: np.full(queries, np.nan) for name in names}
        by_measure = {measure: name for name, measure in measures.items()}
        for found in ir_measures.iter_calc(list(by_measure), judged, run):
            theirs[by_measure[found.measure]][int(found.query_id)] = found.value
        ours = metrics.ranking_metrics(ranked, *ragged(targets), [k])
        few = np.array([len(own) <= k for own in targets])
        assert few.any()
        for name, values in theirs.items():
            kept = few if name in ("recall", "map") else np.ones(queries, bool)
            np.testing.assert_allclose(ours[f"{name}@{k}"][kept], values[kept], atol=1e-9, err_msg=f"{name}@{k}")
