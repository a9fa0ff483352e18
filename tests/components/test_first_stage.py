"""Retrieval over many queries, the quotas, and what is known of the catalogue."""

from pathlib import Path
from typing import Any

import fixed_models
import numpy as np
import oracles
import pyarrow as pa
import pytest
import tables
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.components._first_stage import ShortlistConfig, build_shortlist, describe_catalogue, load_index, retrieve
from shortlist.components._queries import EncodedData, build_queries
from shortlist.components.artifacts import Artifact, Encoded
from shortlist.components.pipeline import Pipeline

YEAR = 31_556_952  # seconds


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    pipeline = Pipeline(tmp_path_factory.mktemp("first_stage"))
    encoded = fixed_models.encoded(pipeline, fixed_models.random_parts(6, users=20))
    for name, seed in (("left", 1), ("right", 2)):
        pipeline.add(fixed_models.FixedIndex(name, seed), encoded)
    return pipeline.run()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.integers(1, 25), st.sampled_from(["rank_train", "validation", "test"]))
def test_retrieve_equals_the_loop_at_any_depth_and_batch(run: Any, k: int, batch_size: int, split: str) -> None:
    data = EncodedData(run["Transform"])
    queries, index = build_queries(data, split), load_index(run["FixedIndex.left"])
    scores = fixed_models.random_scores(1, data.num_users, data.num_items)[queries.user]
    seen = [queries.seen.values[queries.seen.offsets[q] : queries.seen.offsets[q + 1]].tolist() for q in range(20)]
    expected, _ = oracles.top_k(scores, k, seen, first_id=2)
    np.testing.assert_array_equal(retrieve(index.scores, queries, k, "left", batch_size), expected)


def test_no_query_gives_no_list(run: dict[str, Artifact], tmp_path: Path) -> None:
    data = EncodedData(tables.encode(tables.write_splits(tmp_path / "s", {"train": [tables.row("a", "x", 1)]})))
    assert retrieve(load_index(run["FixedIndex.left"]).scores, build_queries(data, "test"), 7, "left").shape == (0, 7)


def test_a_score_that_is_not_a_number_is_refused_with_its_queries(run: dict[str, Artifact]) -> None:
    queries = build_queries(EncodedData(run["Transform"]), "test")

    def score(query: dict[str, tf.Tensor]) -> tf.Tensor:
        found = np.zeros((len(query["user"]), 26), np.float32)
        found[query["user"] == queries.user[13], 4] = np.nan
        return tf.constant(found)

    with pytest.raises(ShortlistError) as error:
        retrieve(score, queries, 5, "mine", batch_size=5)
    assert str(error.value) == (
        "`mine` scores items with NaN, so they have no order. Train it with a smaller learning rate or more "
        "regularization. Received: NaN among test's queries 10 to 14."
    )


@pytest.mark.parametrize(
    ("size", "quota", "kept"),
    [(300, 5, 10), (7, 5, 7), (300, {"left": 2, "right": 9}, 11), (300, {"right": 9, "left": 2}, 11)],
)
def test_the_size_is_bounded_by_the_quotas(run: dict[str, Artifact], size: int, quota: Any, kept: int) -> None:
    sources = {name: run[f"FixedIndex.{name}"] for name in ("left", "right")}
    config = ShortlistConfig(size=size, quota=quota)
    found = build_shortlist(EncodedData(run["Transform"]), sources, config)
    assert found.size == kept
    assert found.quota == config.quotas(sources)
    assert list(found.quota) == ["left", "right"]
    data = EncodedData(run["Transform"])
    _, batch = next(build_queries(data, "test").batches(20))
    exclude = tf.constant(batch.pop("exclude"))
    query = {name: tf.constant(value) for name, value in batch.items()}
    answer = found(query, exclude)
    for q in range(20):
        scores = [fixed_models.random_scores(n, data.num_users, data.num_items)[batch["user"][q]] for n in (1, 2)]
        items, fused, _ = oracles.shortlist(
            scores, found.quota.values(), kept, None, batch["history"][q], set(exclude[q].numpy())
        )
        assert [i for i in answer["items"][q].numpy() if i] == items
        np.testing.assert_allclose(answer["fused"][q][: len(items)], fused, rtol=1e-5)


