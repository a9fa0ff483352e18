"""What a report shows beyond the evaluation, by hand and against oracles: curves, reasons, the map, training."""

from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import tables

from shortlist.components._queries import EncodedData, Queries, Ragged
from shortlist.components._report_data import (
    Point,
    contributions,
    examples,
    item_map,
    lengths,
    most_similar,
    place_of,
    recall_curves,
)
from shortlist.components._report_plots import history_plots, map_plot

# --- recall along the shortlist --------------------------------------------------------------------------------------


def asked(targets: list[list[int]], histories: list[list[int]]) -> Queries:
    def ragged(lists: list[list[int]]) -> Ragged:
        return Ragged(np.cumsum([0, *map(len, lists)]), np.array([i for own in lists for i in own], np.int32))

    none, rows = ragged([[]] * len(targets)), np.arange(len(targets), dtype=np.int32)
    return Queries("test", rows, rows + 2, rows, ragged(histories), none, none, ragged(targets), none)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(300, [1, 2, 5, 10, 20, 50, 100, 200, 300]), (60, [1, 2, 5, 10, 20, 50, 60]), (1, [1]), (1000, None)],
)
def test_the_lengths_end_with_the_shortlist(size: int, expected: list[int] | None) -> None:
    assert lengths(size) == (expected or [1, 2, 5, 10, 20, 50, 100, 200, 300, 1000])


def test_recall_by_hand() -> None:
    queries = asked([[5, 1], [7], [2, 3, 4]], [[]] * 3)
    ranked = np.array([[5, 6, 8], [6, 7, 0], [9, 3, 2]], np.int32)
    (curve,) = recall_curves({"a": ranked}, queries, [1, 2, 3], 0).values()
    # Of at most as many as the list is long: 1 + 0 + 0 of 1; 1/2, 1 and 1/2; 1/2 (one is out of vocabulary), 1, 2/3.
    assert [p["value"] for p in curve] == pytest.approx([1 / 3, 2 / 3, (1 / 2 + 1 + 2 / 3) / 3])
    assert [p["length"] for p in curve] == [1, 2, 3]
    assert all(p["low"] <= p["value"] <= p["high"] for p in curve)


def test_what_only_one_list_finds_by_hand() -> None:
    queries = asked([[5, 1], [7, 7], [2, 3, 4]], [[]] * 3)
    lists = {
        "a": np.array([[5, 6, 8], [6, 9, 7], [9, 3, 2]], np.int32),
        "b": np.array([[8, 5, 9], [9, 8, 6], [4, 3, 5]], np.int32),
        "union": np.array([[5, 8, 9], [7, 8, 6], [4, 3, 5]], np.int32),
    }
    # Six positives, one of them out of vocabulary and one watched twice. In two items a finds 5 and 3, b 5, 4 and 3,
    # and the union, which is none of the sources, 5, 7, 4 and 3.
    rows = contributions(lists, queries, 2, 0, "union")
    assert [(r["name"], r["found"], r["only"]) for r in rows] == [
        ("a", 2 / 6, 0.0),
        ("b", 3 / 6, 1 / 6),
        ("union", 4 / 6, None),
        ("any", 3 / 6, None),
    ]
    assert [r["recall"] and r["recall"]["value"] for r in rows] == [
        pytest.approx((1 / 2 + 0 + 1 / 2) / 3),
        pytest.approx((1 / 2 + 0 + 1) / 3),
        pytest.approx((1 / 2 + 1 + 1) / 3),
        None,
    ]
    longer = contributions(lists, queries, 3, 0, "union")
    assert [r["only"] for r in longer] == [2 / 6, 1 / 6, None, None]  # 7 and 2; 4


# --- recommendations and their reasons -------------------------------------------------------------------------------


def test_the_most_similar_watched_item_by_hand() -> None:
    vectors = np.array([[9, 9], [9, 9], [1, 0], [5, 5], [0, 2], [0, 0], [0, 7]], np.float32)
    items, cosine = most_similar(np.array([2, 3, 5, 4]), np.array([2, 4, 6]), vectors)
    # Item 3 lies between; 5 is nowhere, so the latest of equals; 4 and 6 point the same way, and 6 is later.
    assert items.tolist() == [2, 6, 6, 6]
    assert cosine == pytest.approx([1, np.sqrt(0.5), 0, 1])
    for item, nearest, found in zip([2, 3, 5, 4], items, cosine, strict=True):
        assert found == pytest.approx(max(oracles.cosine(vectors[item], vectors[i]) for i in (2, 4, 6)))
        assert found == pytest.approx(oracles.cosine(vectors[item], vectors[nearest]))


def test_the_place_in_a_list() -> None:
    assert place_of(np.array([7, 3, 4]), np.array([3, 9, 7, 0])).tolist() == [3, 1, 0]


def world(folder: Path, titled: bool = True, **parts: list[tables.Row]) -> EncodedData:
    items = [{"item": f"i{n}", "title": f"Title {n}", "genres": [f"g{n}", "all"]} for n in range(6)] if titled else []
    return EncodedData(tables.encode(tables.write_splits(folder / "splits", parts, items)))


