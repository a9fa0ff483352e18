import numpy as np
import pyarrow as pa
import pytest
from data_cases import generate, refuse, table, write

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.components.example_gen import DataConfig

FORMS = ("csv", "parquet")
USER, ITEM = ["u1", "u2"], ["a", "b"]


# --- good input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_column_has_its_type_and_absent_ones_are_null(tmp_path, form):
    columns = {"item": ITEM, "rating": [4.5, 2.0], "user": USER, "device": ["tv", "phone"], "context_day": ["mon", ""]}
    examples = generate(tmp_path, source=f"{form}:{write(tmp_path / f'log.{form}', columns)}")
    found = table(examples, "interactions")
    assert found.schema == pa.schema(
        {
            "user": pa.string(),
            "item": pa.string(),
            "timestamp": pa.int64(),
            "event": pa.string(),
            "rating": pa.float32(),
            "watch_time": pa.float32(),
            "query": pa.string(),
            "context_day": pa.string(),
            "device": pa.string(),
        }
    )
    assert found.to_pylist()[0] == {
        "user": "u1",
        "item": "a",
        "timestamp": None,
        "event": "watch",
        "rating": 4.5,
        "watch_time": None,
        "query": None,
        "context_day": "mon",
        "device": "tv",
    }
    assert found["context_day"].to_pylist() == ["mon", None]
    items = table(examples, "items")
    assert items.schema == pa.schema(
        {
            "item": pa.string(),
            "title": pa.string(),
            "year": pa.int16(),
            "added": pa.int64(),
            "genres": pa.list_(pa.string()),
        }
    )
    assert items.to_pylist() == [
        {"item": name, "title": None, "year": None, "added": None, "genres": []} for name in ITEM
    ]
    assert table(examples, "users").to_pydict() == {"user": USER}
    assert examples.read_json("source.json") == {
        "source": f"{form}:{tmp_path / f'log.{form}'}",
        "name": f"log.{form}",
        "licence": "not stated",
        "citation": "not stated",
        "homepage": "not stated",
        "rows": 2,
        "duplicates_dropped": 0,
    }


@pytest.mark.parametrize("form", FORMS)
def test_ids_stay_exactly_as_they_are_written(tmp_path, form):
    written = ["007", "NA", "null", "1.0", " x ", "é,\t"]
    path = write(tmp_path / f"log.{form}", {"user": written, "item": written})
    found = table(generate(tmp_path, source=f"{form}:{path}"), "interactions")
    assert found["user"].to_pylist() == written
    assert found["item"].to_pylist() == written


@pytest.mark.parametrize("values", [pa.array([7, 12]), pa.array(["7", "12"]).dictionary_encode()])
def test_parquet_ids_of_another_type_become_text(tmp_path, values):
    path = write(tmp_path / "log.parquet", {"user": values, "item": values})
    assert table(generate(tmp_path, source=f"parquet:{path}"), "interactions")["user"].to_pylist() == ["7", "12"]


def test_csv_accepts_a_byte_order_mark_and_one_row(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"\xef\xbb\xbfuser,item\nu,i\n")
    assert table(generate(tmp_path, source=f"csv:{tmp_path / 'log.csv'}"), "interactions").num_rows == 1


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (["0", "", "-5"], [0, None, -5]),
        (["1260759144.9", "NA", "2e9"], [1260759144, None, 2_000_000_000]),
        (["1970-01-02", "null", "1970-01-01T00:01:00.987"], [86_400, None, 60]),
        (["1970-01-02 00:00:00Z", "", "1970-01-02T02:00:00+02:00"], [86_400, None, 86_400]),
    ],
)
def test_timestamps_of_a_csv_file(tmp_path, written, seconds):
    path = write(tmp_path / "log.csv", {"user": list("abc"), "item": list("abc"), "timestamp": written})
    assert table(generate(tmp_path, source=f"csv:{path}"), "interactions")["timestamp"].to_pylist() == seconds


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (pa.array([1_500, -1_500], pa.timestamp("ms")), [1, -2]),
        (pa.array([90_000, None], pa.timestamp("s", "Europe/Rome")), [90_000, None]),
        (pa.array([1, 2], pa.date32()), [86_400, 172_800]),
        (pa.array([1.9, -1.5]), [1, -2]),
        (pa.array([3, None], pa.uint16()), [3, None]),
    ],
)
def test_timestamps_of_a_parquet_file(tmp_path, written, seconds):
    path = write(tmp_path / "log.parquet", {"user": USER, "item": ITEM, "timestamp": written})
    assert table(generate(tmp_path, source=f"parquet:{path}"), "interactions")["timestamp"].to_pylist() == seconds


