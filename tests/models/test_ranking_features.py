"""Every feature of the ranker against a loop in NumPy, and what must not change any of them."""

from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf

from shortlist.models._base import QUERY_SPEC, ranking_spec
from shortlist.models._ranking_features import GROUPS, Catalogue, RankingFeatures, group_of

ITEMS, B, K, L = 14, 4, 6, 14
DAY = 86_400
NOW = 1_000_000_000
SOURCES = ("knn", "tower")
QUOTA = (9, 20)
PLAIN = ("genres", "year", "count", "recent_count", "first_time", "last_time")  # what every catalogue has
Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]


def random_case(seed: int) -> Case:
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


def full_case(seed: int, weight_from: str = "none", impressions: bool = True, length: bool = True) -> Case:
    """The same, and all that only some logs have; some of the parts are unknown."""
    catalogue, vectors, query, candidates = random_case(seed)
    rng = np.random.default_rng(seed + 1000)
    if seed % 2:  # the data end long before the request
        catalogue["last_time"] = np.minimum(catalogue["last_time"], NOW - 100 * DAY)
    minutes = np.where(rng.random(ITEMS) < 0.3, np.nan, rng.integers(0, 40, ITEMS) / 2.0)
    numbers = {"tempo": np.where(rng.random(ITEMS) < 0.3, np.nan, rng.normal(0, 30, ITEMS))}
    numbers |= {"nothing": np.full(ITEMS, np.nan)} | ({"length": minutes} if length else {})
    categories = {"channel": rng.integers(0, 6, ITEMS), "language": rng.integers(0, 4, ITEMS)}
    categories["empty"] = np.zeros(ITEMS, int)
    catalogue |= {"weight_from": weight_from, "highest": 12.0, "shared": ("language", "empty")}
    catalogue |= {"numbers": numbers, "categories": categories}
    counts = rng.integers(0, 9, (ITEMS, 6))
    counts[:, 5] = 0  # a condition that nobody had
    catalogue["contexts"] = {"context_mood": counts, "context_place": np.zeros((ITEMS, 3), int)}
    query |= {"context_mood": np.array([5, 3, 0, 2], np.int32), "context_place": np.full(B, 2, np.int32)}
    catalogue["weight"] = catalogue["count"] * rng.random(ITEMS) * 5
    ignored = np.where(rng.random((B, 9)) < 0.3, 0, rng.integers(1, ITEMS, (B, 9))).astype(np.int32)  # with gaps
    ignored[:, :3] = candidates["items"][:, :1]
    ignored[3] = 0
    query["history_weight"] = np.where(query["history"] > 0, rng.integers(-1, 16, (B, L)), 0).astype(np.float32)
    query["example_age"] = np.array([0, -5, 3.5 * DAY, 900 * DAY], np.float32)
    query |= {f"user_{name}": rng.integers(0, 4, B).astype(np.int32) for name in catalogue["shared"]}
    if impressions:
        catalogue["shown"] = catalogue["count"] + rng.integers(1, 200, ITEMS)
        query |= {"impressions": ignored, "impressions_time": NOW - rng.integers(-2, 90, (B, 9)) * DAY // 3}
    return catalogue, vectors, query, candidates


def with_outsiders(candidates: dict[str, Any], seed: int) -> dict[str, Any]:
    """Other items than the shortlist's: some of it in another order, some not in it, one far off; and `best`."""
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(np.arange(ITEMS)) for _ in range(B)]).astype(np.int32)
    scores = rng.normal(size=(B, len(SOURCES), ITEMS)).astype(np.float32)
    for b, line in enumerate(candidates["items"]):
        for k, i in enumerate(line):
            if i >= 2:
                scores[b, :, list(items[b]).index(i)] = candidates["scores"][b, :, k]
    far = next(c for c, i in enumerate(items[1]) if i >= 2 and i not in candidates["items"][1])
    scores[1, 0, far] = -1e4
    ranks = rng.integers(1, 30, scores.shape).astype(np.float32)
    return {"items": items, "scores": scores, "ranks": ranks, "best": (candidates["items"], candidates["scores"])}