@pytest.mark.parametrize("quota", [{"left": 5}, {"left": 5, "right": 5, "other": 5}, {"left": 5, "rihgt": 5}])
def test_a_quota_must_name_the_sources(run: dict[str, Artifact], quota: dict[str, int]) -> None:
    sources = {name: run[f"FixedIndex.{name}"] for name in ("left", "right")}
    with pytest.raises(ShortlistError) as error:
        build_shortlist(EncodedData(run["Transform"]), sources, ShortlistConfig(quota=quota))
    assert str(error.value) == (
        f"`shortlist.quota` must name exactly the sources left, right. Received: {', '.join(quota)}."
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quota": 0}, r"`quota` must be at least 1 for every source\. Received: quota=0\."),
        ({"quota": {"a": 3, "b": -1}}, r"`quota` must be at least 1 for every source\. Received: quota={'a': 3, "),
        ({"size": 0}, r"`size` of shortlist: .* greater than or equal to 1"),
        ({"history_length": 0}, "`history_length` of shortlist: "),
        ({"recent_years": 0}, r"`recent_years` of shortlist: .* greater than 0"),
        ({"qouta": 3}, r"`qouta` is not a setting of shortlist\. Did you mean `quota`\?"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ShortlistError, match=message):
        parse(ShortlistConfig, values, "shortlist")


def described(folder: Path, parts: dict[str, list[tables.Row]], years: float, **transform: Any) -> dict[str, Any]:
    """What is known of each item, by its id."""
    items = [{"item": "a", "year": 1999, "genres": ["x", "y"]}, {"item": "b", "genres": ["y"]}]
    encoded: Encoded = tables.encode(tables.write_splits(folder, parts, items, 3.0), **transform)
    found, ids = describe_catalogue(EncodedData(encoded), years), EncodedData(encoded).items["id"]
    names = ("year", "count", "recent_count", "first_time", "last_time")
    return {i: tuple(int(getattr(found, n)[row]) for n in names) for row, i in enumerate(ids) if i}


def test_the_catalogue_by_hand(tmp_path: Path) -> None:
    start = 1_000_000_000
    times = {"p": start, "q": start + YEAR, "r": start + 2 * YEAR, "s": start + 3 * YEAR}
    parts = {
        "train": [
            tables.row("u", "a", times["p"], rating=5.0),
            tables.row("u", "a", times["q"], rating=3.0),
            tables.row("u", "a", times["s"], rating=1.0),  # no positive
            tables.row("u", "b", times["r"], rating=4.0),
            tables.row("u", "c", times["q"], rating=2.0),
        ],
        "rank_train": [tables.row("u", "c", times["r"], rating=5.0)],
        "test": [tables.row("u", "b", times["s"], rating=5.0), tables.row("u", "d", times["s"], rating=5.0)],
    }
    # An item without a positive is as new as can be, and as long unwatched.
    assert described(tmp_path / "a", parts, 0.9) == {
        "a": (1999, 2, 0, times["p"], times["q"]),
        "b": (0, 1, 1, times["r"], times["r"]),
        "c": (0, 0, 0, times["r"], times["p"]),
    }
    assert described(tmp_path / "b", parts, 1.5)["a"][2] == 1
    everything = described(tmp_path / "c", parts, 1.5, fit_on="all")
    assert everything["b"] == (0, 2, 2, times["r"], times["s"])
    assert everything["d"][:3] == (0, 1, 1)


def test_what_a_log_of_impressions_says_of_the_items(tmp_path: Path) -> None:
    kinds = {"language": pa.string(), "mood": pa.string(), "length": pa.float32()}
    items = [
        {"item": "a", "language": "de", "length": 90.0, "mood": "glad"},
        {"item": "b", "language": "en", "mood": "glad"},
        {"item": "c", "length": 30.0},
    ]
    parts = {
        "train": [
            tables.row("u", "a", 1, watch_time=10.0),
            tables.row("u", "a", 2),  # a positive without a time weighs the mean, 25
            tables.row("u", "b", 3, watch_time=40.0),
            tables.row("u", "b", 4, event="impression", watch_time=900.0),
            tables.row("v", "c", 9, event="impression"),
        ],
        "test": [tables.row("u", "c", 10, watch_time=70.0)],
    }
    splits = tables.write_splits(tmp_path / "s", parts, items, None, kinds, {"language": {"u": "en"}})
    for fit_on, weight, shown, highest in (("train", [35, 40, 0], [2, 2, 1], 40), ("all", [50, 40, 70], [2, 2, 2], 70)):
        data = EncodedData(tables.encode(splits, fit_on=fit_on, categories=("language", "mood")))
        found, row = describe_catalogue(data, 3.0), {item: n for n, item in enumerate(data.items["id"])}
        places = [row[i] for i in "abc"]
        assert found.weight[places].tolist() == weight, fit_on
        assert found.shown[places].tolist() == shown
        assert (found.weight_from, found.highest, found.shared) == ("watch_time", highest, ("language",))
        assert list(found.categories) == ["language", "mood"]
        for name in found.categories:
            np.testing.assert_array_equal(found.categories[name], data.items[f"category_{name}"])
        np.testing.assert_array_equal(found.numbers["length"][places], [90, np.nan, 30])


def test_a_log_of_watches_says_nothing_of_what_was_shown(tmp_path: Path) -> None:
    parts = {"train": [tables.row("u", "a", 1, rating=2.0), tables.row("u", "b", 2, rating=4.0)]}
    found = describe_catalogue(EncodedData(tables.encode(tables.write_splits(tmp_path / "s", parts))), 3.0)
    assert (found.shown, found.weight_from, found.highest) == (None, "rating", 4.0)
    assert sorted(found.weight.tolist()) == [0, 0, 2, 4]
    parts = {"train": [tables.row("u", "a", 1)]}
    found = describe_catalogue(EncodedData(tables.encode(tables.write_splits(tmp_path / "t", parts))), 3.0)
    assert (found.weight_from, found.highest, found.weight.tolist()) == ("none", 1.0, [0, 0, 0])