@pytest.mark.parametrize("form", FORMS)
def test_the_column_map_renames_in_every_table(tmp_path, form):
    log = {"uid": USER, "film": ITEM, "item": ["x", "y"], "when": [5, 6], "day": ["mon", "tue"]}
    films = {
        "film": ["b", "c"],
        "name": ["B", ""],
        "genres": ["Comedy|Drama ", "(no genres listed)"],
        "year": ["1994.0", ""],
    }
    people = {"uid": ["u2", "u9"], "age": [30, 40]}
    examples = generate(
        tmp_path,
        source=f"{form}:{write(tmp_path / f'log.{form}', log)}",
        items=write(tmp_path / f"films.{form}", films),
        users=write(tmp_path / f"people.{form}", people),
        columns={"user": "uid", "item": "film", "title": "name", "timestamp": "when", "context_day": "day"},
    )
    found = table(examples, "interactions")
    assert found["item"].to_pylist() == ITEM
    assert found["timestamp"].to_pylist() == [5, 6]
    assert found["context_day"].to_pylist() == ["mon", "tue"]
    assert found.column_names[-1] == "context_day"
    assert table(examples, "items").to_pylist() == [
        {"item": "b", "title": "B", "year": 1994, "added": None, "genres": ["Comedy", "Drama"]},
        {"item": "c", "title": None, "year": None, "added": None, "genres": []},
        {"item": "a", "title": None, "year": None, "added": None, "genres": []},
    ]
    assert table(examples, "users").to_pydict() == {"user": ["u2", "u9", "u1"], "age": [30, 40, None]}


def test_events_are_watches_unless_they_say_otherwise(tmp_path):
    path = write(tmp_path / "log.csv", {"user": list("abc"), "item": list("abc"), "event": ["impression", "", "watch"]})
    found = table(generate(tmp_path, source=f"csv:{path}"), "interactions")
    assert found["event"].to_pylist() == ["impression", "watch", "watch"]


def test_dropped_duplicates_are_counted(tmp_path):
    columns = {"user": ["u"] * 4, "item": ["i"] * 4, "timestamp": [1, 1, 2, 1], "rating": [3, 4, 5, 3]}
    examples = generate(tmp_path, source=f"csv:{write(tmp_path / 'log.csv', columns)}")
    assert table(examples, "interactions")["rating"].to_pylist() == [3, 5]
    assert examples.read_json("source.json")["duplicates_dropped"] == 2
    assert examples.read_json("source.json")["rows"] == 2


def test_the_fingerprint_follows_the_content_of_every_file(tmp_path):
    log, films = tmp_path / "log.csv", tmp_path / "films.csv"
    config = {"source": f"csv:{log}", "items": write(films, {"item": ["a"], "title": ["A"]})}
    write(log, {"user": USER, "item": ITEM})
    first = generate(tmp_path, **config).fingerprint
    assert generate(tmp_path, **config).fingerprint == first
    write(films, {"item": ["a"], "title": ["Aa"]})
    assert generate(tmp_path, **config).fingerprint != first


# --- bad input -------------------------------------------------------------------------------------------------------