def builder(catalogue: dict[str, Any], vectors: dict[str, Any], length: int, quota: tuple[int, ...]) -> RankingFeatures:
    return RankingFeatures(Catalogue(**catalogue), vectors, SOURCES, length, quota)


def compute(
    catalogue: dict[str, Any],
    vectors: dict[str, Any],
    query: dict[str, Any],
    candidates: dict[str, Any],
    length: int = 5,
    quota: tuple[int, ...] = (),
) -> dict[str, np.ndarray]:
    """The features by name, `[B, K]` each."""
    build = builder(catalogue, vectors, length, quota)
    given = {name: tf.constant(value) for name, value in query.items()}
    columns = [tf.constant(candidates[name]) for name in ("items", "scores", "ranks")]
    best = tuple(tf.constant(part) for part in candidates["best"]) if "best" in candidates else None
    features = build(given, *columns, best).numpy()
    assert features.dtype == np.float32
    assert features.shape[-1] == len(build.names) == len(set(build.names))
    return dict(zip(build.names, np.moveaxis(features, -1, 0), strict=True))


def equal_to_loops(case: Case, length: int, quota: tuple[int, ...] = ()) -> set[str]:
    catalogue, vectors, query, candidates = case
    got = compute(catalogue, vectors, query, candidates, length, quota)
    for b in range(B):
        one = {name: value[b] for name, value in query.items()}
        columns = [candidates[name][b] for name in ("items", "scores", "ranks")]
        best = tuple(part[b] for part in candidates["best"]) if "best" in candidates else None
        expected = oracles.ranking_features(catalogue, vectors, SOURCES, length, one, *columns, quota, best)
        assert got.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(got[name][b], values, rtol=1e-4, atol=1e-4, err_msg=f"{name}, request {b}")
    return set(got)


def assert_same(after: dict[str, np.ndarray], before: dict[str, np.ndarray], tolerance: float = 1e-6) -> None:
    assert after.keys() == before.keys()
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("length", [1, 5, 12, 20])  # one of the requests has 12 in its history
def test_every_feature_equals_its_loop(length: int) -> None:
    names = equal_to_loops(random_case(length), length)
    assert not any(name.startswith(("proposed", "finished", "rated", "click_rate", "match")) for name in names)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("weight_from", "impressions", "length", "own"),
    [
        ("watch_time", True, True, {"finished:channel", "mean_finished", "click_rate:genres", "click_rate"}),
        ("watch_time", True, False, {"mean_weight", "ignored", "since_ignored", "user_click_rate"}),
        ("rating", False, True, {"rated:genres", "mean_rated", "number:length", "match:language"}),
        ("rating", True, False, {"rated:language", "mean_rated", "number:tempo", "click_rate:empty"}),
        ("none", True, True, {"watched:genres", "since:channel", "match:empty"}),
    ],
)
def test_what_only_some_logs_have_equals_its_loop(
    seed: int, weight_from: str, impressions: bool, length: bool, own: set[str]
) -> None:
    case = full_case(seed, weight_from, impressions, length)
    names = equal_to_loops(case, (1, 5, 12, 20)[seed], QUOTA)
    assert own <= names
    assert {f"proposed:{source}" for source in SOURCES} <= names
    assert ("mean_finished" in names) == (weight_from == "watch_time" and length)
    assert ("click_rate" in names) == ("ignored" in names) == impressions


def test_items_without_any_genre() -> None:
    case = random_case(0)
    case[0]["genres"] = np.zeros((ITEMS, 0), np.float32)
    equal_to_loops(case, 5)


@pytest.mark.parametrize("seed", range(4))
def test_any_item_is_described_beside_the_shortlist(seed: int) -> None:
    catalogue, vectors, query, candidates = full_case(seed, "watch_time")
    more = with_outsiders(candidates, seed)
    equal_to_loops((catalogue, vectors, query, more), 5, QUOTA)
    got = compute(catalogue, vectors, query, more, 5, QUOTA)
    outside = (more["items"] >= 2) & ~(more["items"][:, :, np.newaxis] == candidates["items"][:, np.newaxis]).any(-1)
    assert outside.sum(axis=1).min() > 5
    np.testing.assert_allclose(got["log_fused_rank"][outside], np.log1p(K), rtol=1e-6)
    assert got["score_z:knn"].min() == -100  # a score of -10,000 is cut


