"""Transform: rows by hand, a state that only `train` decides, and the same maps as layers of a graph."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import columns, encode, row, write_splits

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Splits

TRAIN = [
    row("bo", "x", 10, rating=4.0, watch_time=60.0),
    row("bo", "y", 20, rating=2.0),
    row("al", "x", 15, event="impression", rating=5.0),
    row("al", "z", 30),
    row("al", "x", 40, rating=3.5),
]
TEST = [row("al", "new", 50, rating=4.0), row("cy", "y", 60, rating=1.0)]
ITEMS = [
    {"item": "z", "title": "Zed", "year": 1990, "genres": ["War", "Art"]},
    {"item": "x", "title": None, "year": None, "genres": None},
    {"item": "y", "title": "Why", "year": 2000, "genres": ["War"]},
    {"item": "new", "title": "New", "year": 2020, "genres": ["Noir"]},
]


def by_count_then_hash(counts: dict[str, int]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], hashlib.blake2b(name.encode(), digest_size=8).digest()))


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("items.txt", "users.txt", "genres.txt", "state.json")}


def test_rows_by_hand(tmp_path: Path) -> None:
    encoded = encode(write_splits(tmp_path / "s", {"train": TRAIN, "test": TEST}, ITEMS, positive_threshold=3.5))
    items = ["", "", *by_count_then_hash({"x": 3, "y": 1, "z": 1})]
    assert (encoded / "items.txt").read_text() == "".join(f"{i}\n" for i in items[2:])
    assert (encoded / "users.txt").read_text() == "al\nbo\n"  # 3 rows against 2
    assert (encoded / "genres.txt").read_text() == "Art\nWar\n"  # Noir is a genre of an item that nobody knew yet

    catalogue = pq.read_table(encoded / "items.parquet").to_pydict()
    content = {"x": ("", 0, []), "y": ("Why", 2000, [3]), "z": ("Zed", 1990, [3, 2]), "": ("", 0, [])}
    assert catalogue["id"] == items
    for i, *found in zip(items, catalogue["title"], catalogue["year"], catalogue["genres"], strict=True):
        assert tuple(found) == content[i]
    assert pq.read_table(encoded / "users.parquet").to_pydict() == {"id": ["al", "bo", "cy"], "user": [2, 3, 1]}

    train, test = columns(encoded, "train"), columns(encoded, "test")
    assert train["user_key"].tolist() == [0, 0, 0, 1, 1]
    assert train["user"].tolist() == [2, 2, 2, 3, 3]
    assert [items[i] for i in train["item"]] == ["x", "z", "x", "x", "y"]
    assert train["timestamp"].tolist() == [15, 30, 40, 10, 20]
    np.testing.assert_array_equal(train["rating"], [5, np.nan, 3.5, 4, 2])
    np.testing.assert_array_equal(train["watch_time"], [np.nan] * 3 + [60, np.nan])
    assert train["positive"].tolist() == [False, False, True, True, False]  # an impression and a null are none
    assert (test["user_key"].tolist(), test["user"].tolist()) == ([0, 2], [2, 1])
    assert test["item"].tolist() == [1, items.index("y")]
    assert train["watched"].tolist() == [False, True, True, True, True]
    kinds = {"rating": "f4", "watch_time": "f4", "timestamp": "i8", "positive": "?", "watched": "?"}
    assert {name: values.dtype for name, values in train.items()} == {n: kinds.get(n, "i4") for n in train}
    assert not any(len(values) for values in columns(encoded, "fold_in").values())

    state = encoded.read_json("state.json")
    assert (state["items"], state["users"], state["genres"]) == (3, 2, ["Art", "War"])
    assert (state["time"], state["fitted_on"]) == ({"min": 10, "max": 40}, "train")
    np.testing.assert_allclose(state["time_quantiles"], np.quantile([10, 15, 20, 30, 40], np.linspace(0, 1, 101)))


def test_without_a_threshold_every_watch_is_a_positive(tmp_path: Path) -> None:
    encoded = encode(write_splits(tmp_path / "s", {"train": TRAIN}, ITEMS))
    assert columns(encoded, "train")["positive"].tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("threshold", [0.7, 3.1, 4.0])
def test_a_rating_that_is_the_threshold_is_a_positive(tmp_path: Path, threshold: float) -> None:
    """0.7 as the float32 of the table lies below 0.7 as the float64 of the setting."""
    rows = [row("u", "x", t, rating=threshold + t / 100) for t in (-1, 0, 1)]
    splits = write_splits(tmp_path / "s", {"train": rows}, positive_threshold=threshold)
    assert columns(encode(splits), "train")["positive"].tolist() == [False, True, True]


def test_years_fall_into_buckets_of_equal_share(tmp_path: Path) -> None:
    years = [1950, 1990, 1991, 1991, 1992, 2000, None]
    items = [{"item": f"i{n}", "year": year} for n, year in enumerate(years)]
    rows = [row("u", f"i{n}", 5) for n in range(7)]
    data = EncodedData(encode(write_splits(tmp_path / "s", {"train": rows}, items), year_buckets=3))
    # Thirds of the six known years, linear: the ranks 5/3 and 10/3 of 1950 1990 1991 1991 1992 2000.
    np.testing.assert_allclose(data.state["year_boundaries"], [1990 + 2 / 3, 1991 + 1 / 3])
    expected = {"": 0, "i0": 1, "i1": 1, "i2": 2, "i3": 2, "i4": 3, "i5": 3, "i6": 0}
    assert data.year_bucket().tolist() == [expected[i] for i in data.items["id"]]


def test_rare_items_are_out_of_vocabulary_and_too_few_is_refused(tmp_path: Path) -> None:
    splits = write_splits(tmp_path / "s", {"train": TRAIN}, ITEMS)
    encoded = encode(splits, min_count=2)
    assert (encoded / "items.txt").read_text() == "x\n"
    assert columns(encoded, "train")["item"].tolist() == [2, 1, 2, 2, 1]
    assert (encoded / "users.txt").read_text() == "al\nbo\n"
    with pytest.raises(ShortlistError) as error:
        encode(splits, min_count=4)
    assert str(error.value) == (
        "`transform.min_count` leaves no item: none of the 5 training rows' items has that many rows. Lower it. "
        "Received: min_count=4."
    )


def test_only_the_most_frequent_are_kept_where_there_is_a_limit(tmp_path: Path) -> None:
    encoded = encode(write_splits(tmp_path / "s", {"train": TRAIN}, ITEMS), top=2)
    first, second = by_count_then_hash({"x": 3, "y": 1, "z": 1})[:2]
    assert (encoded / "items.txt").read_text() == f"{first}\n{second}\n"
    assert EncodedData(encoded).num_items == 4
    assert sorted(columns(encoded, "train")["item"]) == [1, 2, 2, 2, 3]


def test_fitted_on_all_knows_what_came_later(tmp_path: Path) -> None:
    encoded = encode(write_splits(tmp_path / "s", {"train": TRAIN, "test": TEST}, ITEMS), fit_on="all")
    assert set((encoded / "items.txt").read_text().split()) == {"x", "y", "z", "new"}
    assert set((encoded / "users.txt").read_text().split()) == {"al", "bo", "cy"}
    state = encoded.read_json("state.json")
    assert (state["fitted_on"], state["time"], state["genres"]) == (
        "all",
        {"min": 10, "max": 60},
        ["Art", "Noir", "War"],
    )


def test_data_without_years_genres_and_times(tmp_path: Path) -> None:
    rows = [row("ü", "ключ", None), row("ü", "🎬 x", None), row("b", "ключ", None)]
    data = EncodedData(encode(write_splits(tmp_path / "s", {"train": rows})))
    assert data.items["id"].tolist() == ["", "", "ключ", "🎬 x"]
    assert (data.artifact / "items.txt").read_text(encoding="utf-8") == "ключ\n🎬 x\n"
    assert data.items["genres"].shape == (4, 0)
    assert data.year_bucket().tolist() == [0] * 4
    assert (data.state["time"], data.state["time_quantiles"], data.state["year_boundaries"]) == (None, None, [])


LANGUAGES = {"x": "de", "y": "en", "z": "de", "empty": "", "none": None, "lines": "a\r\nb", "new": "fr"}
USERS = {"al": "fr", "bo": "a b", "cy": None, "di": "de", "ed": ""}


def with_columns(
    folder: Path, columns: dict[str, tuple[pa.DataType, dict[str, Any]]], users: Any = None, **config: Any
) -> EncodedData:
    """Encoded rows of `LANGUAGES`' items, "new" after train, with further columns of the items and the users."""
    parts = {
        "train": [row("al", item, n) for n, item in enumerate(LANGUAGES) if item != "new"],
        "test": [row(user, "new", 99) for user in USERS],
    }
    items = [{"item": i, **{name: values.get(i) for name, (_, values) in columns.items()}} for i in LANGUAGES]
    kinds = {name: kind for name, (kind, _) in columns.items()}
    return EncodedData(encode(write_splits(folder, parts, items, None, kinds, users), **config))


