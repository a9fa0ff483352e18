"""The query of a user and split against a loop, and the two sentences on leakage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import Row, encode, row, write_splits

from shortlist import ShortlistError
from shortlist.components._examples import NextItemExamples
from shortlist.components._queries import EncodedData, Queries, Ragged, build_queries, has_impressions, weight_source
from shortlist.components.artifacts import Splits

THRESHOLD = 3.0
USERS, ITEMS = ["ann", "bob", "cat"], list("pqrstu")
times = st.integers(0, 4)  # few, so that most rows are tied
rows = st.builds(
    lambda user, item, time, rating, event: row(user, item, time, rating=rating, event=event),
    st.sampled_from(USERS),
    st.sampled_from(ITEMS),
    times,
    st.sampled_from([None, 1.0, 3.0, 5.0]),
    st.sampled_from(["watch", "watch", "watch", "impression"]),
)


@st.composite
def splits(draw: st.DrawFn) -> dict[str, list[Row]]:
    """Rows by split: mostly in time order for each user, ties across the boundaries, sometimes in any order."""
    everything = draw(st.lists(rows, min_size=2, max_size=25))
    owner = draw(st.lists(st.integers(0, 4), min_size=len(everything), max_size=len(everything)))
    if draw(st.integers(0, 3)):
        everything.sort(key=lambda r: r["timestamp"])
        owner.sort()
    owner[0] = 0
    return {
        name: sorted((r for r, o in zip(everything, owner, strict=True) if o == n), key=lambda r: r["timestamp"])
        for n, name in enumerate(Splits.NAMES)
    }


def in_time_order(parts: dict[str, list[Row]]) -> dict[str, list[Row]]:
    return {name: sorted(part, key=lambda r: (r["user"], r["timestamp"])) for name, part in parts.items()}


def encoded(folder: Path, parts: dict[str, list[Row]]) -> EncodedData:
    items = [{"item": i, "year": 1990 + n, "genres": [f"g{n % 3}"]} for n, i in enumerate(ITEMS)]
    return EncodedData(encode(write_splits(folder, in_time_order(parts), items, THRESHOLD)))


def described(data: EncodedData, found: Queries) -> dict[str, Any]:
    """The queries with the ids that the user gave, as the oracle has them."""
    ids, users = data.items["id"], data.users["id"]

    def line(ragged: Ragged, q: int) -> np.ndarray:
        return ragged.values[ragged.offsets[q] : ragged.offsets[q + 1]]

    def entries(q: int, items: Ragged, *others: Ragged) -> list[tuple[Any, ...]]:
        return list(zip(ids[line(items, q)], *(line(other, q) for other in others), strict=True))

    return {
        users[key]: {
            "time": found.time[q],
            "history": entries(q, found.history, found.history_time, found.context["history_weight"]),
            "impressions": entries(q, found.context["impressions"], found.context["impressions_time"]),
            "seen": sorted(ids[line(found.seen, q)]),
            "targets": entries(q, found.targets, found.target_weight),
            "shown": entries(q, *(found.shown[name] for name in ("item", "watched", "weight", "time"))),
            "age": found.context["example_age"][q],
        }
        for q, key in enumerate(found.user_key)
    }


def labelled(parts: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows with `positive` and `weight` as DESIGN says: the rating is the proxy of the watch time."""
    weigh = any(r["rating"] and r["rating"] >= THRESHOLD and r["event"] == "watch" for r in parts["train"])
    return {
        name: [
            {
                **r,
                "positive": r["event"] == "watch" and (r["rating"] or 0) >= THRESHOLD,
                "weight": r["rating"] if weigh else 1.0,
                "known": r["rating"] if weigh and r["rating"] else -1.0,
            }
            for r in part
        ]
        for name, part in in_time_order(parts).items()
    }


@settings(max_examples=40, deadline=None)
@given(splits())
def test_every_query_equals_the_loop(tmp_path_factory, parts: dict[str, list[Row]]) -> None:
    data = encoded(tmp_path_factory.mktemp("q") / "s", parts)
    vocabulary = {r["item"] for r in parts["train"]}
    for split in Splits.NAMES[1:]:
        for of_all in (False, True):
            found = build_queries(data, split, of_all)
            assert described(data, found) == oracles.queries(labelled(parts), split, vocabulary, of_all)
            known = {r["user"] for r in parts["train"]}
            assert [u >= 2 for u in found.user] == [data.users["id"][k] in known for k in found.user_key]