def test_the_features_of_an_item_do_not_depend_on_what_else_is_asked_for() -> None:
    catalogue, vectors, query, candidates = full_case(0, "watch_time")
    more = with_outsiders(candidates, 1)
    before = compute(catalogue, vectors, query, more, 5, QUOTA)
    for places in ([3], [7, 2, 2, 11], list(range(ITEMS))[::-1]):
        some = {name: more[name][..., places] for name in ("items", "scores", "ranks")}
        after = compute(catalogue, vectors, query, {**some, "best": more["best"]}, 5, QUOTA)
        assert_same(after, {name: values[:, places] for name, values in before.items()})


def test_the_shortlist_is_described_beside_itself() -> None:
    catalogue, vectors, query, candidates = full_case(2, "rating")
    beside = {**candidates, "best": (candidates["items"], candidates["scores"])}
    assert_same(compute(catalogue, vectors, query, beside), compute(catalogue, vectors, query, candidates), 0)


def test_what_a_query_does_not_say_is_as_documented() -> None:
    """Weights of -1, no impressions, age 0, unknown categories: each part absent, and all of them."""
    catalogue, vectors, query, candidates = full_case(1, "watch_time")
    absent = {
        ("history_weight",): {"history_weight": np.full((B, L), -1, np.float32)},
        ("impressions", "impressions_time"): {
            "impressions": np.zeros((B, 2), np.int32),
            "impressions_time": np.full((B, 2), NOW),
        },
        ("example_age",): {"example_age": np.zeros(B, np.float32)},
        ("user_language",): {"user_language": np.zeros(B, np.int32)},
        ("user_empty",): {"user_empty": np.zeros(B, np.int32)},
        ("context_mood",): {"context_mood": np.zeros(B, np.int32)},
    }
    absent[tuple(name for names in absent for name in names)] = {
        k: v for part in absent.values() for k, v in part.items()
    }
    whole = compute(catalogue, vectors, query, candidates)
    for names, default in absent.items():
        without = compute(catalogue, vectors, {k: v for k, v in query.items() if k not in names}, candidates)
        assert_same(without, compute(catalogue, vectors, {**query, **default}, candidates), 0)
        if names != ("user_empty",):  # no item has a value of this column
            assert any((without[name] != values).any() for name, values in whole.items()), names


def test_the_spec_names_what_a_query_has() -> None:
    _, _, query, _ = full_case(0)
    names = ("user_language", "user_empty", "context_mood", "context_place")
    spec = ranking_spec(dict.fromkeys(names, "category"))
    assert spec.keys() == query.keys() > QUERY_SPEC.keys()
    for name, value in query.items():
        assert spec[name].is_compatible_with(tf.constant(value, spec[name].dtype)), name
        assert spec[name].name == name


def test_graph_of_the_spec_gives_the_same() -> None:
    catalogue, vectors, query, candidates = full_case(3, "watch_time")
    build = builder(catalogue, vectors, 5, QUOTA)
    shape = [None, len(SOURCES), None]
    kinds = dict.fromkeys([*(f"user_{n}" for n in catalogue["shared"]), *catalogue["contexts"]], "category")
    specs = [ranking_spec(kinds), tf.TensorSpec([None, None], tf.int32)]
    graph = tf.function(build, input_signature=[*specs, tf.TensorSpec(shape), tf.TensorSpec(shape)])
    given = {name: tf.constant(value, specs[0][name].dtype) for name, value in query.items()}
    got = graph(given, *(tf.constant(candidates[name]) for name in ("items", "scores", "ranks"))).numpy()
    expected = compute(catalogue, vectors, query, candidates, 5, QUOTA)
    assert_same(dict(zip(build.names, np.moveaxis(got, -1, 0), strict=True)), expected)


