"""The slices of users and targets on a table written by hand, and what the evaluator makes of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracles
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tables
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.components._queries import EncodedData, Queries, Ragged, build_queries
from shortlist.components._slices import slice_table, target_slices, thirds, user_slices
from shortlist.components.metrics import find_targets

DRAMA, WESTERN = "Drama", "Western"
ITEMS = [
    {"item": "a", "year": 1994, "genres": [DRAMA]},
    {"item": "b", "year": 2001, "genres": [DRAMA, WESTERN]},
    {"item": "c", "year": 1999, "genres": []},
]
WATCHED = {"u": "aab", "v": "aa", "w": "ab", "x": "c"}
TARGETS = {"u": "c", "v": "bc", "w": "cz", "y": "a"}
PLACES = {"u": ["home"], "v": ["home", "train"], "w": [None, "home"], "y": ["train"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EncodedData:
    """Training watches: a 5, b 2, c 1; y has no history, z is not in the catalogue."""
    folder = tmp_path_factory.mktemp("slices")
    parts = {
        "train": [
            tables.row(u, i, 100 + n, context_place=("home", "train")[n % 2])
            for u, own in WATCHED.items()
            for n, i in enumerate(own)
        ],
        "test": [
            tables.row(u, i, 200 + n, context_place=PLACES[u][n])
            for u, own in TARGETS.items()
            for n, i in enumerate(own)
        ],
    }
    encoded = tables.encode(tables.write_splits(folder / "splits", parts, ITEMS))
    users = pq.read_table(encoded / "users.parquet")
    ages = {"u": 30, "v": 40, "w": None, "x": 30, "y": 40}
    users = users.append_column("age", pa.array([ages[u] for u in users["id"].to_pylist()], pa.int32()))
    users = users.append_column("height", pa.array(np.arange(5.0)))  # no category
    pq.write_table(users, encoded / "users.parquet")
    items = pq.read_table(encoded / "items.parquet")
    tags = {"a": ["old"], "b": ["new", "old"], "c": None, "": []}
    items = items.append_column("tags", pa.array([tags[i] for i in items["id"].to_pylist()], pa.list_(pa.string())))
    pq.write_table(items, encoded / "items.parquet")
    return EncodedData(encoded)


def by_name(slices: Any) -> dict[tuple[str, str], list[bool]]:
    return {(name, part): keep.tolist() for name, part, keep in slices}


def test_thirds_by_hand() -> None:
    assert thirds(np.array([5, 1, 3])).tolist() == [2, 0, 1]
    assert thirds(np.array([7, 7, 7, 7])).tolist() == [1, 1, 1, 1]  # equal values stay together, in the middle
    assert thirds(np.array([0, 0, 0, 9])).tolist() == [1, 1, 1, 2]
    counts = np.array([1, 1, 2, 4, 5, 0])
    assert thirds(counts, counts).tolist() == [0, 0, 0, 1, 2, 0]
    assert thirds(np.zeros(2), np.zeros(2)).tolist() == [0, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_thirds_keep_order_and_equal_values(values: list[int]) -> None:
    place = thirds(np.array(values))
    ordered = sorted(zip(values, place.tolist(), strict=True))
    assert [p for _, p in ordered] == sorted(place)
    assert len({(v, p) for v, p in ordered}) == len(set(values))


def test_users_by_hand(data: EncodedData) -> None:
    queries = build_queries(data, "test")  # u, v, w, y with histories of 3, 2, 2 and 0
    assert by_name(user_slices(data, queries, cold=3)) == {
        ("activity", "low"): [False, False, False, True],
        ("activity", "mid"): [False, True, True, False],
        ("activity", "high"): [True, False, False, False],
        ("cold_user", "none"): [False, False, False, True],
        ("cold_user", "short"): [False, True, True, False],
        ("cold_user", "warm"): [True, False, False, False],
        ("user.age", "30"): [True, False, False, False],
        ("user.age", "40"): [False, True, False, True],
    }


def test_targets_by_hand(data: EncodedData) -> None:
    queries = build_queries(data, "test")  # u: c · v: b c · w: c z · y: a
    counts = np.bincount(data.rows("train")["item"], minlength=data.num_items)
    assert by_name(target_slices(data, queries, counts, cold=2)) == {
        ("item_popularity", "head"): [False, False, False, False, False, True],
        ("item_popularity", "mid"): [False] * 6,
        ("item_popularity", "tail"): [True, True, True, True, False, False],
        ("cold_item", "new"): [False, False, False, False, True, False],
        ("cold_item", "few"): [True, False, True, True, False, False],
        ("cold_item", "warm"): [False, True, False, False, False, True],
        ("genre", DRAMA): [False, True, False, False, False, True],
        ("genre", WESTERN): [False, True, False, False, False, False],
        ("item.decade", "1990s"): [True, False, True, True, False, True],
        ("item.decade", "2000s"): [False, True, False, False, False, False],
        ("item.tags", "old"): [False, True, False, False, False, True],
        ("item.tags", "new"): [False, True, False, False, False, False],
        ("context_place", "home"): [True, True, False, False, True, False],
        ("context_place", "train"): [False, False, True, False, False, True],
    }


def test_every_figure_equals_the_loop_and_what_is_empty_is_absent(data: EncodedData) -> None:
    queries = build_queries(data, "test")
    row = {item: n for n, item in enumerate(data.items["id"]) if n >= 2}
    lists = [[row[i] for i in own] for own in ("bca", "cab", "abc", "cba")]
    targets = [[row.get(i, 1) for i in own] for own in TARGETS.values()]
    counts = np.bincount(data.rows("train")["item"], minlength=data.num_items)
    found = {"one": find_targets(np.array(lists), queries.targets.offsets, queries.targets.values)}
    of_users, of_targets = (
        list(user_slices(data, queries, 3)),
        list(target_slices(data, queries, counts, 2)),
    )
    table = slice_table(iter(of_users), iter(of_targets), found, [1, 2], 200, 5).to_pylist()
    got = {(r["slice"], r["part"], r["metric"]): r for r in table}
    assert len(got) == len(table)
    expected = {}
    for name, part, keep in of_users:
        expected[name, part] = [(own, t) for own, t, k in zip(lists, targets, keep, strict=True) if k]
    for name, part, keep in of_targets:
        kept = np.split(keep, queries.targets.offsets[1:-1])
        chosen = [[i for i, k in zip(t, own, strict=True) if k] for t, own in zip(targets, kept, strict=True)]
        expected[name, part] = [(own, t) for own, t in zip(lists, chosen, strict=True) if t]
    assert ("item_popularity", "mid", "ndcg@1") not in got
    assert {(n, p) for n, p, _ in got} == {key for key, pairs in expected.items() if pairs}
    for (name, part, metric), r in got.items():
        kind, _, k = metric.partition("@")
        values = np.array([oracles.ranking_metrics(own, t, int(k))[kind] for own, t in expected[name, part]])
        mean, low, high = oracles.bootstrap_mean(values, 200, 5)
        assert (r["value"], r["low"], r["high"]) == pytest.approx((mean, low, high))
        assert (r["users"], r["system"]) == (len(values), "one")


def test_no_slice_at_all_is_an_empty_table() -> None:
    found = {"one": find_targets(np.array([[2]]), np.array([0, 1]), np.array([2]))}
    none = np.array([False])
    assert (
        slice_table(iter([("activity", "low", none)]), iter([("genre", "g", none)]), found, [1], 100, 0).num_rows == 0
    )


def test_only_the_most_frequent_values_are_slices(tmp_path: Path) -> None:
    names = [f"n{n:02}" for n in range(25) for _ in range(n + 1)]
    pq.write_table(pa.table({"id": names, "user": np.arange(len(names)), "town": names}), tmp_path / "users.parquet")
    keys = np.arange(len(names))
    history = Ragged(np.zeros(len(names) + 1, int), np.zeros(0, np.int32))
    queries: Queries = SimpleNamespace(user_key=keys, history=history)
    got = [
        p
        for name, p, keep in user_slices(SimpleNamespace(artifact=tmp_path, state={"request": {}}), queries, 5)
        if name == "user.town"
    ]
    assert got == [f"n{n:02}" for n in range(24, 4, -1)]
