"""Splits against a loop over SciPy's tests; how often there is one by chance; ids that come back."""

import time
import warnings

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components.context import (
    SplitByContextConfig,
    apply_splits,
    best_splits,
    find_splits,
    split_catalogue,
    undo_splits,
)

Candidate = tuple[float, float, tuple[int, ...], int, int]


def by_loop(
    owner: np.ndarray, rating: np.ndarray, conditions: np.ndarray, config: SplitByContextConfig
) -> dict[int, Candidate]:
    """The best candidate of each owner (p, statistic, required, n_in, n_out), without correction."""
    best: dict[int, Candidate] = {}
    for one in np.unique(owner):
        own, context = rating[owner == one], conditions[owner == one]
        required = set()
        for row in context:
            for mask in np.ndindex(*[2] * len(row)):
                part = tuple(int(c * m) for c, m in zip(row, mask, strict=True))
                whole = all(c > 0 for c, m in zip(row, mask, strict=True) if m)
                if whole and 1 <= sum(mask) <= (config.max_dimensions if config.mode == "complex" else 1):
                    required.add(part)
        found = []
        for part in required:
            inside = np.array([all(p in (0, c) for p, c in zip(part, row, strict=True)) for row in context])
            a, b = own[inside], own[~inside]
            if min(len(a), len(b)) < config.min_ratings:
                continue
            statistic, p = by_scipy(a, b, config)
            if p < config.alpha:  # false for nan
                found.append((p, -abs(statistic), sum(c > 0 for c in part), statistic, part, len(a), len(b)))
        if found:
            p, _, _, statistic, part, n_in, n_out = min(found)
            best[int(one)] = (p, statistic, part, n_in, n_out)
    return best


def by_scipy(a: np.ndarray, b: np.ndarray, config: SplitByContextConfig) -> tuple[float, float]:
    if config.criterion == "t":
        if np.ptp(np.concatenate([a, b])) == 0:
            return np.nan, np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return scipy.stats.ttest_ind(a, b, equal_var=False)
    if config.criterion == "z":
        high = np.concatenate([a, b]) >= config.high_rating
        if high.all() or not high.any():
            return np.nan, np.nan
        pooled = high.mean()
        difference = (a >= config.high_rating).mean() - (b >= config.high_rating).mean()
        z = difference / np.sqrt(pooled * (1 - pooled) * (1 / len(a) + 1 / len(b)))
        return z, 2 * scipy.stats.norm.sf(abs(z))
    classes = np.unique(np.concatenate([a, b]))
    if len(classes) == 1:
        return np.nan, np.nan
    table = np.array([[(part == c).sum() for c in classes] for part in (a, b)])
    g, p, _, _ = scipy.stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
    return g / (2 * table.sum() * np.log(2)), p


