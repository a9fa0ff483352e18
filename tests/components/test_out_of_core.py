"""What is read, cut, encoded and drawn in pieces is what comes of it in one go, whatever the size of the pieces."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import encode, row, write_splits
from tables import example_lines as lines

from shortlist import ShortlistError
from shortlist.components import _batches, _hashing, splitter, transform
from shortlist.components._engine import Engine, EngineConfig
from shortlist.components._examples import NextItemExamples, StreamedExamples
from shortlist.components._queries import EncodedData
from shortlist.components._stored_rows import StoredRows
from shortlist.components.artifacts import Encoded, Examples, Splits
from shortlist.components.example_gen import DataConfig, ExampleGen
from shortlist.components.pipeline import Component
from shortlist.components.splitter import SplitConfig, Splitter
from shortlist.components.transform import Transform, TransformConfig

USERS = ["giant", "ü", "ключ", "🎬", "a", "A", "zz", "10", "9"]


def log(path: Path, times: bool = True) -> Path:
    """250 rows of 9 users, half of one of them, in the order of no user and no time; some are there twice."""
    rng = np.random.default_rng(3)
    n = 240
    moods = ["calm", "wild\nnight", "", None]
    table = {
        "user": [
            "giant" if half else USERS[u] for half, u in zip(rng.random(n) < 0.5, rng.integers(0, 9, n), strict=True)
        ],
        "item": [f"item {i} é" for i in rng.integers(0, 30, n) ** 2 // 30],
        "timestamp": rng.integers(0, 60, n) * 3600 if times else pa.nulls(n, pa.int64()),
        "rating": pa.array(rng.integers(1, 6, n).astype(np.float32), mask=rng.random(n) < 0.2),
        "event": [("watch", "impression")[i] for i in (rng.random(n) < 0.2).astype(int)],
        "context_mood": [moods[i] for i in rng.integers(0, 4, n)],
        "query": [(None, "the matrix", "Ärger, matrix")[i] for i in rng.integers(0, 3, n)],
        "note": [None if i % 3 else f"n{i}" for i in range(n)],
    }
    made = pa.table(table)
    pq.write_table(pa.concat_tables([made, made.slice(5, 10)]), path, row_group_size=37)
    return path


def small(monkeypatch: pytest.MonkeyPatch, batch: int, bucket: int, group: int) -> None:
    monkeypatch.setattr(Component, "engine", Engine(EngineConfig(batch=batch)))
    for module in (_batches, splitter):
        monkeypatch.setattr(module, "BUCKET", bucket)
    for module in (_batches, transform):
        monkeypatch.setattr(module, "GROUP", group)


def through(folder: Path, source: Path, strategy: str, **config: Any) -> list[Path]:
    """The folders of the three steps."""
    folders = [folder / name for name in ("examples", "splits", "encoded")]
    for path in folders:
        path.mkdir(parents=True)
    ExampleGen(DataConfig(source=f"parquet:{source}")).run(folders[0])
    Splitter(SplitConfig(strategy=strategy, positive_threshold=3)).run(folders[1], Examples(folders[0], ""))
    Transform(TransformConfig(**config)).run(folders[2], Splits(folders[1], ""))
    return folders


def contents(folder: Path) -> dict[str, Any]:
    """What each file holds; of Parquet the values, not how they lie."""
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        assert path.is_file(), "no folder of buckets is left"
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            found[path.name] = (table.schema, {c: str(table[c].to_pylist()) for c in table.column_names})
        else:
            found[path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize("strategy", ["per_user_time", "global_time", "leave_last_out", "strong", "kfold"])
@pytest.mark.parametrize(("batch", "bucket", "group"), [(7, 20, 4), (50, 130, 60)])
def test_small_pieces_make_the_same_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, batch: int, bucket: int, group: int
) -> None:
    source = log(tmp_path / "log.parquet", strategy != "kfold")
    settings = {"fit_on": "all" if strategy == "strong" else "train", "min_count": 2, "time_contexts": ("daypart",)}
    whole = through(tmp_path / "whole", source, strategy, **settings)
    small(monkeypatch, batch, bucket, group)
    pieces = through(tmp_path / "pieces", source, strategy, **settings)
    for one, other in zip(whole, pieces, strict=True):
        assert contents(one) == contents(other)
    made = json.loads((whole[0] / "source.json").read_text())
    assert made["duplicates_dropped"] >= 10
    assert made["rows"] == 250 - made["duplicates_dropped"]

    file = pq.ParquetFile(pieces[2] / "train.parquet")
    users = [set(file.read_row_group(n)["user_key"].to_pylist()) for n in range(file.num_row_groups)]
    assert len(users) >= 2
    assert sum(map(len, users)) == len(set.union(*users)), "a row group ends where a user does"


def test_rows_that_only_share_a_hash_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = log(tmp_path / "log.parquet")
    whole = through(tmp_path / "whole", source, "per_user_time")
    monkeypatch.setattr(_hashing, "row_hashes", lambda table, keys: np.zeros(len(table), np.uint64))
    small(monkeypatch, 40, 90, 60)
    assert contents(whole[0]) == contents(through(tmp_path / "pieces", source, "per_user_time")[0])


def test_errors_name_the_row_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, 4, 100, 100)
    ids = [f"u{n}" for n in range(20)]
    pq.write_table(pa.table({"user": [*ids[:17], "", *ids[18:]], "item": ids}), tmp_path / "x.parquet")
    with pytest.raises(ShortlistError, match=r"Received: '' in data row 18\. Fill it in"):
        ExampleGen(DataConfig(source=f"parquet:{tmp_path / 'x.parquet'}")).run(tmp_path)


def test_parts_that_do_not_come_sorted_are_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [row(f"u{rng.integers(0, 9)}", f"i{n % 5}", n, rating=float(n)) for n in range(120)]
    splits = write_splits(tmp_path / "s", {"train": rows})
    expected = pq.read_table(encode(splits) / "train.parquet")
    path = splits / "train.parquet"
    table = pq.read_table(path)
    by_item = table.take(pa.array(np.argsort(table["item"].to_numpy(), kind="stable")))
    pq.write_table(by_item, path)
    small(monkeypatch, 11, 30, 10)
    found = pq.read_table(encode(splits) / "train.parquet")
    assert found["user_key"].to_pylist() == expected["user_key"].to_pylist()
    order = np.argsort(pq.read_table(path)["user"].to_numpy(), kind="stable")
    assert found["rating"].to_pylist() == by_item["rating"].take(pa.array(order)).to_pylist()


@pytest.fixture
def encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encoded:
    """40 users, the first with 90 rows and the others with up to 9, in row groups of about 10 rows."""
    rng = np.random.default_rng(1)
    rows = [
        row(f"u{u:02}", f"i{rng.integers(0, 12)}", t // 2, rating=4.0)
        for u in range(40)
        for t in range(90 if not u else u % 10)
    ]
    late = [row(f"u{u:02}", f"i{u % 12}", 200) for u in range(0, 40, 3)]
    small(monkeypatch, 25, 1000, 10)
    return encode(write_splits(tmp_path / "s", {"train": rows, "validation": late}))


def test_pieces_are_whole_users_of_all_parts(encoded: Encoded) -> None:
    data = EncodedData(encoded)
    for splits in (("train",), ("train", "validation", "test")):
        stored, everything = StoredRows(data, splits), data.rows(*splits)
        assert len(stored) > 10
        assert stored.sizes.sum() == len(everything["item"])
        read = [stored.read(np.array([n])) for n in range(len(stored))]
        keys = [set(piece["user_key"].tolist()) for piece in read]
        assert sum(map(len, keys)) == len(set.union(*keys))
        for name, values in everything.items():
            np.testing.assert_array_equal(np.concatenate([piece[name] for piece in read]), values)
        picked = np.array([7, 2, 5])
        some, mine = stored.read(picked), np.isin(everything["user_key"], list(keys[2] | keys[5] | keys[7]))
        for name, values in everything.items():
            np.testing.assert_array_equal(some[name], values[mine])


def test_row_groups_that_share_a_user_are_one_piece(encoded: Encoded) -> None:
    path = encoded / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=4)
    stored = StoredRows(EncodedData(encoded), ["train"])
    assert len(stored) < len(table) / 4
    assert stored.read(np.arange(len(stored)))["user_key"].tolist() == table["user_key"].to_pylist()


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_streamed_examples_are_those_in_memory(encoded: Encoded, size: int) -> None:
    data = EncodedData(encoded)

    def make(rows: dict[str, np.ndarray]) -> NextItemExamples:
        return NextItemExamples(rows, 4, 3)

    plain = make(data.rows("train"))
    stored = StoredRows(data, ["train"])
    streamed = StreamedExamples(stored, make, window=60)
    assert (len(streamed), streamed.labels) == (len(plain), plain.labels)
    np.testing.assert_allclose(streamed.label_counts(data.num_items), plain.label_counts(data.num_items))
    possible = set(lines(plain.at(plain.usable)))
    assert lines(streamed.one())[0] in possible

    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    epochs = [list(streamed.batches(rng, size)) for _ in range(2)]
    streamed.batches(again, size)  # an epoch that nobody looks at
    repeated = list(streamed.batches(again, size))
    for epoch in epochs:
        assert {len(batch["label"]) for batch in epoch[:-1]} <= {size}
        found = [line for batch in epoch for line in lines(batch)]
        assert set(found) <= possible
        assert Counter(user for user, *_ in found) == Counter(plain.epoch(rng)["user"].tolist())
    for one, other in zip(epochs[1], repeated, strict=True):
        np.testing.assert_array_equal(one["label"], other["label"])
    users = [np.concatenate([batch["user"] for batch in epoch]) for epoch in epochs]
    assert (users[0] != users[1]).any()


def test_a_window_is_drawn_from_the_whole_part(encoded: Encoded) -> None:
    stored = StoredRows(EncodedData(encoded), ["train"])
    rng = np.random.default_rng(0)
    firsts = [next(stored.windows(60, rng)) for _ in range(40)]
    assert set(np.concatenate(firsts)) == set(range(len(stored)))
    windows = list(stored.windows(60, rng))
    assert len(windows) == round(stored.sizes.sum() / 60) == 4
    assert sorted(np.concatenate(windows)) == list(range(len(stored)))