def test_every_feature_has_exactly_one_group() -> None:
    for weight_from in ("watch_time", "rating"):
        catalogue, vectors, _, _ = full_case(0, weight_from)
        for name in builder(catalogue, vectors, 5, QUOTA).names:
            of = [g for g, own in GROUPS.items() for n in own if name == n or (n[-1] in ":_" and name.startswith(n))]
            assert of == [group_of(name)], name
    expected = {
        "retriever": ("score_z:knn", "log_rank:tower", "proposed:knn", "log_fused_rank"),
        "history": ("cosine_max:wals", "click_rate:genres", "finished:channel", "user_click_rate", "log_history"),
        "impressions": ("ignored", "since_ignored"),
        "content": ("click_rate", "number:length", "match:language", "log_count", "mean_weight"),
        "example_age": ("example_age",),
    }
    for group, names in expected.items():
        assert [group_of(name) for name in names] == [group] * len(names)


def test_click_rates_by_hand() -> None:
    """Two watches among eight impressions, of which the channel of item 2 has one among two."""
    catalogue = {name: np.zeros(5) for name in PLAIN} | {"genres": np.zeros((5, 1)), "year": np.zeros(5, int)}
    catalogue |= {"count": np.array([0, 0, 3, 1, 0]), "shown": np.array([0, 0, 4, 4, 8])}  # ¼ of the log
    catalogue["categories"] = {"channel": np.array([0, 0, 2, 3, 3])}
    query = {"user": [2], "history": [[2, 3]], "history_time": np.zeros((1, 2), int), "time": np.array([10 * DAY])}
    query |= {"impressions": [[2, 3, 3, 4, 1, 4, 3, 0]], "impressions_time": np.array([[9, 1, 7, 8, 9, 9, 5, 9]]) * DAY}
    ones = np.ones((1, 2, 3), np.float32)
    got = compute(catalogue, {}, query, {"items": np.array([[2, 3, 4]], np.int32), "scores": ones, "ranks": ones})
    user = (2 + 10 / 4) / (8 + 10)
    np.testing.assert_allclose(got["user_click_rate"], [[np.log(user / (1 - user))] * 3], rtol=1e-5)
    rates = np.array([(1 + 10 * user) / (2 + 10), (1 + 10 * user) / (6 + 10), (1 + 10 * user) / (6 + 10)])
    np.testing.assert_allclose(got["click_rate:channel"], [np.log(rates / (1 - rates))], rtol=1e-5)
    rates = np.array([(3 + 2.5) / 14, (1 + 2.5) / 14, 2.5 / 18])
    np.testing.assert_allclose(got["click_rate"], [np.log(rates / (1 - rates))], rtol=1e-5)
    np.testing.assert_allclose(got["ignored"], [np.log1p([1, 3, 2])], rtol=1e-6)
    np.testing.assert_allclose(got["since_ignored"], [np.log1p([1, 3, 1])], rtol=1e-6)
    np.testing.assert_allclose(got["watched:channel"], [np.log([2, 2, 2])], rtol=1e-6)


@pytest.mark.parametrize(("weight_from", "kind", "full"), [("watch_time", "finished", 40), ("rating", "rated", 5)])
def test_finished_and_rated_by_hand(weight_from: str, kind: str, full: float) -> None:
    """Shares 1 (more than the whole), ½ and one unknown: the user's mean, and item 3's channel against it."""
    catalogue = {name: np.zeros(5) for name in PLAIN} | {"genres": np.zeros((5, 1)), "year": np.zeros(5, int)}
    catalogue |= {"categories": {"channel": np.array([0, 0, 2, 3, 3])}, "weight_from": weight_from, "highest": 5.0}
    catalogue |= {"numbers": {"length": np.full(5, 40.0)}, "weight": np.array([0, 0, 8.0, 1, 0])}
    catalogue["count"] = np.array([0, 0, 2, 1, 0])  # 3 a positive
    query = {"user": [2], "history": [[2, 3, 4]], "history_time": np.zeros((1, 3), int), "time": np.array([DAY])}
    query["history_weight"] = np.array([[2 * full, full / 2, -1]], np.float32)
    ones = np.ones((1, 2, 2), np.float32)
    got = compute(catalogue, {}, query, {"items": np.array([[2, 3]], np.int32), "scores": ones, "ranks": ones})
    mean = (0.5 + 1 + 0.5) / 3
    np.testing.assert_allclose(got[f"mean_{kind}"], [[mean] * 2], rtol=1e-6)
    np.testing.assert_allclose(got[f"{kind}:channel"], [[(mean + 1) / 2 - mean, (mean + 0.5) / 2 - mean]], atol=1e-6)
    np.testing.assert_allclose(got["mean_weight"], [np.log([(8 + 15) / 7, (1 + 15) / 6])], rtol=1e-6)