def test_a_query_by_hand(tmp_path: Path) -> None:
    parts = {
        "train": [row("ann", "p", 1), row("ann", "q", 2), row("bob", "r", 1), row("ann", "s", 3)],
        "rank_train": [row("ann", "r", 3), row("ann", "new", 3)],
        "test": [row("ann", "t", 3, event="impression"), row("ann", "r", 4, watch_time=9.0), row("ann", "new", 9)],
    }
    # s and r stand at the very second at which test begins: they are seen, and no history.
    data = EncodedData(encode(write_splits(tmp_path / "s", parts)))
    (only,) = described(data, build_queries(data, "test")).values()
    assert only["time"] == 3
    assert only["history"] == [("p", 1, -1), ("q", 2, -1)]
    assert only["seen"] == ["p", "q", "r", "s"]
    assert [item for item, _ in only["targets"]] == ["r", ""]
    assert len(build_queries(data, "validation")) == 0


@settings(max_examples=25, deadline=None)
@given(splits(), splits(), st.sampled_from(["validation", "test"]), st.data())
def test_later_rows_change_nothing_of_what_came_before(
    tmp_path_factory, parts: dict[str, list[Row]], other: dict[str, list[Row]], first: str, data: st.DataObject
) -> None:
    """Rows of `first` and later are invented, permuted or deleted, users and items nobody knew among them."""
    later = Splits.NAMES[Splits.NAMES.index(first) :]
    invented = [row("dan", "brand new", 2, rating=5.0, event="watch"), row("ann", "brand new", 0, rating=5.0)]
    change = data.draw(st.sampled_from(["invent", "permute", "delete"]))
    changed = dict(parts)
    for name in later:
        if change == "permute":
            stamps = data.draw(st.permutations([r["timestamp"] for r in parts[name]]))
            changed[name] = [{**r, "timestamp": t} for r, t in zip(parts[name], stamps, strict=True)]
        else:
            changed[name] = parts[name] + other[name] + invented if change == "invent" else []
    folder = tmp_path_factory.mktemp("q")
    before, after = encoded(folder / "a", parts), encoded(folder / "b", changed)
    for name in ("items.txt", "users.txt", "genres.txt", "state.json", "items.parquet"):
        assert (before.artifact / name).read_bytes() == (after.artifact / name).read_bytes(), name
    for split in Splits.NAMES[1 : Splits.NAMES.index(first)]:
        assert described(before, build_queries(before, split)) == described(after, build_queries(after, split))
    assert weight_source(before) == weight_source(after)
    epochs = [NextItemExamples(d.rows("train"), 3, 2).epoch(np.random.default_rng(0)) for d in (before, after)]
    for name, values in epochs[0].items():
        np.testing.assert_array_equal(values, epochs[1][name])


def test_a_history_is_in_time_order_where_the_splits_are_not(tmp_path: Path) -> None:
    parts = {
        "train": [row("ann", "p", 1), row("ann", "q", 5), row("ann", "r", 6)],
        "validation": [row("ann", "s", 3), row("ann", "t", 6), row("bob", "p", 2)],
        "test": [row("ann", "u", 7)],
    }
    data = EncodedData(encode(write_splits(tmp_path / "s", parts), fit_on="all"))
    (only,) = described(data, build_queries(data, "test")).values()
    assert [pair[:2] for pair in only["history"]] == [("p", 1), ("s", 3), ("q", 5), ("r", 6), ("t", 6)]
    assert only["seen"] == list("pqrst")


