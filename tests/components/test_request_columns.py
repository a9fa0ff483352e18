"""What a request says beside user, history and time: rows by hand, times by the calendar, and the same in a graph."""

from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import columns, encode, row, write_splits

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData, build_queries
from shortlist.components._request_columns import CONDITIONS
from shortlist.components.exporter import of_users
from shortlist.components.transform import TransformConfig
from shortlist.models._transform import RequestReader, TimeContext, split_words

ZONES = ("UTC", "Europe/Vienna", "Asia/Kolkata", "America/St_Johns", "Australia/Lord_Howe")
TRAIN = [
    row("al", "x", 10, context_mood="calm", query="The Matrix"),
    row("al", "y", 20, context_mood="wild", query="matrix: reloaded!"),
    row("bo", "x", 30, context_mood="calm"),
    row("bo", "z", 40, context_mood=None, query="ÄRGER"),
]
TEST = [
    row("al", "z", 50, context_mood="eerie", query="unheard matrix"),
    row("al", "x", 60, context_mood="calm"),
    row("cy", "x", 55, context_mood="calm", query="a b c d e f g matrix"),
]
USERS = {"gender": {"al": "w", "bo": "m", "cy": "d"}, "age": {"al": 30.0, "bo": 20.0, "cy": 99.0}}


def encoded(folder: Path, **config: Any) -> EncodedData:
    splits = write_splits(folder / "s", {"train": TRAIN, "test": TEST}, user_columns=USERS)
    return EncodedData(encode(splits, query_length=4, **config))


def test_rows_by_hand(tmp_path: Path) -> None:
    data = encoded(tmp_path)
    assert data.kinds == {
        "user_gender": "category",
        "user_age": "number",
        "context_mood": "category",
        "query": "tokens",
    }
    train, test = columns(data.artifact, "train"), columns(data.artifact, "test")
    assert train["context_mood"].tolist() == [2, 3, 2, 0]
    assert test["context_mood"].tolist() == [0, 2, 2]  # a condition that train never had is as good as missing
    words = (data.artifact / "query.txt").read_text().splitlines()
    assert words[0] == "matrix"
    assert set(words) == {"matrix", "the", "reloaded", "ärger"}
    place = {word: n for n, word in enumerate(words, 2)}
    said = data.searches[train["query"]].tolist()
    expected = [["the", "matrix"], ["matrix", "reloaded"], [], ["ärger"]]
    assert said == [[place[w] for w in line] + [0] * (4 - len(line)) for line in expected]
    assert data.searches[test["query"]].tolist() == [[1, place["matrix"], 0, 0], [0] * 4, [1] * 4]

    of_user = dict(
        zip(data.users["id"], zip(data.users["user_gender"], data.users["user_age"], strict=True), strict=True)
    )
    gender = (data.artifact / "user_gender.txt").read_text().splitlines()
    assert of_user == {"al": (gender.index("w") + 2, 30), "bo": (gender.index("m") + 2, 20), "cy": (1, 99)}
    np.testing.assert_allclose(data.state["request"]["user_age"]["quantiles"], np.linspace(20, 30, 101))


def test_a_query_says_what_its_first_row_does(tmp_path: Path) -> None:
    data = encoded(tmp_path)
    queries = build_queries(data, "test")
    assert [data.users["id"][key] for key in queries.user_key] == ["al", "cy"]
    ((_, batch),) = queries.batches(8)
    assert batch["context_mood"].tolist() == [0, 2]
    assert batch["user_age"].tolist() == [30, 99]
    assert batch["query"].shape == (2, 4)


