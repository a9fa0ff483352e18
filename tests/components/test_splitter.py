import itertools
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import oracles
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.components._hashing import hash_of, mix
from shortlist.components.artifacts import Examples, Splits
from shortlist.components.splitter import SplitConfig, Splitter, split_rows

STRATEGIES = ("per_user_time", "global_time", "leave_last_out", "strong", "kfold")
BY_TIME = STRATEGIES[:3]
SCHEMA = pa.schema(
    [
        ("user", pa.string()),
        ("item", pa.string()),
        ("timestamp", pa.int64()),
        ("event", pa.string()),
        ("rating", pa.float32()),
    ]
)
SHARES = {"test": 0.25, "validation": 0.2, "rank_train": 0.15}

Row = dict[str, object]


def row(user: str, item: str, timestamp: int | None, event: str = "watch", rating: float = 3) -> Row:
    return {"user": user, "item": item, "timestamp": timestamp, "event": event, "rating": float(rating)}


def split(rows: list[Row], strategy: str, **settings: object) -> dict[str, list[Row]]:
    table = pa.Table.from_pylist(rows, SCHEMA)
    parts = split_rows(table, SplitConfig(strategy=strategy, **settings))
    return {name: table.take(pa.array(numbers)).to_pylist() for name, numbers in parts.items()}


def count(rows: list[Row]) -> Counter:
    return Counter(tuple(own.values()) for own in rows)


ROW = st.builds(
    row,
    st.sampled_from(["1", "10", "2", "ü", ""]),
    st.sampled_from(["1", "2", "30", "é"]),
    st.integers(-3, 6),
    st.sampled_from(["impression", "watch"]),
    st.integers(1, 3),
)
ROWS = st.lists(ROW, min_size=2, max_size=40)


def ladder(users: int, size: int) -> list[Row]:
    """Each user's rows at different times; users interleave."""
    return [row(f"u{u}", f"i{(u * 7 + t * 3) % 50}", 100 * t + u) for t in range(size) for u in range(users)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=60, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_every_split_equals_the_loop_over_rows_whatever_the_order_of_the_file(strategy, rows, seed, data):
    shares = {**SHARES, "folds": 3, "fold": seed % 3, "seed": seed}
    expected = oracles.split_rows(rows, strategy, **shares)
    shuffled = data.draw(st.permutations(rows))
    if not expected["train"] or not expected["test"]:
        with pytest.raises(ShortlistError, match=f"`{strategy}` needs interactions that give `train` and `test`"):
            split(shuffled, strategy, **shares)
    else:
        assert split(shuffled, strategy, **shares) == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])  # refused: no test row
@given(rows=ROWS)
def test_each_row_is_in_one_split_and_splits_follow_each_other_in_time(strategy, rows):
    try:
        parts = split(rows, strategy, **SHARES, folds=3)
    except ShortlistError:
        assume(False)
    assert sum((count(part) for part in parts.values()), Counter()) == count(rows)
    for part in parts.values():
        keys = [(own["user"].encode(), own["timestamp"]) for own in part]
        assert keys == sorted(keys)
    if strategy == "kfold":
        return
    for early, late in itertools.pairwise(Splits.NAMES):
        for user in {own["user"] for own in rows}:
            before = [own["timestamp"] for own in parts[early] if own["user"] == user]
            after = [own["timestamp"] for own in parts[late] if own["user"] == user]
            assert not before or not after or max(before) <= min(after)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_global_time_separates_splits_strictly_across_users(rows):
    try:
        parts = split(rows, "global_time", **SHARES)
    except ShortlistError:
        assume(False)
    times = [[own["timestamp"] for own in parts[name]] for name in Splits.NAMES if parts[name]]
    for before, after in itertools.pairwise(times):
        assert max(before) < min(after)


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [  # train, rank_train, validation, test of .1, .1, .2
        (1, (1, 0, 0, 0)),
        (2, (2, 0, 0, 0)),
        (3, (2, 1, 0, 0)),
        (4, (3, 1, 0, 0)),
        (5, (2, 1, 1, 1)),
        (10, (6, 2, 1, 1)),
        (14, (9, 3, 1, 1)),
        (15, (8, 3, 2, 2)),
        (100, (60, 20, 10, 10)),
    ],
)
def test_rounding_of_per_user_shares(rows, sizes):
    other = [row("other", f"o{t}", t) for t in range(10)]  # without it the smallest would have no test row at all
    own = [row("own", f"i{t}", t) for t in range(rows)]
    parts = split(own + other, "per_user_time")
    got = [[r["timestamp"] for r in parts[n] if r["user"] == "own"] for n in Splits.NAMES if n != "fold_in"]
    assert tuple(map(len, got)) == sizes
    assert list(itertools.chain(*got)) == list(range(rows))