def test_an_example_has_titles_and_reasons(tmp_path: Path) -> None:
    data = world(tmp_path, train=[tables.row("u", f"i{n}", 10 + n) for n in range(6)])
    row = {item: n for n, item in enumerate(data.items["id"])}
    i = [row[f"i{n}"] for n in range(6)]
    queries = asked([[i[4]]], [[i[0], i[1], i[0]]])
    vectors = np.zeros((data.num_items, 2), np.float32)
    vectors[i] = [[1, 0], [0, 1], [1, 1], [3, 1], [0, 5], [1, 0]]
    ranked = np.array([[i[4], i[3], 0]])
    proposed = {"a": np.array([[i[3], i[4]]]), "b": np.array([[i[3], i[2]]])}
    (one,) = examples(data, queries, np.array([0]), ranked, proposed, vectors)
    assert (one.user, one.last, one.watched) == ("u", ["Title 0", "Title 1"], 3)
    first, second = one.items
    assert (first.title, first.proposed, first.similar, first.target) == ("Title 4", {"a": 2}, "Title 1", True)
    assert first.cosine == pytest.approx(1)
    assert (second.title, second.proposed, second.similar) == ("Title 3", {"a": 1, "b": 1}, "Title 0")
    assert second.cosine == pytest.approx(3 / np.sqrt(10))
    assert not second.target

    (none,) = examples(data, asked([[i[4]]], [[]]), np.array([0]), ranked, proposed, vectors)
    assert (none.last, none.watched, none.items[0].similar) == ([], 0, None)


def test_an_item_without_a_title_is_called_by_its_id(tmp_path: Path) -> None:
    data = world(tmp_path, titled=False, train=[tables.row("u", "x", 1), tables.row("u", "y", 2)])
    x, y = (list(data.items["id"]).index(item) for item in ("x", "y"))
    (one,) = examples(data, asked([[y]], [[x]]), np.array([0]), np.array([[y]]), {}, None)
    assert (one.last, one.items[0].title, one.items[0].similar) == (["x"], "y", None)


# --- the map ---------------------------------------------------------------------------------------------------------


def watched(*times: int) -> list[tables.Row]:
    """Item n is watched by as many users."""
    return [tables.row(f"u{u}", f"i{n}", 100 + n) for n, count in enumerate(times) for u in range(count)]


def test_the_map_shows_the_most_watched_items_along_their_principal_axes(tmp_path: Path) -> None:
    data = world(tmp_path, train=watched(5, 4, 3, 2, 6, 1))
    vectors = np.random.default_rng(0).normal(size=(data.num_items, 3)).astype(np.float32)
    found = item_map(data, vectors, 5)
    assert found is not None
    points, share = found
    assert [(p.title, p.watches, p.genre, p.genres) for p in points] == [
        (f"Title {n}", times, f"g{n}", f"g{n}, all") for n, times in ((4, 6), (0, 5), (1, 4), (2, 3), (3, 2))
    ]
    row = {item: n for n, item in enumerate(data.items["id"])}
    x = vectors[[row[f"i{n}"] for n in (4, 0, 1, 2, 3)]].astype(np.float64)
    values, axes = np.linalg.eigh(np.cov(x.T, bias=True))
    assert share == pytest.approx(values[::-1][:2] / values.sum())
    place = (x - x.mean(axis=0)) @ axes[:, ::-1][:, :2]
    place *= np.sign(place[np.abs(place).argmax(axis=0), [0, 1]])
    np.testing.assert_allclose([[p.x, p.y] for p in points], place, atol=1e-6)


def test_a_map_of_one_dimension_is_a_line_and_of_a_point_none(tmp_path: Path) -> None:
    data = world(tmp_path, train=watched(3, 2, 1))
    vectors = np.zeros((data.num_items, 1), np.float32)
    assert item_map(data, vectors, 10) is None
    row = {item: n for n, item in enumerate(data.items["id"])}
    vectors[[row["i0"], row["i1"], row["i2"]], 0] = [-4, 1, 3]
    found = item_map(data, vectors, 10)
    assert found is not None
    assert [(round(p.x, 6), p.y) for p in found[0]] == [(4, 0), (-1, 0), (-3, 0)]
    assert found[1] == (1, 0)
    assert item_map(data, vectors, 2) is None
    assert item_map(data, vectors, 0) is None


def groups(data: list[tuple[str, int]]) -> tuple[list[str], Any]:
    points = [Point(0, n, "t", genre, genre, 1) for genre, many in data for n in range(many)]
    spec = map_plot(points, (0.5, 0.25), "wals").chart.to_dict()
    rows = [row["group"] for rows in spec["datasets"].values() for row in rows]
    return rows, spec["encoding"].get("color", {}).get("scale", {}).get("domain")


def test_the_colours_are_the_most_frequent_first_genres() -> None:
    many = [(f"g{n}", n + 1) for n in range(9)]
    rows, domain = groups(many)
    assert domain == ["g8", "g7", "g6", "g5", "g4", "g3", "other"]
    assert rows.count("other") == 1 + 2 + 3
    assert groups(many[:7])[1] == ["g6", "g5", "g4", "g3", "g2", "g1", "g0"]
    assert groups([*many[:2], ("", 1)])[1] == ["g1", "g0", "other"]
    assert groups([("", 3)])[1] is None


# --- training --------------------------------------------------------------------------------------------------------


def test_what_training_logged_is_drawn_once() -> None:
    history = {"loss": [2.0, 1.0], "penalty": [0.0, 0.0], "total": [2.0, 1.0], "val_loss": [3.0, float("nan")]}
    (plot,) = history_plots("wals", history)
    spec = plot.chart.to_dict()
    rows = [row for rows in spec["datasets"].values() for row in rows]
    assert [(r["epoch"], r["split"], r["value"]) for r in rows] == [
        (1, "training", 2.0),
        (2, "training", 1.0),
        (1, "validation", 3.0),
    ]
    assert history_plots("popularity", {}) == []
    assert history_plots("broken", {"loss": [float("nan")]}) == []
