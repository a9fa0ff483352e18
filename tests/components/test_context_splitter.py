"""ContextSplitter: found in train, applied to every part, understood by what comes after."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tables

from shortlist.components.artifacts import Splits
from shortlist.components.context import undo_splits
from shortlist.components.context_splitter import ContextSplitter, ContextSplitterConfig


def rows(part: str, home: float, cinema: float) -> list[tables.Row]:
    """Three users who saw one film at home and in the cinema, and another film anywhere."""
    return [
        tables.row(user, film, n, rating=rating, context_place=place)
        for n, user in enumerate(("u1", "u2", "u3"))
        for film, place, rating in (
            ("film", "home", home + n % 2),
            ("film", "cinema", cinema),
            (f"{part} film", "home", 3.0),
        )
    ]


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    everything = {"train": rows("train", 1, 5), "test": rows("test", 5, 1)}
    items = [{"item": "film", "title": "The film", "year": 1990, "genres": ["g"]}]
    return tables.write_splits(tmp_path / "s", everything, items)


@pytest.mark.parametrize("fit_on", ["train", "all"])
def test_every_part_has_the_split_that_train_calls_for(tmp_path: Path, splits: Splits, fit_on: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ContextSplitter(ContextSplitterConfig(min_ratings=3, fit_on=fit_on)).run(out, splits)
    after = Splits(out, "after")
    found = pq.read_table(after / "context_splits.parquet")
    if fit_on == "all":  # of train and test together the film is rated alike in both places
        assert len(found) == 0
        return
    assert found["id"].to_pylist() == ["film"]
    halves = {"home": found["id_in"][0].as_py(), "cinema": found["id_out"][0].as_py()}
    if halves["home"].count("cinema"):
        halves = {"home": halves["cinema"], "cinema": halves["home"]}
    for name in splits.names:
        before, now = pq.read_table(splits / f"{name}.parquet"), pq.read_table(after / f"{name}.parquet")
        if len(now):
            assert undo_splits(now, found).equals(before)
            for row in now.to_pylist():
                assert row["item"] == halves.get(row["context_place"]) or row["item"] == f"{name} film"
    items = pq.read_table(after / "items.parquet").to_pylist()
    assert [(i["item"], i["title"]) for i in items if "[" in i["item"]] == [
        (found[half][0].as_py(), "The film") for half in ("id_in", "id_out")
    ]
    assert (after / "splits.json").read_bytes() == (splits / "splits.json").read_bytes()
    encoded = tables.encode(after)
    vocabulary = (encoded / "items.txt").read_text().splitlines()
    assert sorted(vocabulary) == sorted([*halves.values(), "train film"])


def test_the_defaults_are_those_of_a_split() -> None:
    assert ContextSplitter().config == ContextSplitterConfig()
    assert ContextSplitter(name="users").name == "ContextSplitter.users"