def test_train_keeps_a_row_of_every_user_however_large_the_shares():
    rows = [row("u", f"i{t}", t) for t in range(3)]
    parts = split(rows, "per_user_time", test=0.4, validation=0.3, rank_train=0.29)
    assert [r["timestamp"] for r in parts["train"] + parts["validation"] + parts["test"]] == [0, 1, 2]
    assert parts["rank_train"] == []


def test_global_time_by_hand_gives_a_tie_at_the_boundary_to_the_later_split():
    times = [1, 2, 3, 4, 5, 6, 7, 8, 8, 10]
    rows = [row(f"u{t % 3}", f"i{n}", t) for n, t in enumerate(times)]
    parts = split(rows, "global_time", test=0.2, validation=0.2, rank_train=0.1)
    got = {name: sorted(r["timestamp"] for r in part) for name, part in parts.items()}
    assert got == {"train": [1, 2, 3, 4, 5], "fold_in": [], "rank_train": [6], "validation": [7], "test": [8, 8, 10]}


def test_leave_last_out_by_hand():
    rows = [row("a", f"i{t}", t) for t in (5, 1, 4, 2, 3)] + [row("b", f"i{t}", t) for t in (3, 1, 2)]
    parts = split(rows, "leave_last_out")
    got = {name: [(r["user"], r["timestamp"]) for r in part] for name, part in parts.items()}
    assert got["train"] == [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]
    assert (got["rank_train"], got["validation"], got["test"]) == ([("a", 3)], [("a", 4)], [("a", 5)])


