"""RefreshGen and what Transform makes of it: today's catalogue, the new interactions, and rows that stay in place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tables
from tables import row

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Encoded, Splits
from shortlist.components.refresh_gen import RefreshConfig, RefreshGen
from shortlist.components.transform import Transform, TransformConfig

TRAIN = [row("bo", "x", 10), row("bo", "y", 20), row("al", "x", 15), row("al", "z", 30), row("al", "x", 40)]
TEST = [row("al", "rare", 50), row("cy", "y", 60)]
ITEMS: list[tables.Row] = [
    {"item": "z", "title": "Zed", "year": 1990, "genres": ["War", "Art"], "language": "en"},
    {"item": "x", "title": "Ex", "year": None, "genres": [], "language": "fr"},
    {"item": "y", "title": "Why", "year": 2000, "genres": ["War"], "language": None},
    {"item": "rare", "title": "Rare", "year": 2020, "genres": ["Noir"], "language": "en"},
]
TODAY = {
    "item": ["new", "x", "rare", "z"],
    "title": ["A new one", "Ex", "Rare", "Zed again"],
    "year": [2024, None, 2020, 1990],
    "genres": [["War", "Noir", "Art"], [], ["Noir"], ["War", "Art"]],
}


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    columns = {"language": pa.string()}
    return tables.write_splits(tmp_path / "s", {"train": TRAIN, "test": TEST}, ITEMS, item_columns=columns)


def write(path: Path, columns: dict[str, Any] | pa.Table) -> Path:
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
    return path


def refreshed(splits: Splits, earlier: Splits | None = None, name: str = "r", **files: Path) -> Splits:
    base = splits.uri.with_name("s_encoded")
    encoded = Encoded(base, "encoded") if base.exists() else tables.encode(splits)
    out = splits.uri.with_name(name)
    out.mkdir()
    config = parse(RefreshConfig, files)
    RefreshGen(config).run(out, splits, encoded, earlier)
    return Splits(out, name)


def encode(splits: Splits, **config: Any) -> EncodedData:
    out = splits.uri.with_name(f"{splits.uri.name}_encoded")
    out.mkdir()
    Transform(TransformConfig(**config)).run(out, splits)
    return EncodedData(Encoded(out, "encoded"))


def test_items_are_added_removed_and_retitled(splits: Splits, tmp_path: Path) -> None:
    made = refreshed(splits, items=write(tmp_path / "today.parquet", TODAY))
    items = {r["item"]: r for r in pq.read_table(made / "items.parquet").to_pylist()}
    assert {item: r["listed"] for item, r in items.items()} == {
        **{"new": True, "x": True, "rare": True, "z": True},
        "y": False,
    }
    assert items["z"]["title"] == "Zed again"
    assert items["y"] == {**ITEMS[2], "listed": False}
    assert items["z"]["language"] == "en"  # a column that the file does not have stays
    assert items["new"] == {**{n: c[0] for n, c in TODAY.items()}, "language": None, "listed": True}
    assert json.loads((made / "refresh.json").read_text()) == {
        **{"items": 4, "added": 2, "removed": 1, "changed": 1},
        **{"interactions": 0, "users": 0, "new_users": 0, "unknown_items": 0},
    }
    assert pq.read_table(made / "fitted_items.parquet").equals(pq.read_table(splits / "items.parquet"))
    for name in ("train", "test"):
        assert pq.read_table(made / f"{name}.parquet").equals(pq.read_table(splits / f"{name}.parquet"))


def test_when_an_item_came(tmp_path: Path) -> None:
    """What the run knew stays; a new one came when the file says, or at the newest event that is known."""
    columns = {"added": pa.int64()}
    items = [{"item": "x", "added": 5}, {"item": "y"}]
    splits = tables.write_splits(tmp_path / "s", {"train": TRAIN, "test": TEST}, items, item_columns=columns)
    today = {"item": ["x", "y", "z", "new", "dated"], "added": pa.array([5, None, None, None, 33], pa.int64())}
    made = refreshed(splits, items=write(tmp_path / "today.parquet", today))
    found = pq.read_table(made / "items.parquet").to_pylist()
    assert {r["item"]: r["added"] for r in found if r["listed"]} == {
        **{"x": 5, "y": None, "z": None},
        **{"new": 60, "dated": 33},
    }


def test_rows_stay_in_place_and_new_ones_stand_behind(splits: Splits, tmp_path: Path) -> None:
    before = EncodedData(tables.encode(splits))
    log = {"user": ["di", "al", "di"], "item": ["new", "y", "nobody's"], "timestamp": [70, 80, 75]}
    files = {"items": write(tmp_path / "today.parquet", TODAY), "interactions": write(tmp_path / "log.parquet", log)}
    after = encode(refreshed(splits, **files))
    assert after.items["id"].tolist() == [*before.items["id"], "new", "rare"]
    users = (before.artifact / "users.txt").read_text()
    assert (after.artifact / "users.txt").read_text() == f"{users}di\n"
    for name in ("genres.txt", "category_language.txt"):
        assert (after.artifact / name).read_text() == (before.artifact / name).read_text()
    same = ("genres", "year_boundaries", "time_quantiles", "request", "time")
    assert {n: after.state[n] for n in same} == {n: before.state[n] for n in same}
    assert (after.num_items, after.num_users) == (7, 5)
    assert [after.items["id"][r] for r in np.flatnonzero(after.closed)] == ["y"]
    assert not before.closed.any()
    row_of = {item: n for n, item in enumerate(after.items["id"])}
    assert after.items["title"][row_of["z"]] == "Zed again"
    genres = {item: after.items["genres"][row_of[item]].tolist() for item in ("new", "rare", "z", "y")}
    assert genres == {"new": [1, 1], "rare": [0, 0], "z": [1, 1], "y": [0, 1]}  # Noir was no genre of the training part
    new = tables.columns(after.artifact, "new")
    by_user = {u: [(after.items["id"][i], t) for k, i, t in zip(new["user"], new["item"], new["timestamp"], strict=True)
                   if k == r] for u, r in (("al", 2), ("di", 4))}  # fmt: skip
    assert by_user == {"al": [("y", 80)], "di": [("new", 70), ("", 75)]}
    assert new["item"].tolist().count(1) == 1  # of no item
    assert tables.columns(after.artifact, "test")["item"].tolist() == [row_of["rare"], row_of["y"]]
    assert tables.columns(before.artifact, "test")["item"].tolist() == [1, row_of["y"]]
    np.testing.assert_array_equal(after.fitted_rows()["item"], before.fitted_rows()["item"])


def test_what_was_fitted_on_everything_is_fitted_on_the_same_again(splits: Splits, tmp_path: Path) -> None:
    config = {"fit_on": "all"}
    before = EncodedData(tables.encode(splits, **config))
    log = {"user": ["di"] * 9, "item": ["x"] * 9, "timestamp": np.arange(70, 79)}
    files = {"items": write(tmp_path / "today.parquet", TODAY), "interactions": write(tmp_path / "log.parquet", log)}
    after = encode(refreshed(splits, **files), **config)
    assert after.items["id"].tolist() == [*before.items["id"], "new"]
    assert after.state["time_quantiles"] == before.state["time_quantiles"]
    assert len(after.fitted_rows()["item"]) == len(before.fitted_rows()["item"]) == 7


def test_known_interactions_are_dropped_and_those_of_the_refresh_before_stay(splits: Splits, tmp_path: Path) -> None:
    items = write(tmp_path / "today.parquet", TODAY)
    monday = {"user": ["bo", "di", "di"], "item": ["x", "x", "x"], "timestamp": [10, 70, 70]}
    first = refreshed(splits, name="r1", items=items, interactions=write(tmp_path / "monday.parquet", monday))
    found = pq.read_table(first / "new.parquet")
    assert found.select(["user", "item", "timestamp"]).to_pylist() == [{"user": "di", "item": "x", "timestamp": 70}]
    assert found.schema.equals(pq.read_table(splits / "train.parquet").schema)
    tuesday = {"user": ["di", "ed"], "item": ["x", "z"], "timestamp": [70, 90], "rating": [3, 4], "mood": ["a", "b"]}
    log = write(tmp_path / "tuesday.parquet", tuesday)
    second = refreshed(splits, first, name="r2", items=items, interactions=log)
    rows = pq.read_table(second / "new.parquet").to_pylist()
    assert [(r["user"], r["timestamp"], r["rating"]) for r in rows] == [("di", 70, None), ("ed", 90, 4.0)]
    third = refreshed(splits, second, name="r3", items=items)
    assert pq.read_table(third / "new.parquet").equals(pq.read_table(second / "new.parquet"))
    users = pq.read_table(second / "users.parquet")["user"].to_pylist()
    assert sorted(users) == ["al", "bo", "cy", "di", "ed"]
    counts = json.loads((second / "refresh.json").read_text())
    assert (counts["interactions"], counts["users"], counts["new_users"]) == (2, 2, 2)


def test_columns_have_the_names_of_the_run(splits: Splits, tmp_path: Path) -> None:
    (tmp_path / "today.csv").write_text("film,title\nx,Ex\nz,Zed\n007,Seven\n")
    (tmp_path / "log.csv").write_text("film,who,timestamp\n007,di,99\n")
    config = {"columns": {"item": "film", "user": "who", "rating": "stars"}}
    made = refreshed(splits, items=tmp_path / "today.csv", interactions=tmp_path / "log.csv", **config)
    assert pq.read_table(made / "items.parquet")["item"].to_pylist() == ["x", "z", "007", "y", "rare"]
    assert pq.read_table(made / "new.parquet")["item"].to_pylist() == ["007"]


def refusal(splits: Splits, **files: Any) -> str:
    with pytest.raises(ShortlistError) as error:
        refreshed(splits, **files)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"title": ["a"]}, "`item` must be a column of today.parquet. Received the columns: title."),
        ({"item": pa.array([], pa.string())}, "`items` must hold at least one row."),
        ({"item": ["x", "z", "x"]}, "`item` of today.parquet must be unique. Received: 'x' in 2 rows."),
        ({"item": ["x", None]}, "`item` of today.parquet must be there in every row. Received: None in data row 2."),
        ({"item": ["x", ""]}, "`item` of today.parquet must be there in every row. Received: '' in data row 2."),
        ({"item": [1.5, 2.5]}, "`item` of today.parquet must hold text or whole numbers."),
        ({"item": ["x", "z"], "year": ["old", "new"]}, "`year` of today.parquet must be a year or empty."),
        ({"item": ["x", "z"], "language": [["a"], ["b"]]}, "`language` of today.parquet must hold string, as in the"),
        ({"item": ["a", "b", "x"]}, "`--items` must be the whole catalogue, not only what is new: it lacks 2 of the "
         "run's 3 items, and they would never be returned again. If that is meant, give --most-removed 1."),
    ],
)  # fmt: skip
def test_items_that_cannot_be_are_refused(
    splits: Splits, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    assert refusal(splits, items=write(tmp_path / "today.parquet", columns)).startswith(message)


def test_a_catalogue_may_lose_as_much_as_is_said(splits: Splits, tmp_path: Path) -> None:
    made = refreshed(splits, items=write(tmp_path / "today.parquet", {"item": ["a"]}), most_removed=1.0)
    assert json.loads((made / "refresh.json").read_text())["removed"] == 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": ["al"]}, "`item` must be a column of log.parquet."),
        ({"user": pa.array([], pa.string()), "item": pa.array([], pa.string())}, "`interactions` must hold at least"),
        ({"user": ["al"], "item": ["x"], "timestamp": ["yesterday"]}, "`timestamp` of log.parquet must be seconds"),
        ({"user": [None], "item": ["x"]}, "`user` of log.parquet must be there in every row."),
        ({"user": ["al"], "item": ["x"], "rating": [float("nan")]}, "`rating` of log.parquet must be a finite number"),
    ],
)
def test_interactions_that_cannot_be_are_refused(
    splits: Splits, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    items = write(tmp_path / "today.parquet", TODAY)
    assert refusal(splits, items=items, interactions=write(tmp_path / "log.parquet", columns)).startswith(message)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    def external(**files: Path) -> str:
        with pytest.raises(ShortlistError) as error:
            RefreshGen(parse(RefreshConfig, files)).external()
        return str(error.value)

    (tmp_path / "empty.parquet").write_text("")
    (tmp_path / "ok.csv").write_text("item\nx\n")
    missing = tmp_path / "missing.parquet"
    assert external(items=missing).startswith(f"`--items` must be a file that can be read. Received: {missing}")
    assert external(items=tmp_path).startswith("`--items` must be one file, not a folder.")
    assert external(items=tmp_path / "empty.parquet").startswith("`--items` must not be empty.")
    assert external(items=tmp_path / "ok.csv", interactions=missing).startswith("`--interactions` must be a file")