@given(st.sampled_from(ZONES), st.lists(st.integers(0, 2_145_000_000), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_time_contexts_are_those_of_the_calendar(zone: str, times: list[int]) -> None:
    for dimension, conditions in CONDITIONS.items():
        found = [conditions[n - 2] for n in TimeContext(dimension, zone)(tf.constant(times, tf.int64)).numpy()]
        for condition, time in zip(found, times, strict=True):
            local = datetime.fromtimestamp(time, ZoneInfo(zone))
            wanted = {
                "daypart": ("night", "morning", "afternoon", "evening")[local.hour // 6],
                "weekday": local.strftime("%A").lower(),
                "weekend": "weekend" if local.isoweekday() > 5 else "workday",
                "season": ("winter", "spring", "summer", "autumn")[local.month % 12 // 3],
            }
            assert condition == wanted[dimension]


def test_the_hour_changes_with_the_second_of_summer_time() -> None:
    layer = TimeContext("daypart", "Europe/Vienna")
    begins = int(datetime(2021, 3, 28, 1, tzinfo=ZoneInfo("UTC")).timestamp())  # 02:00 becomes 03:00
    at_six = begins + 3 * 3600  # 06:00 in summer time; it would be 05:00
    assert layer(tf.constant([at_six - 1, at_six], tf.int64)).numpy().tolist() == [2, 3]


def test_times_of_the_data_become_contexts(tmp_path: Path) -> None:
    times = [0, 86_400 * 2, None]  # a Thursday's midnight and a Saturday's
    splits = write_splits(tmp_path / "s", {"train": [row("u", f"i{n}", t) for n, t in enumerate(times)]})
    data = EncodedData(encode(splits, time_contexts=("weekend", "daypart"), time_zone="Asia/Kolkata"))
    assert columns(data.artifact, "train")["context_weekend"].tolist() == [2, 3, 0]
    assert columns(data.artifact, "train")["context_daypart"].tolist() == [2, 2, 0]  # 05:30
    assert (data.artifact / "context_weekend.txt").read_text() == "workday\nweekend\n"


def test_the_graph_reads_a_request_as_the_rows_were_written(tmp_path: Path) -> None:
    data = encoded(tmp_path, time_contexts=("weekday",))
    reader = RequestReader(data.state["request"], str(data.artifact.uri), of_users(data), "UTC")
    rows = [*TRAIN, *TEST]
    given = {
        "context_mood": tf.constant([r["context_mood"] or "" for r in rows]),
        "context_weekday": tf.constant([""] * len(rows)),
        "query": tf.constant([r.get("query") or "" for r in rows]),
        "user_gender": tf.constant([USERS["gender"][r["user"]] for r in rows]),
        "user_age": tf.constant([USERS["age"][r["user"]] for r in rows], tf.float32),
    }
    assert given.keys() == reader.features.keys()
    found = reader(given, tf.zeros(len(rows), tf.int32), tf.constant([r["timestamp"] for r in rows], tf.int64))
    parts = [data.request(p := data.rows(n), np.arange(len(p["item"]))) for n in ("train", "test")]
    order = [(r["user"], r["timestamp"]) for r in rows]
    sorted_rows = sorted(range(4), key=lambda n: order[n]) + sorted(range(4, 7), key=lambda n: order[n])
    for name in reader.kinds:
        wanted = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(found[name].numpy()[sorted_rows], wanted)
    assert found["context_weekday"].numpy().tolist() == [2 + 3] * 7


def test_what_a_request_does_not_say_is_stored_of_the_user(tmp_path: Path) -> None:
    data = encoded(tmp_path, time_contexts=("weekday",))
    reader = RequestReader(data.state["request"], str(data.artifact.uri), of_users(data), "UTC")
    al = data.users["user"][list(data.users["id"]).index("al")]
    given = {
        name: tf.constant(["" if spec.dtype == tf.string else -1.0]) for name, (_, spec) in reader.features.items()
    }
    found = reader(given, tf.constant([al]), tf.constant([86_400 * 3], tf.int64))
    assert found["user_age"].numpy().tolist() == [30]
    assert found["user_gender"].numpy()[0] == reader.maps["user_gender"](tf.constant(["w"])).numpy()[0]
    assert (found["context_mood"].numpy()[0], found["context_weekday"].numpy()[0]) == (0, 2 + 6)
    unknown = reader(given, tf.constant([1]), tf.constant([0], tf.int64))
    assert np.isnan(unknown["user_age"].numpy()[0])
    assert unknown["user_gender"].numpy()[0] == 0
    said = reader({**given, "context_weekday": tf.constant(["friday"])}, tf.constant([1]), tf.constant([0], tf.int64))
    assert said["context_weekday"].numpy()[0] == 2 + 4


def test_words_are_runs_of_letters_and_digits_of_any_script() -> None:
    texts = ["Füße-2,  die_Tür", "映画 2001", "🎬", "", "  "]
    expected = [["füße", "2", "die", "tür"], ["映画", "2001"], [], [], []]
    assert [[w.decode() for w in line] for line in split_words(tf.constant(texts)).to_list()] == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"user_categories": ("mood",)},
            "`transform.user_categories` must name columns that the users have: gender, age.",
        ),
        (
            {"user_numbers": ("gender",)},
            "`transform.user_numbers` must name columns of numbers. Received: gender, string.",
        ),
    ],
)
def test_columns_that_are_not_there_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ShortlistError) as error:
        encoded(tmp_path, **config)
    assert str(error.value).startswith(message)


def test_a_dimension_of_the_data_is_not_made_from_the_time(tmp_path: Path) -> None:
    splits = write_splits(tmp_path / "s", {"train": [row("u", "i", 5, context_season="monsoon")]})
    with pytest.raises(
        ShortlistError, match=r"must name dimensions that the data does not have itself\. Received: season"
    ):
        encode(splits, time_contexts=("season",))


def test_a_time_zone_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="`time_zone` must be a name of the IANA data base, such as Europe/Vienna"):
        TransformConfig(time_zone="Middle/Earth")