def test_categories_by_hand(tmp_path: Path) -> None:
    """Missing is 0, what no known item has is 1, and a value of several lines is one line."""
    data = with_columns(tmp_path / "s", {"language": (pa.string(), LANGUAGES)}, {"language": USERS})
    values = (data.artifact / "category_language.txt").read_text().splitlines()
    assert values == by_count_then_hash({"de": 2, "en": 1, "a b": 1})
    place = {value: n for n, value in enumerate(values, 2)}
    expected = {"x": place["de"], "y": place["en"], "z": place["de"], "empty": 0, "none": 0, "lines": place["a b"]}
    found = dict(zip(data.items["id"], data.items["category_language"].tolist(), strict=True))
    assert found == {"": 0, **expected}
    assert data.items["category_language"][:2].tolist() == [0, 0]
    assert data.items["category_language"].dtype == data.users["user_language"].dtype == np.int32
    of_users = dict(zip(data.users["id"], data.users["user_language"].tolist(), strict=True))
    assert of_users == {"al": 1, "bo": place["a b"], "cy": 0, "di": place["de"], "ed": 0}
    assert (data.state["categories"], data.state["shared_categories"]) == (["language"], ["language"])


def test_numbers_by_hand_and_categories_that_users_lack(tmp_path: Path) -> None:
    columns = {
        "channel": (pa.string(), {"x": "one"}),
        "length": (pa.float64(), {"x": 90.5, "y": -3.0}),
        "plays": (pa.int64(), {"x": 7, "z": 0}),
    }
    data = with_columns(tmp_path / "s", columns, {"language": USERS}, numbers=("plays", "length", "plays"))
    assert data.state["categories"] == ["channel"]
    assert data.state["shared_categories"] == []
    assert data.state["numbers"] == ["plays", "length"]
    assert data.users.keys() == {"id", "user", "user_language"}  # by a vocabulary of their own
    for name, wanted in (("length", {"x": 90.5, "y": -3}), ("plays", {"x": 7, "z": 0})):
        assert data.items[f"number_{name}"].dtype == np.float32
        np.testing.assert_array_equal(data.items[f"number_{name}"], [wanted.get(i, np.nan) for i in data.items["id"]])