def test_strong_holds_out_whole_users_and_folds_in_their_first_80_percent():
    parts = split([*ladder(20, 10), row("single", "i", 0)], "strong")
    users = {name: {r["user"] for r in part} for name, part in parts.items()}
    assert {name: len(own) for name, own in users.items()} == {
        "train": 13,  # 12 and the one of a single row, who is never held out
        "fold_in": 8,
        "rank_train": 4,
        "validation": 2,
        "test": 2,
    }
    assert "single" in users["train"]
    assert users["fold_in"] == users["rank_train"] | users["validation"] | users["test"]
    assert not users["fold_in"] & users["train"]
    for user in users["fold_in"]:
        assert [r["timestamp"] // 100 for r in parts["fold_in"] if r["user"] == user] == list(range(8))
    assert {name: {r["user"] for r in p} for name, p in split(ladder(20, 10), "strong", seed=1).items()} != users


def test_kfold_deals_every_row_to_test_once_and_to_validation_once():
    rows = ladder(10, 20)
    folds = [split(rows, "kfold", folds=4, fold=fold) for fold in range(4)]
    assert all(not parts["rank_train"] and not parts["fold_in"] for parts in folds)
    for name in ("test", "validation"):
        assert sum((count(parts[name]) for parts in folds), Counter()) == count(rows)
        assert all(30 <= len(parts[name]) <= 70 for parts in folds)  # 50 expected, standard deviation 6
    assert [count(parts["validation"]) for parts in folds] == [count(folds[(f + 1) % 4]["test"]) for f in range(4)]


def test_kfold_takes_rows_without_a_time_and_the_fold_of_a_row_depends_on_no_other():
    rows = [row(f"u{n % 5}", f"i{n}", None if n % 2 else n) for n in range(60)]
    whole = split(rows, "kfold")
    part = split(rows[10:], "kfold")
    for name in Splits.NAMES:
        kept = count(rows[10:])
        assert count(part[name]) == Counter({key: n for key, n in count(whole[name]).items() if key in kept})


def test_ties_follow_neither_the_ids_nor_the_file_but_the_seed():
    pairs = [(10 * u, 10 * u + 1) for u in range(1, 3001)]
    rows = [row(f"u{u}", str(item), 0) for u, pair in enumerate(pairs) for item in pair]
    rows += [row(f"u{u}", "last", 9) for u in range(3000)]

    def lower_first(rows: list[Row], seed: int = 0) -> np.ndarray:
        train = split(rows, "per_user_time", test=0.3, validation=0, rank_train=0, seed=seed)["train"]
        return np.diff(np.array([int(r["item"]) for r in train]).reshape(3000, 2))[:, 0] > 0

    first = lower_first(rows)
    assert abs(first.mean() - 0.5) < 0.04  # 4 standard deviations of a fair coin
    assert abs((first == lower_first(rows, seed=1)).mean() - 0.5) < 0.04
    shifted = [{**r, "item": f"{int(r['item']) + 10**6}"} if r["item"] != "last" else r for r in rows]
    assert abs((first == lower_first(shifted)).mean() - 0.5) < 0.04  # the same order of ids, another hash
    np.testing.assert_array_equal(lower_first(rows[::-1]), first)


def test_the_hash_is_splitmix64_and_the_same_everywhere():
    published = 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4  # first outputs of splitmix64 for seed 0: states 0 and 0 + γ
    np.testing.assert_array_equal(mix(np.array([0, 0x9E3779B97F4A7C15], np.uint64)), published)
    ids = ["", "1", "10", "01", "a longer id, with ümläuts 漢字", "1\x00"]
    np.testing.assert_array_equal(hash_of(pa.array(ids)), [oracles.id_hash(text) for text in ids])
    many = hash_of(pa.array(map(str, range(200_000))))
    assert len(np.unique(many)) == 200_000


@pytest.mark.parametrize("strategy", BY_TIME)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_inventing_what_happens_in_test_moves_no_earlier_row(strategy, data):
    rows = ladder(6, 10)
    parts = split(rows, strategy)
    first = min(r["timestamp"] for r in parts["test"])
    invented = [
        {
            **r,
            "item": data.draw(st.sampled_from(["i1", "new", "0"])),
            "timestamp": max(first, r["timestamp"]) + data.draw(st.integers(0, 500)),
            "rating": float(data.draw(st.integers(1, 5))),
        }
        for r in parts["test"]
    ]
    kept = [r for name in Splits.NAMES[:-1] for r in parts[name]]
    after = split(data.draw(st.permutations(kept + invented)), strategy)
    for name in Splits.NAMES[:-1]:
        assert after[name] == parts[name]


@pytest.mark.parametrize("strategy", ["per_user_time", "leave_last_out"])
def test_a_users_cut_depends_on_no_other_user(strategy):
    whole = split(ladder(6, 10), strategy)
    fewer = split([r for r in ladder(6, 10) if r["user"] != "u3"], strategy)
    for name in Splits.NAMES:
        assert fewer[name] == [r for r in whole[name] if r["user"] != "u3"]


def test_strong_rows_of_held_out_users_do_not_move_the_others():
    parts = split(ladder(20, 10), "strong")
    held = {r["user"] for r in parts["test"]}
    rows = [r for r in ladder(20, 10) if r["user"] not in held or r["timestamp"] < 300]
    after = split(rows, "strong")
    for name in ("train", "rank_train", "validation"):
        assert after[name] == parts[name]


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "kfold"])
def test_rows_without_a_time_are_refused(strategy):
    with pytest.raises(ShortlistError) as caught:
        split([*ladder(5, 10), row("u1", "i", None)], strategy)
    assert str(caught.value) == (
        f"`{strategy}` goes by time, so every row needs a timestamp. Give them, or split without time by "
        "--set split.strategy=kfold. Received: 1 of 51 rows without one."
    )


@pytest.mark.parametrize(
    ("rows", "received"),
    [
        ([], "0 rows of 0 users, 0 to train and 0 to test"),
        ([row("u", "i", 1)], "1 rows of 1 users, 1 to train and 0 to test"),
        ([row(f"u{n}", "i", n) for n in range(1200)], "1,200 rows of 1,200 users, 1,200 to train and 0 to test"),
    ],
)
def test_too_little_to_split_is_refused(rows, received):
    with pytest.raises(ShortlistError) as caught:
        split(rows, "per_user_time")
    assert str(caught.value) == (
        "`per_user_time` needs interactions that give `train` and `test` at least one row each. Bring more rows, or "
        f"split without time by --set split.strategy=kfold. Received: {received}."
    )