CASES = [
    ("user", ["u", ""], "'' in data row 2", "must be there in every row", " Fill it in or leave the row out."),
    ("item", ["", "i"], "'' in data row 1", "must be there in every row", " Fill it in or leave the row out."),
    ("item", ["i", "a\nb"], "'a\\nb' in data row 2", "must hold no line break and no NUL character", ""),
    ("user", ["a\0b", "u"], "'a\\x00b' in data row 1", "must hold no line break and no NUL character", ""),
    ("rating", ["4", "abc"], "'abc' in data row 2", "must be a finite number or empty", ""),
    ("rating", ["nan", "4"], "'nan' in data row 1", "must be a finite number or empty", ""),
    ("rating", ["", "-inf"], "'-inf' in data row 2", "must be a finite number or empty", ""),
    ("rating", ["1", "1e39"], "'1e39' in data row 2", "must be a finite number or empty", ""),
    ("watch_time", ["1", "inf"], "'inf' in data row 2", "must be a finite number or empty", ""),
    ("watch_time", ["1", "-3"], "-3.0 in data row 2", "must be seconds, at least 0", ""),
    (
        "event",
        ["watch", "click"],
        "'click' in data row 2",
        "must be watch or impression",
        " Rename or leave out the other rows.",
    ),
    (
        "timestamp",
        ["1", "1260759144000"],
        "'1260759144000' in data row 2",
        "must lie before the year 2100",
        " It looks like milliseconds: divide the column by 1000.",
    ),
    ("timestamp", ["2020-01-01", "9999-12-31"], "'9999-12-31' in data row 2", "must lie before the year 2100", ""),
    *(
        (
            "timestamp",
            values,
            f"{values[row]!r} in data row {row + 1}",
            "must be seconds since 1970 or an ISO 8601 date and time, the same form in every row, or empty",
            "",
        )
        for values, row in ((["", "soon"], 1), (["5", "2020-01-01"], 1), (["nan", "5"], 0), (["2020-01-01", "5"], 1))
    ),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("column", "values", "received", "rule", "remedy"), CASES)
def test_a_value_that_cannot_be_is_refused_with_its_row(tmp_path, form, column, values, received, rule, remedy):
    path = write(tmp_path / f"log.{form}", {"user": USER, "item": ITEM, column: values})
    message = refuse(tmp_path, source=f"{form}:{path}")
    assert message == f"`{column}` of log.{form} {rule}. Received: {received}.{remedy}"


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "user",
            pa.array(["u", None]),
            "must be there in every row. Received: None in data row 2. Fill it in or leave the row out.",
        ),
        (
            "user",
            pa.array([1.0, 2.0]),
            "must hold text or whole numbers. Received: a column of type double. Convert it to text first.",
        ),
        ("rating", pa.array([1.0, np.nan]), "must be a finite number or empty. Received: nan in data row 2."),
        (
            "rating",
            pa.array([[1], [2]]),
            "must be a finite number or empty. Received: a column of type list<item: int64>.",
        ),
        ("watch_time", pa.array([np.inf, 1.0]), "must be a finite number or empty. Received: inf in data row 1."),
        (
            "timestamp",
            pa.array([1, 1_600_000_000_000]),
            "must lie before the year 2100. Received: 1600000000000 in data row 2. It looks like milliseconds: divide "
            "the column by 1000.",
        ),
    ],
)
def test_a_parquet_column_of_the_wrong_type_or_value_is_refused(tmp_path, column, values, message):
    path = write(tmp_path / "log.parquet", {"user": USER, "item": ITEM, column: values})
    found = refuse(tmp_path, source=f"parquet:{path}").replace("element", "item")
    assert found == f"`{column}` of log.parquet {message}"


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_none_is_refused(tmp_path, form):
    path = tmp_path / f"log.{form}"
    source = f"{form}:{path}"
    missing = f"`source` must be a file that can be read. Received: {path}: No such file or directory. Check the path."
    assert refuse(tmp_path, source=source) == missing
    path.mkdir()
    assert refuse(tmp_path, source=source) == f"`source` must be one file, not a folder. Received: {path}."
    path.rmdir()
    path.touch()
    assert refuse(tmp_path, source=source) == f"`source` must not be empty. Received: {path}, a file of 0 bytes."
    write(path, {"user": pa.array([], pa.string()), "item": pa.array([], pa.string())})
    no_rows = f"`source` must hold at least one row. Received: {path}, a table without rows."
    assert refuse(tmp_path, source=source) == no_rows


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_column_is_refused_with_the_nearest_name(tmp_path, form):
    path = write(tmp_path / f"log.{form}", {"userId": USER, "movie": ITEM})
    assert refuse(tmp_path, source=f"{form}:{path}") == (
        f"`user` must be a column of log.{form}. Received the columns: userId, movie. Say which one it is: "
        "--set data.columns.user=userId."
    )
    assert refuse(tmp_path, source=f"{form}:{path}", columns={"user": "userId"}) == (
        f"`item` must be a column of log.{form}. Received the columns: userId, movie. Say which one it is: "
        "--set data.columns.item=NAME."
    )
    assert refuse(tmp_path, source=f"{form}:{path}", columns={"user": "userid"}) == (
        f"`columns.user` must be a column of log.{form}. Received: 'userid'; the columns are userId, movie. Did you "
        "mean userId?"
    )