def test_scores_that_are_all_alike_say_nothing() -> None:
    """Seven times 0.1 has a mean that is not 0.1 in float32: the rounding must not become a feature."""
    catalogue, vectors, query, _ = random_case(0)
    items = np.tile(np.arange(2, 9, dtype=np.int32), (B, 1))
    for value in (0.1, -1234.567, 0.0):
        alike = {"items": items, "scores": np.full((B, 2, 7), value, np.float32), "ranks": np.ones((B, 2, 7), "f4")}
        np.testing.assert_array_equal(compute(catalogue, vectors, query, alike)["score_z:knn"], np.zeros((B, 7)))


def test_a_score_means_the_same_after_a_refit_that_scales_and_shifts_it() -> None:
    catalogue, vectors, query, candidates = random_case(1)
    for of in (candidates, with_outsiders(candidates, 1)):
        refit = {**of, "scores": 7 * of["scores"] + 3}
        if "best" in of:
            refit["best"] = (of["best"][0], 7 * of["best"][1] + 3)
        assert_same(compute(catalogue, vectors, query, refit), compute(catalogue, vectors, query, of), 1e-4)


def test_the_numbers_of_the_item_rows_and_of_the_categories_mean_nothing() -> None:
    catalogue, vectors, query, candidates = full_case(2, "watch_time")
    before = compute(catalogue, vectors, query, candidates)
    rng = np.random.default_rng(0)
    new = np.concatenate([[0, 1], 2 + rng.permutation(ITEMS - 2)])  # the new row of each old one
    value = np.concatenate([[0, 1], 2 + rng.permutation(4)])
    assert (new != np.arange(ITEMS)).sum() > 5

    def moved(values: Any) -> Any:
        if isinstance(values, dict):
            return {name: moved(part) for name, part in values.items()}
        if np.ndim(values) == 0 or isinstance(values, tuple):
            return values
        there = np.empty_like(values)
        there[new] = values
        return there

    changed = moved(catalogue)
    changed["categories"] = {name: value[rows] for name, rows in changed["categories"].items()}
    users = {f"user_{name}": value[query[f"user_{name}"]].astype(np.int32) for name in catalogue["shared"]}
    rows = {name: new[query[name]].astype(np.int32) for name in ("history", "impressions")}
    items = new[candidates["items"]].astype(np.int32)
    after = compute(changed, moved(vectors), {**query, **rows, **users}, {**candidates, "items": items})
    assert_same(after, before, 1e-5)


@pytest.mark.parametrize("width", [0, 3])
def test_padding_changes_nothing(width: int) -> None:
    catalogue, vectors, query, candidates = full_case(3, "watch_time")
    before = compute(catalogue, vectors, query, candidates)
    padded = ("history", "history_time", "history_weight", "impressions", "impressions_time")
    wider = {name: np.pad(query[name], ((0, 0), (0, width))) for name in padded}
    more = {name: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 2)]) for name, x in candidates.items()}
    after = compute(catalogue, vectors, {**query, **wider}, more)
    assert_same({name: values[:, :K] for name, values in after.items()}, before, 1e-5)
    for name, values in after.items():
        np.testing.assert_array_equal(values[:, K:], np.zeros((B, 2)), err_msg=name)


def test_a_history_without_columns_is_an_empty_one() -> None:
    catalogue, vectors, query, candidates = full_case(0, "watch_time")
    lists = ("history", "history_time", "history_weight", "impressions", "impressions_time")
    empty = {name: np.zeros((B, 3), query[name].dtype) for name in lists}
    none = {name: value[:, :0] for name, value in empty.items()}
    expected = compute(catalogue, vectors, {**query, **empty}, candidates)
    assert_same(compute(catalogue, vectors, {**query, **none}, candidates), expected, 0)