def test_one_moment_cannot_be_split_by_time():
    rows = [row(f"u{n % 4}", f"i{n}", 7) for n in range(40)]
    with pytest.raises(ShortlistError, match=r"40 rows of 4 users, 0 to train and 40 to test\.$"):
        split(rows, "global_time")
    with pytest.raises(ShortlistError, match=r"at least one row each\. Bring more rows\. Received: 1 rows of 1 users"):
        split(rows[:1], "kfold")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "random"}, "`strategy` of the configuration: Input should be 'per_user_time', 'global_time', "),
        ({"test": 0}, "`test` of the configuration: Input should be greater than 0. Received: 0."),
        ({"validation": -0.1}, "`validation` of the configuration: Input should be greater than or equal to 0."),
        ({"rank_train": 1}, "`rank_train` of the configuration: Input should be less than 1. Received: 1."),
        ({"test": 0.7, "validation": 0.2, "rank_train": 0.1}, "so that `train` gets its share. Received: 0.7 + 0.2 + "),
        ({"folds": 2}, "`folds` of the configuration: Input should be greater than or equal to 3. Received: 2."),
        ({"folds": 4, "fold": 4}, "`fold` must be between 0 and 3, the last fold. Received: 4."),
        ({"positive_threshold": float("nan")}, "`positive_threshold` of the configuration: Input should be a finite"),
        ({"seed": -1}, "`seed` of the configuration: Input should be greater than or equal to 0. Received: -1."),
        ({"tets": 0.1}, "`tets` is not a setting of the configuration. Did you mean `test`?"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ShortlistError) as caught:
        parse(SplitConfig, values)
    assert message in str(caught.value)


def test_the_artifact_keeps_every_column_and_says_what_it_is(tmp_path: Path):
    made = {name: tmp_path / name for name in ("examples", "out")}
    for folder in made.values():
        folder.mkdir()
    table = pa.Table.from_pylist(ladder(4, 10), SCHEMA)
    table = table.append_column("tags", pa.array([[str(n), "x"] for n in range(40)]))
    table = table.append_column("context_mood", pa.array(["NA", "happy"] * 20).dictionary_encode())
    pq.write_table(table, made["examples"] / "interactions.parquet")
    for name in ("items.parquet", "users.parquet", "source.json"):
        (made["examples"] / name).write_text(f"the bytes of {name}")

    Splitter(SplitConfig(positive_threshold=4)).run(made["out"], Examples(made["examples"], "0"))

    parts = {name: pq.read_table(made["out"] / f"{name}.parquet") for name in Splits.NAMES}
    assert all(part.schema == table.schema for part in parts.values())
    whole = pa.concat_tables(parts.values())
    order = [("user", "ascending"), ("timestamp", "ascending")]
    assert whole.sort_by(order).to_pylist() == table.sort_by(order).to_pylist()
    for name in ("items.parquet", "users.parquet", "source.json"):
        assert (made["out"] / name).read_text() == f"the bytes of {name}"
    summary = json.loads((made["out"] / "splits.json").read_text())
    assert "Across users nothing is guaranteed" in summary.pop("guarantee")
    assert summary == {
        "strategy": "per_user_time",
        "seed": 0,
        "positive_threshold": 4.0,
        "rows": {"train": 24, "fold_in": 0, "rank_train": 8, "validation": 4, "test": 4},
        "users": {"train": 4, "fold_in": 0, "rank_train": 4, "validation": 4, "test": 4},
    }


def test_repeated_rows_of_odd_column_types_are_ordered_by_what_they_say():
    columns = {
        "user": ["u"] * 4,
        "item": ["i"] * 4,
        "timestamp": [1] * 4,
        "raw": pa.array([b"\xff", b"\xfe", b"\xfd", b"\xfc"]),
        "kind": pa.array(["a", "b", "a", "b"]).dictionary_encode(),
        "tags": pa.array([[1], [2], [3], [4]]),
    }
    rows = split_rows(pa.table(columns), SplitConfig(test=0.5, validation=0, rank_train=0))
    assert {name: numbers.tolist() for name, numbers in rows.items() if len(numbers)} == {
        "train": [2, 0],
        "test": [3, 1],
    }


@pytest.mark.slow
def test_a_million_rows_take_seconds():
    rng = np.random.default_rng(0)
    n = 1_000_000
    table = pa.table(
        {
            "user": pa.array(rng.integers(0, 7000, n)).cast(pa.string()),
            "item": pa.array(rng.integers(0, 30_000, n)).cast(pa.string()),
            "timestamp": rng.integers(0, 10**6, n),
        }
    )
    start = time.perf_counter()
    parts = split_rows(table, SplitConfig())
    assert time.perf_counter() - start < 15  # under 1 s where nothing else runs
    assert sum(map(len, parts.values())) == n
    assert len(parts["test"]) == pytest.approx(n / 10, rel=0.01)