@pytest.mark.parametrize("form", FORMS)
def test_items_and_users_are_checked_as_well(tmp_path, form):
    source = f"{form}:{write(tmp_path / f'log.{form}', {'user': USER, 'item': ITEM})}"
    side = tmp_path / f"side.{form}"

    def refused(columns: dict, setting: str = "items") -> str:
        return refuse(tmp_path, source=source, **{setting: write(side, columns)})

    twice = f"`item` of side.{form} must be unique. Received: 'a' in 2 rows."
    assert refused({"item": ["a", "b", "a"]}) == twice
    assert refused({"user": ["u", "u"]}, "users") == f"`user` of side.{form} must be unique. Received: 'u' in 2 rows."
    assert refused({"movieId": ["a"], "title": ["A"]}) == (
        f"`item` must be a column of side.{form}. Received the columns: movieId, title. Say which one it is: "
        "--set data.columns.item=NAME."
    )
    assert refused({"item": ["a", "b"], "year": ["1994", "198x"]}) == (
        f"`year` of side.{form} must be a year or empty. Received: '198x' in data row 2."
    )
    assert refused({"item": ["a"], "year": ["40000"]}).startswith(f"`year` of side.{form} must be a year or empty.")
    assert refused({"item": ["a", ""]}).startswith(f"`item` of side.{form} must be there in every row.")
    assert refuse(tmp_path, source=source, items=tmp_path / "none.csv").startswith("`items` must be a file that can be")


@pytest.mark.parametrize(
    "content",
    [
        b"user,item\nu,i,x\n",
        b"user,item\nu,\xe9\n",
        b"user,item,note\nu,i,\xe9\n",
        b"us\xe9r,item\nu,i\n",
        "user,item\nu,i\n".encode("utf-16"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_refused(tmp_path, content):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    message = refuse(tmp_path, source=f"csv:{path}")
    assert message.startswith(f"`source` must be a CSV file in UTF-8. Received: {path}: ")
    assert message.endswith(" Convert it, or fetch it again.")


def test_a_column_named_twice_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,user\nu,i,v\n")
    message = refuse(tmp_path, source=f"csv:{tmp_path / 'log.csv'}")
    assert message == f"`source` must name each column once. Received: user twice in {tmp_path / 'log.csv'}."


@pytest.mark.parametrize("kept", [4, 0.5, 0.99])
def test_a_truncated_parquet_file_is_refused(tmp_path, kept):
    path = write(tmp_path / "log.parquet", {"user": USER * 500, "item": ITEM * 500, "timestamp": list(range(1000))})
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    message = refuse(tmp_path, source=f"parquet:{path}")
    assert message.startswith(f"`source` must be a whole Parquet file. Received: {path}: ")


def test_a_damaged_page_of_a_parquet_file_is_refused(tmp_path):
    path = write(tmp_path / "log.parquet", {"user": [f"u{i}" for i in range(2000)], "item": ITEM * 1000})
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    message = refuse(tmp_path, source=f"parquet:{path}")
    assert message.startswith(f"`source` must be a whole Parquet file. Received: {path}: ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"source": "json:x"},
            "`source` must be one of: demo, tfds:movielens/latest-small (or 100k, 1m, 20m, 25m), csv:PATH, "
            "parquet:PATH, carskit:PATH, simulated (or simulated:impressions=50000,seed=1). Received: 'json:x'.",
        ),
        ({"source": "csv:"}, "Received: 'csv:'."),
        ({"source": "demo:x"}, "Received: 'demo:x'."),
        (
            {"source": "demo", "archive_dir": "x"},
            "`archive_dir` belongs to a source of the form tfds:. Received: source 'demo'. Leave `archive_dir` out.",
        ),
        (
            {"source": "demo", "columns": {"user": "x"}},
            "`columns` belongs to a source of the form csv: or parquet: or carskit:. Received: source 'demo'. Leave "
            "`columns` out.",
        ),
        ({"sorce": "demo"}, "`sorce` is not a setting of data. Did you mean `source`?"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ShortlistError) as error:
        parse(DataConfig, config, "data")
    assert str(error.value).endswith(message)