def random_ratings(seed: int, rows: int = 400, owners: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratings of which some owners' depend on the first or second dimension, and a fifth of the context is unknown."""
    rng = np.random.default_rng(seed)
    owner = np.minimum(rng.geometric(0.15, rows), owners) - 1
    conditions = rng.integers(0, [3, 4, 2], (rows, 3))
    effect = (owner % 3 == 0) * (conditions[:, 0] == 1) * 1.5 - (owner % 4 == 1) * (conditions[:, 1] == 2) * 1.5
    return owner, np.clip(np.round(3 + effect + rng.normal(0, 1, rows)), 1, 5), conditions


@pytest.mark.parametrize("mode", ["simple", "complex"])
@pytest.mark.parametrize("criterion", ["t", "z", "information_gain"])
@pytest.mark.parametrize("seed", range(3))
def test_splits_are_those_of_a_loop(criterion: str, mode: str, seed: int) -> None:
    owner, rating, conditions = random_ratings(seed)
    config = SplitByContextConfig(criterion=criterion, mode=mode, min_ratings=4, alpha=0.2, max_dimensions=3)
    found = best_splits(owner, rating, conditions, config)
    expected = by_loop(owner, rating, conditions, config)
    assert found.owner.tolist() == sorted(expected)
    assert len(expected) >= 4
    for s, one in enumerate(found.owner.tolist()):
        p, statistic, required, n_in, n_out = expected[one]
        np.testing.assert_allclose([found.p[s], found.statistic[s]], [p, statistic], rtol=1e-6, atol=1e-12)
        assert (tuple(found.required[s]), found.n_in[s], found.n_out[s]) == (required, n_in, n_out)


def test_information_gain_by_hand() -> None:
    owner, rating = np.zeros(8, int), np.array([5, 5, 5, 5, 1, 1, 1, 1])
    conditions = np.array([[1]] * 4 + [[2]] * 4)
    config = SplitByContextConfig(criterion="information_gain", min_ratings=4)
    found = best_splits(owner, rating, conditions, config)
    assert found.statistic == pytest.approx(1)  # knowing the half, nothing is left of one bit
    assert found.required.tolist() == [[1]]


def test_two_halves_that_differ_and_vary_not_at_all_are_split() -> None:
    owner, rating = np.zeros(6, int), np.array([5, 5, 5, 2, 2, 2])
    found = best_splits(owner, rating, np.array([[1]] * 3 + [[0]] * 3), SplitByContextConfig(min_ratings=3))
    assert (found.statistic.tolist(), found.p.tolist(), found.required.tolist()) == ([np.inf], [0], [[1]])


@pytest.mark.parametrize("criterion", ["t", "z", "information_gain"])
@pytest.mark.parametrize(
    ("rating", "conditions"),
    [
        (np.full(60, 0.1), np.tile([[1], [2]], (30, 1))),  # all ratings equal
        (np.arange(60) % 5, np.ones((60, 1), int)),  # one condition only: the other half is empty
        (np.arange(60) % 5, np.zeros((60, 1), int)),  # nothing known
    ],
)
def test_no_split_and_no_warning_where_the_test_is_undefined(
    rating: np.ndarray, conditions: np.ndarray, criterion: str
) -> None:
    config = SplitByContextConfig(criterion=criterion, alpha=0.999)
    for owner in (np.zeros(60, int), np.arange(60)):  # one owner of all, and one rating each
        assert len(best_splits(owner, rating, conditions, config).owner) == 0


def test_no_ratings_no_splits() -> None:
    nothing = best_splits(np.zeros(0, int), np.zeros(0), np.zeros((0, 2), int), SplitByContextConfig())
    assert (len(nothing.owner), nothing.required.shape) == (0, (0, 2))


@pytest.mark.parametrize("criterion", ["t", "z"])
def test_without_an_effect_splits_are_as_rare_as_promised(criterion: str) -> None:
    """Of 400 sets without any effect, with correction, at most alpha and three standard errors have any split."""
    config = SplitByContextConfig(criterion=criterion, correction=True)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        owner, conditions = rng.integers(0, 20, 1500), rng.integers(0, [4, 3], (1500, 2))
        rating = np.clip(np.round(rng.normal(3.5, 1.1, 1500) + rng.normal(0, 0.5, 20)[owner]), 1, 5)
        found += len(best_splits(owner, rating, conditions, config).owner) > 0
    assert found / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert found > 0


def test_a_planted_split_is_found_with_correction() -> None:
    rng = np.random.default_rng(0)
    owner, conditions = rng.integers(0, 20, 3000), rng.integers(0, [4, 3], (3000, 2))
    rating = rng.normal(3.5, 1, 3000) + 1.5 * ((owner == 7) & (conditions[:, 1] == 2))
    found = best_splits(owner, rating, conditions, SplitByContextConfig(correction=True))
    best = found.p.argmin()
    assert (found.owner[best], found.required[best].tolist()) == (7, [0, 2])
    assert len(found.owner) <= 2  # of those found, one in twenty may be chance


def test_correction_drops_what_many_tests_find_by_chance() -> None:
    owner, rating, conditions = random_ratings(0, rows=4000, owners=100)
    plain, corrected = (
        best_splits(owner, rating, conditions, SplitByContextConfig(correction=on)) for on in (False, True)
    )
    assert set(corrected.owner) < set(plain.owner)
    assert corrected.p.max() < plain.p.max()


def test_a_million_ratings_and_ten_conditions_within_five_seconds() -> None:
    rng = np.random.default_rng(0)
    owner, rating = rng.zipf(1.2, 1_000_000) % 50_000, rng.integers(1, 6, 1_000_000)
    conditions = rng.integers(0, 6, (1_000_000, 2))
    begin = time.process_time()
    found = best_splits(owner, rating, conditions, SplitByContextConfig(correction=True))
    assert time.process_time() - begin < 5
    assert found.required.shape[1] == 2


# --- tables ---------------------------------------------------------------------------------------------------------


def table(rows: list[tuple[str, str, float | None, str | None, str | None]]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    kinds = {"user": pa.string(), "item": pa.string(), "rating": pa.float32()}
    kinds |= {"context_place": pa.string(), "context_company": pa.string()}
    return pa.table({n: pa.array(c, k) for (n, k), c in zip(kinds.items(), columns, strict=True)})


AT_HOME = [("u1", "film", 1.0, "home", None), ("u2", "film", 2.0, "home", "friends"), ("u3", "film", 1.0, "home", None)]
OUT = [("u1", "film", 5.0, "cinema", None), ("u2", "film", 4.0, None, "alone"), ("u3", "film", 5.0, "cinema", None)]
OTHER = [("u1", "other", 3.0, "home", None), ("u2", "other", None, "home", "alone")]


def test_the_film_that_is_liked_in_the_cinema_becomes_two() -> None:
    rows = table(AT_HOME + OUT + OTHER)
    splits = find_splits(rows, SplitByContextConfig(min_ratings=3))
    (one,) = splits.to_pylist()
    t, p = scipy.stats.ttest_ind([1, 2, 1], [5, 4, 5], equal_var=False)
    assert one["statistic"] == pytest.approx(t)
    assert one["p"] == pytest.approx(p)
    del one["statistic"], one["p"]
    assert one == {
        "side": "item",
        "id": "film",
        "condition": [{"dimension": "place", "condition": "home"}],
        "n_in": 3,
        "n_out": 3,
        "id_in": "film [place=home]",
        "id_out": "film [not place=home]",
    }
    after = apply_splits(rows, splits)
    halves = ["film [place=home]"] * 3 + ["film [not place=home]"] * 3 + ["other"] * 2
    assert after["item"].to_pylist() == halves
    assert after.drop_columns("item").equals(rows.drop_columns("item"))
    assert undo_splits(after, splits).equals(rows)
    without = apply_splits(rows.drop_columns("context_place"), splits)
    assert without["item"].to_pylist() == ["film [not place=home]"] * 6 + ["other"] * 2
    items = pa.table({"item": ["x", "film"], "year": [1, 2]})
    expected = pa.table({"item": ["x", "film [place=home]", "film [not place=home]"], "year": [1, 2, 2]})
    assert split_catalogue(items, "item", splits).equals(expected)
    assert split_catalogue(items.rename_columns(["user", "year"]), "user", splits)["user"].to_pylist() == ["x", "film"]


def test_an_id_that_is_taken_is_not_given_again() -> None:
    rows = table([*AT_HOME, *OUT, ("u1", "film [place=home]", 3.0, "home", None)])
    splits = find_splits(rows, SplitByContextConfig(min_ratings=3))
    assert splits["id_in"].to_pylist() == ["film [place=home]'"]
    assert undo_splits(apply_splits(rows, splits), splits).equals(rows)


def test_refuses_what_has_no_context_or_no_rating() -> None:
    for rows in (table(OTHER[1:]), table(AT_HOME).select(["user", "item", "rating"])):
        with pytest.raises(
            ShortlistError, match=r"^Splitting by context needs ratings and at least one column `context_"
        ):
            find_splits(rows, SplitByContextConfig())


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(["item", "user", "both"]), st.sampled_from(["simple", "complex"]))
def test_ids_come_back_and_every_row_is_in_the_half_of_its_context(seed: int, side: str, mode: str) -> None:
    rng = np.random.default_rng(seed)
    places, company = np.array(["a", "b", "a&b", None], object), np.array(["x=1", "é", None], object)
    rows = table(
        [
            (f"u{rng.integers(5)}", f"i{rng.integers(5)}", float(rng.integers(1, 6)), p, c)
            for p, c in zip(rng.choice(places, 200), rng.choice(company, 200), strict=True)
        ]
    )
    splits = find_splits(rows, SplitByContextConfig(side=side, mode=mode, alpha=0.9, min_ratings=2))
    assert len(splits) >= 4
    after = apply_splits(rows, splits)
    assert undo_splits(after, splits).equals(rows)
    by_id = {(s["side"], s["id"]): s for s in splits.to_pylist()}
    for before, row in zip(rows.to_pylist(), after.to_pylist(), strict=True):
        for name in ("item", "user"):
            split = by_id.get((name, before[name]))
            if split is None:
                assert row[name] == before[name]
                continue
            holds = all(before[f"context_{c['dimension']}"] == c["condition"] for c in split["condition"])
            assert row[name] == split["id_in" if holds else "id_out"]
    for split in splits.to_pylist():
        counts = [(np.array(after[split["side"]].to_pylist()) == split[half]).sum() for half in ("id_in", "id_out")]
        assert counts == [split["n_in"], split["n_out"]]