def test_batches_are_padded_queries_in_order(tmp_path: Path) -> None:
    users = [f"u{n}" for n in range(5)]
    train = [row(user, f"i{m}", m) for n, user in enumerate(users) for m in range(n)]
    parts = {"train": train, "test": [row(user, "i0", 9) for user in users]}
    data = EncodedData(encode(write_splits(tmp_path / "s", parts)))
    found = build_queries(data, "test")
    ids = data.items["id"]
    lines = []
    for rows_, batch in found.batches(2):
        assert batch["history"].shape == batch["history_time"].shape == batch["exclude"].shape
        assert batch["user"].tolist() == found.user[rows_].tolist()
        assert batch["time"].tolist() == [9] * len(batch["user"])
        assert (batch["history"].dtype, batch["history_time"].dtype) == (np.int32, np.int64)
        lines += [[ids[i] for i in line] for line in batch["history"]]
    # Two queries a batch, as wide as the longest of each; item "" is row 0.
    expected = [["i0"][:n] for n in (0, 1)], [["i0", "i1", "i2"][:n] for n in (2, 3)], [["i0", "i1", "i2", "i3"]]
    assert lines == [line + [""] * (max(map(len, part)) - len(line)) for part in expected for line in part]
    assert [len(batch["user"]) for _, batch in found.batches(2)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("first", "source", "weights"),
    [
        ({"watch_time": 30.0, "rating": 4.0}, "watch_time", [7.0, 30.0]),
        ({"rating": 4.0}, "rating", [2.0, 4.0]),
        ({}, "none", [1.0, 1.0]),
    ],
)
def test_a_positive_weighs_the_best_that_train_knows(
    tmp_path: Path, first: dict[str, float], source: str, weights: list[float]
) -> None:
    parts = {
        "train": [row("ann", "p", 1, **first), row("ann", "q", 1, event="impression", watch_time=5.0)],
        "test": [row("ann", "p", 2, rating=2.0, watch_time=7.0), row("ann", "q", 3)],
    }
    data = EncodedData(encode(write_splits(tmp_path / "s", parts)))
    assert weight_source(data) == source
    assert build_queries(data, "test").target_weight.values.tolist() == weights


def test_a_positive_without_a_value_weighs_the_mean_of_those_of_train(tmp_path: Path) -> None:
    parts = {
        "train": [
            row("ann", "p", 1, rating=2.0),
            row("ann", "q", 1, rating=5.0),
            row("bob", "p", 1, rating=float("inf")),  # no value either
            row("bob", "q", 1),
            row("bob", "q", 2, rating=90.0, event="impression"),  # no positive
        ],
        "test": [row("ann", "p", 3), row("ann", "q", 4, rating=1.0), row("bob", "p", 5)],
    }
    found = build_queries(EncodedData(encode(write_splits(tmp_path / "s", parts))), "test")
    assert found.target_weight.values.tolist() == [3.5, 1.0, 3.5]
    assert found.context["history_weight"].values.tolist() == [2.0, 5.0, -1.0, -1.0]


SHOWN = {
    "train": [
        row("ann", "p", 1, watch_time=10.0),
        row("ann", "q", 2, event="impression"),
        row("ann", "r", 5, event="impression"),
        row("bob", "q", 1, event="impression"),
        row("bob", "new", 1),
    ],
    "rank_train": [row("ann", "q", 4, event="impression"), row("ann", "s", 5, event="impression")],
    "test": [row("ann", "r", 5, event="impression"), row("ann", "q", 6), row("bob", "s", 6, event="impression")],
}


def test_what_was_only_shown_is_not_seen_and_is_known_from_earlier_times(tmp_path: Path) -> None:
    """r was shown at the very second at which test begins; s is out of the vocabulary."""
    data = EncodedData(encode(write_splits(tmp_path / "s", SHOWN)))
    assert has_impressions(data)
    assert not has_impressions(EncodedData(encode(write_splits(tmp_path / "w", {"train": SHOWN["train"][:1]}))))
    asked = described(data, build_queries(data, "test"))
    assert list(asked) == ["ann"]
    assert asked["ann"]["seen"] == ["p"]
    assert asked["ann"]["impressions"] == [("q", 2), ("q", 4)]
    assert asked["ann"]["shown"] == [("r", False, 0, 5), ("q", True, 10, 6)]