def test_default_columns_that_are_absent_empty_or_of_another_type_are_left_out(tmp_path: Path) -> None:
    columns = {
        "language": (pa.string(), {}),
        "channel": (pa.int64(), {"x": 3}),
        "length": (pa.string(), {"x": "90 minutes"}),
    }
    for folder, own in (("a", {}), ("b", columns)):
        data = with_columns(tmp_path / folder, own)
        assert [data.state[name] for name in ("categories", "shared_categories", "numbers")] == [[], [], []]
        assert data.items.keys() == {"id", "title", "year", "added", "genres"}
        assert not list(data.artifact.uri.glob("category_*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"categories": ("mood",)}, "`transform.categories` must name columns that the items have: HAVE. "),
        ({"numbers": ("length", "mood")}, "`transform.numbers` must name columns that the items have: HAVE. "),
        ({"categories": ("plays",)}, "`transform.categories` must name columns of text that describe items. "),
        ({"categories": ("title",)}, "`transform.categories` must name columns of text that describe items. "),
        ({"categories": ("item",)}, "`transform.categories` must name columns of text that describe items. "),
        ({"categories": ("genres",)}, "`transform.categories` must name columns of text that describe items. "),
        ({"numbers": ("language",)}, "`transform.numbers` must name columns of numbers that describe items. "),
    ],
)
def test_columns_that_are_declared_must_be_there(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    columns = {"language": (pa.string(), LANGUAGES), "plays": (pa.int64(), {}), "length": (pa.float32(), {})}
    received = {
        "mood": "mood",
        "plays": "plays, int64",
        "title": "title, string",
        "item": "item, string",
        "genres": "genres, list<element: string>",
        "language": "language, string",
    }
    (name,) = set(*settings.values()) - {"length"}
    with pytest.raises(ShortlistError) as error:
        with_columns(tmp_path / "s", columns, **settings)
    have = "item, title, year, genres, language, plays, length"
    assert str(error.value) == message.replace("HAVE", have) + f"Received: {received[name]}."


interactions = st.lists(
    st.tuples(st.sampled_from(["u", "v", "w"]), st.sampled_from("abcdef"), st.integers(0, 9)), min_size=1, max_size=12
)


@settings(max_examples=15, deadline=None)
@given(interactions, interactions, interactions, st.randoms(use_true_random=False))
def test_only_the_training_rows_decide_the_state_and_not_their_order(
    tmp_path_factory, train: list, later: list, other: list, random
) -> None:
    folder = tmp_path_factory.mktemp("t")
    items = [{"item": i, "year": 1990 + n, "genres": [f"g{n % 4}"]} for n, i in enumerate("abcdef")]
    made = [row(*r) for r in train]
    parts = {name: [row(*r) for r in later] for name in Splits.NAMES[1:]}
    before = write_splits(folder / "a", {"train": made, **parts}, items)
    random.shuffle(items)
    shuffled = random.sample(made, len(made))
    invented = [row("nobody", "ghost", 10**9), *(row(*r) for r in other)]
    items.append({"item": "ghost", "year": 2050, "genres": ["g9"]})
    after = write_splits(folder / "b", {"train": shuffled, **{name: invented for name in parts}}, items)
    assert files(encode(before).uri) == files(encode(after).uri)
