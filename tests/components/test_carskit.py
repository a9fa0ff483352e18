"""The source `carskit:`: both layouts, what is missing, and the shared sets."""

from pathlib import Path
from typing import Any

import pytest
from data_cases import generate, refuse, table

DEPAUL = {"context_Time", "context_Location", "context_Companion"}


def written(folder: Path, *lines: str) -> str:
    path = folder / "ratings.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return f"carskit:{path}"


def rows(folder: Path, source: str, **config: Any) -> list[dict[str, Any]]:
    found = table(generate(folder, source=source, **config), "interactions").to_pylist()
    absent = ("timestamp", "event", "watch_time", "query")
    assert all(row[name] is None for row in found for name in absent if name != "event")
    return [{name: value for name, value in row.items() if name not in absent} for row in found]


def test_the_wide_layout(tmp_path: Path) -> None:
    source = written(
        tmp_path, "userid,itemid,rating,Time, Place", "7,a,4,Weekend,-1", "7,b,2.5,na, Home ", "8,a,NA,NULL,"
    )
    assert rows(tmp_path, source) == [
        {"user": "7", "item": "a", "rating": 4.0, "context_Time": "Weekend", "context_Place": None},
        {"user": "7", "item": "b", "rating": 2.5, "context_Time": None, "context_Place": "Home"},
    ]


def test_the_binary_layout_is_the_same_table(tmp_path: Path) -> None:
    head = "user,item,rating,Time:Weekend,Time:Weekday,Time:na,Place:Home"
    source = written(tmp_path, head, "7,a,4,1,0,0,0", "7,b,2,0,0,1,1", "8,a,3,0,1,0,0", "8,b,1,0,0,0,0")
    found = [(r["context_Time"], r["context_Place"]) for r in rows(tmp_path, source)]
    assert found == [("Weekend", None), (None, "Home"), ("Weekday", None), (None, None)]


def test_tabs_a_column_map_and_named_dimensions(tmp_path: Path) -> None:
    source = written(tmp_path, "visitor\titemID\trating\tage\tmood", "7\ta\t4\t30\tsad", "8\ta\t0\tNULL\tNULL")
    config: dict[str, Any] = {"columns": {"user": "visitor"}, "contexts": ["mood"]}
    assert rows(tmp_path, source, **config) == [
        {"user": "7", "item": "a", "rating": 4.0, "context_mood": "sad", "age": "30"},
        {"user": "8", "item": "a", "rating": 0.0, "context_mood": None, "age": "NULL"},
    ]
    assert [r["user"] for r in rows(tmp_path, source, unrated_zero=True, **config)] == ["7"]


@pytest.mark.parametrize(
    ("lines", "config", "message"),
    [
        (
            ["user,item,rating,T:a,T:b", "1,2,3,1,1"],
            {},
            "`T` of ratings.txt must have one condition at most. Received: T:a, T:b in data row 1.",
        ),
        (
            ["user,item,rating,T:a", "1,2,3,0", "1,2,3,x"],
            {},
            "`T:a` of ratings.txt must be 0 or 1. Received: 'x' in data row 2.",
        ),
        (
            ["user,item,rating,Time", "1,2,good,x"],
            {},
            "`rating` of ratings.txt must be a finite number or empty. Received: 'good' in data row 1.",
        ),
        (
            ["user,item,rating,Time", "1,2,3,x"],
            {"contexts": ["Tim"]},
            "`contexts` must name dimensions of ratings.txt: Time. Received: 'Tim'.",
        ),
        (
            ["who,item,rating", "1,2,3"],
            {"columns": {"user": "whom"}},
            "`columns.user` must be a column of the source. Received: 'whom'; the columns are who, item, rating.",
        ),
        (
            ["user,item,rating,Time", "1,2,3,x"],
            {"columns": {"context_t": "Time"}},
            "`columns.context_t` must be one of user, item, rating, timestamp; name dimensions by `contexts`. "
            "Received: Time.",
        ),
        (
            ["user,item,rating,rating", "1,2,3,4"],
            {},
            "`source` must name each column once. Received: 'rating' twice in {path}.",
        ),
        (["user,item,rating", "1,2,NA"], {}, "`source` must hold at least one rating. Received: {path}, 1 rows."),
        (
            ["user,item,rating", "1,2,0"],
            {"unrated_zero": True},
            "`source` must hold at least one rating. Received: {path}, 1 rows.",
        ),
        (
            ["user,item,score", "1,2,3"],
            {},
            "`rating` must be a column of ratings.txt. Received the columns: user, item, score. Say which one it is: "
            "--set data.columns.rating=NAME.",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, lines: list[str], config: dict[str, Any], message: str) -> None:
    source = written(tmp_path, *lines)
    expected = message.replace("{path}", str(tmp_path / "ratings.txt"))
    assert refuse(tmp_path, source=source, **config) == expected


def test_lines_of_different_lengths_are_refused(tmp_path: Path) -> None:
    message = refuse(tmp_path, source=written(tmp_path, "user,item,rating", "1,2,3", "1,2"))
    assert message.startswith("`source` must be a table in UTF-8 with the same columns in every line. Received: ")


def test_settings_of_this_source_belong_to_it(tmp_path: Path) -> None:
    message = refuse(tmp_path, source="demo", contexts=["a"])
    assert message == (
        "`contexts` belongs to a source of the form carskit:. Received: source 'demo'. Leave `contexts` out."
    )


@pytest.mark.data
def test_the_shared_sets(tmp_path: Path, archive_dir: Path) -> None:
    depaul = table(generate(tmp_path, source=f"carskit:{archive_dir / 'depaulmovie/ratings.txt'}"), "interactions")
    assert (len(depaul), len(depaul["user"].unique()), len(depaul["item"].unique())) == (5029, 97, 79)  # 14 repeat
    assert {name for name in depaul.column_names if name.startswith("context_")} == DEPAUL
    assert depaul["context_Companion"].unique().drop_null().sort().to_pylist() == ["Alone", "Family", "Partner"]
    source = f"carskit:{archive_dir / 'sts/Data_STS.csv'}"
    sts = table(generate(tmp_path / "sts", source=source, contexts=["season", "weather"]), "interactions")
    assert (len(sts["user"].unique()), len(sts["item"].unique())) == (325, 249)
    assert sts["context_season"].unique().drop_null().sort().to_pylist() == ["1", "2", "3", "4"]