def test_users_without_a_positive_are_asked_about_what_they_were_shown(tmp_path: Path) -> None:
    data = EncodedData(encode(write_splits(tmp_path / "s", SHOWN)))
    asked = described(data, build_queries(data, "test", of_all=True))
    assert list(asked) == ["ann", "bob"]
    assert asked["bob"] == {
        "time": 6,
        "history": [("new", 1, -1)],
        "impressions": [("q", 1)],
        "seen": ["new"],
        "targets": [],
        "shown": [],  # s is unknown
        "age": 0.0,
    }


def test_only_a_ranker_reads_the_context(tmp_path: Path) -> None:
    language = {"ann": "de", "bob": "fr"}
    items = [{"item": "p", "language": "de"}, {"item": "q", "language": "en"}]
    splits = write_splits(
        tmp_path / "s", SHOWN, items, item_columns={"language": pa.string()}, user_columns={"language": language}
    )
    data = EncodedData(encode(splits))
    found = build_queries(data, "test", of_all=True)
    assert data.state["shared_categories"] == ["language"]
    names = (data.artifact / "category_language.txt").read_text().splitlines()
    assert found.request["user_language"].tolist() == [names.index("de") + 2, 1]  # no item is in French
    ((_, plain),) = found.batches(9)
    ((_, full),) = found.ranking_batches(9)
    further = {"history_weight", "impressions", "impressions_time", "example_age"}
    assert set(plain) == {"user", "history", "history_time", "time", "exclude", "user_language"} == set(full) - further
    assert full["history_weight"].tolist() == [[10.0], [-1.0]]
    assert full["impressions_time"].tolist() == [[2, 4], [1, 0]]


def test_a_training_query_is_as_old_as_the_newest_is_later(tmp_path: Path) -> None:
    parts = {
        "train": [row(user, "p", 1) for user in "abc"],
        **{name: [row("a", "p", 50), row("b", "p", 20), row("b", "p", 90)] for name in ("rank_train", "test")},
    }
    data = EncodedData(encode(write_splits(tmp_path / "s", parts)))
    assert build_queries(data, "rank_train").context["example_age"].tolist() == [0.0, 30.0]
    assert build_queries(data, "test").context["example_age"].tolist() == [0.0, 0.0]


def test_rows_without_a_time_are_never_history(tmp_path: Path) -> None:
    parts = {
        "train": [row("ann", "p", 1), row("ann", "q", None)],
        "test": [row("ann", "r", 5), row("ann", "p", None)],
    }
    data = EncodedData(encode(write_splits(tmp_path / "s", parts)))
    assert data.rows("train")["timestamp"].dtype == np.int64
    (only,) = described(data, build_queries(data, "test")).values()
    assert (only["time"], only["history"], only["seen"]) == (5, [("p", 1, -1)], ["p", "q"])
    assert len(NextItemExamples(data.rows("train"), 3, 1)) == 0  # nobody knows whether p came before q


def test_a_query_without_any_time_is_refused(tmp_path: Path) -> None:
    parts = {"train": [row("ann", "p", 1)], "test": [row("ann", "p", None), row("bob", "p", 5)]}
    data = EncodedData(encode(write_splits(tmp_path / "s", parts)))
    with pytest.raises(ShortlistError) as error:
        build_queries(data, "test")
    assert str(error.value) == (
        "`timestamp` must be known for a row of every user in test, or nothing says what came before it. Give the "
        "times; without them, splits of ratings serve rating models only. Received: 1 of 2 users without."
    )


def test_unknown_genres_and_titles_are_empty(tmp_path: Path) -> None:
    items = [{"item": "p", "genres": ["War", "Art"]}, {"item": "q", "title": "Q"}]
    parts = {"train": [row("ann", "p", 1), row("ann", "p", 1), row("ann", "q", 2)]}
    data = EncodedData(encode(write_splits(tmp_path / "s", parts, items)))
    assert data.items["genres"].tolist() == [[0, 0], [0, 0], [1, 1], [0, 0]]
    assert data.items["title"].tolist() == ["", "", "", "Q"]
    assert (data.num_items, data.num_users) == (4, 3)
    assert json.loads((data.artifact / "state.json").read_text())["genres"] == ["Art", "War"]
