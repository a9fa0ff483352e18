"""What the page knows of a model's items and users, read from the SavedModel."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import serving_data

from shortlist.components._catalogue import FILE, Catalogue, Item, plain, write_catalogue


@pytest.fixture(scope="module")
def saved(served: dict[str, Any]) -> Path:
    return served["Exporter"] / "saved_model"


@pytest.fixture(scope="module")
def catalogue(saved: Path) -> Catalogue:
    found = Catalogue.read(saved)
    assert found
    return found


def test_items_have_the_titles_years_and_genres_of_the_data(catalogue: Catalogue, saved: Path) -> None:
    _, items = serving_data.splits()
    own = {row["item"]: row for row in items}
    assert [item.id for item in catalogue.items] == (saved / "assets" / "items.txt").read_text("utf-8").splitlines()
    for item in catalogue.items:
        row = own[item.id]
        assert item.title == f"„{item.id}“ заголовок"
        assert item.year == row["year"]
        assert sorted(item.genres) == sorted(row["genres"])
    assert catalogue.get(catalogue.items[3].id) is catalogue.items[3]
    assert catalogue.get("unknown") == Item("unknown", "unknown", 0, [])


def test_users_have_what_they_watched_newest_first(catalogue: Catalogue) -> None:
    parts, _ = serving_data.splits()
    rows = [r for name in serving_data.SHARES for r in parts[name] if r["user"] == "usér 3"]
    rows.sort(key=lambda r: -r["timestamp"])
    assert [item.id for item in catalogue.watched("usér 3")] == [r["item"] for r in rows if r["item"] in catalogue.row]
    assert catalogue.watched("nobody") == []
    ones = [u for u in catalogue.users if u.startswith("usér 1") and u != "usér 1"]
    assert catalogue.find_users("usér 1", 3) == ["usér 1", *ones[:2]]
    assert catalogue.find_users("nobody", 3) == []
    assert len(catalogue.find_users("", 5)) == 5


def test_a_request_may_say_what_the_bundle_reads(catalogue: Catalogue) -> None:
    assert catalogue.about["sources"] == ["two_tower", "item_knn"]
    assert catalogue.about["contexts"] == {"context_place": ["train", "home"]}
    assert {"diversity", "k", "context_place", "quota_item_knn"} <= set(catalogue.about["features"])
    assert catalogue.about["size"] == 9


@pytest.fixture
def films(saved: Path, tmp_path: Path, catalogue: Catalogue) -> Catalogue:
    """The same users, and other titles."""
    titles = [
        "Star Wars",
        "Star Trek",
        "The Starry Night",
        "Amélie",
        "Café Star",
        "",
        *[f"Other {n}" for n in range(14)],
    ]
    shutil.copytree(saved, tmp_path / "saved")
    ids = [item.id for item in catalogue.items]
    write_catalogue(tmp_path / "saved", ids, titles, [1977, *[0] * 19], [["a", "b"], *[[]] * 19], {})
    found = Catalogue.read(tmp_path / "saved")
    assert found
    return found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("star w", {"Star Wars"}),
        ("STAR", {"Star Wars", "Star Trek", "The Starry Night", "Café Star"}),
        ("amelie", {"Amélie"}),
        ("star cafe", {"Café Star"}),
        ("1977", {"Star Wars"}),
        ("tar", set()),
        ("<b>", set()),
        ("star!!!wars", {"Star Wars"}),
    ],
)
def test_titles_are_found_by_the_beginnings_of_their_words(films: Catalogue, words: str, expected: set[str]) -> None:
    assert {item.title for item in films.find(words, 20)} == expected


def test_the_best_titles_come_first(films: Catalogue) -> None:
    found = [item.title for item in films.find("star", 20)]
    assert set(found[:2]) == {"Star Wars", "Star Trek"}
    assert len(films.find("star", 1)) == 1
    assert films.find("star trek", 5)[0].title == "Star Trek"


def test_a_whole_title_comes_before_longer_ones_with_or_without_its_year(saved: Path, catalogue: Catalogue) -> None:
    popular = [catalogue.row[item.id] for item in catalogue.find("", 20)]
    items = [replace(item, title="Toy Story 2", year=1999) for item in catalogue.items]
    items[popular[-1]] = replace(items[0], title="Toy Story", year=1995)  # the one that fewest watched
    films = replace(catalogue, items=items)
    assert films.find("toy story", 5)[0].title == films.find("Toy Story 1995", 5)[0].title == "Toy Story"


def test_without_words_the_most_watched_come(films: Catalogue) -> None:
    counts = {item.id: 0 for item in films.items}
    for user in films.users:
        for item in films.watched(user):
            counts[item.id] += 1
    found = [counts[item.id] for item in films.find("", 20)]
    assert found == sorted(counts.values(), reverse=True)
    assert len(films.find("  ", 3)) == 3


def test_an_item_without_a_title_is_called_by_its_id(films: Catalogue) -> None:
    assert films.items[5].title == films.items[5].id


def test_plain_text_has_small_letters_without_marks() -> None:
    assert plain("  L'Été — No. 5: Ärger 映画  ") == "l ete no 5 arger 映画"


def test_a_model_without_one_has_none(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "saved")
    (tmp_path / "saved" / FILE).unlink()
    assert Catalogue.read(tmp_path / "saved") is None
