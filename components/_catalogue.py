"""What a page shows of a model: titles, genres and users, all read from the SavedModel that is served."""

import itertools
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FILE = "assets.extra/catalogue.parquet"  # TF Serving leaves alone what it doesn't know there
KEY = b"shortlist"
_FIRST = 2  # rows of the tables before the first item, and before the first user


@dataclass(frozen=True)
class Item:
    """An item as people know it; `year` is 0 and `genres` are empty where the data doesn't say."""

    id: str
    title: str
    year: int
    genres: list[str]


def write_catalogue(
    saved_model: Path,
    ids: Sequence[str],
    titles: Sequence[str],
    years: Sequence[int],
    genres: Sequence[Sequence[str]],
    about: dict[str, Any],
) -> None:
    """Puts the items, in the order of their rows, and what requests may say beside the graph.

    Args:
      saved_model: the folder.
      ids: of the items.
      titles: of each.
      years: of each, 0 if unknown.
      genres: of each.
      about: `sources` [name], `contexts` {name: [condition]}, `features` of an example [name], `size` of the shortlist.
    """
    lists = pa.array([list(some) for some in genres], pa.list_(pa.string()))
    columns = {"item": pa.array(ids, pa.string()), "title": pa.array(titles, pa.string()), "genres": lists}
    table = pa.table({**columns, "year": pa.array(years, pa.int32())})
    (saved_model / FILE).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(about)}), saved_model / FILE)


def plain(text: str) -> str:
    """Text as it is searched: small letters without their marks."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(c if c.isalnum() else " " for c in apart if not unicodedata.combining(c)).split())


@dataclass(frozen=True)
class Catalogue:
    """The items and users of a model.

    Args:
      items: in the order of their rows.
      about: see `write_catalogue`.
      users: ids in the order of their rows.
      splits, stored: user u did entries `splits[u]` to `splits[u + 1]` of `stored`, which are rows of items, oldest
        first; what was only shown is 0.
    """

    items: list[Item]
    about: dict[str, Any]
    users: list[str]
    splits: np.ndarray
    stored: np.ndarray

    @classmethod
    def read(cls, saved_model: Path) -> "Catalogue | None":
        """That of a SavedModel; None if it was exported without one.

        Raises:
          OSError, ValueError, KeyError: if a file cannot be read.
        """
        if not (saved_model / FILE).exists():
            return None
        import tensorflow as tf

        table = pq.read_table(saved_model / FILE)
        columns = (table[name].to_pylist() for name in ("item", "title", "year", "genres"))
        items = [Item(item, title or item, year, genres) for item, title, year, genres in zip(*columns, strict=True)]
        users = (saved_model / "assets" / "users.txt").read_text("utf-8").split("\n")[:-1]
        saved = tf.train.load_checkpoint(str(saved_model / "variables" / "variables"))
        held = {
            name: saved.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE")
            for name in ("splits", "stored_item", "stored_watched")
        }
        stored = np.where(held["stored_watched"], held["stored_item"], 0)
        return cls(items, json.loads(table.schema.metadata[KEY]), users, held["splits"], stored)

    @cached_property
    def row(self) -> dict[str, int]:
        """The place of an item in `items`, by its id."""
        return {item.id: place for place, item in enumerate(self.items)}

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.users, _FIRST)}

    @cached_property
    def _by_popularity(self) -> list[int]:
        counts = np.bincount(self.stored, minlength=len(self.items) + _FIRST)[_FIRST:]
        return np.argsort(-counts, kind="stable").tolist()

    @cached_property
    def _plain(self) -> list[str]:
        return [f"{plain(item.title)} {item.year or ''}".strip() for item in self.items]

    def get(self, item: str) -> Item:
        """The item of an id, by its id alone where the catalogue doesn't have it."""
        return self.items[self.row[item]] if item in self.row else Item(item, item, 0, [])

    def watched(self, user: str) -> list[Item]:
        """What a user is known to have watched, newest first; nothing of an unknown one."""
        row = self._user_rows.get(user)
        if row is None:
            return []
        rows = self.stored[self.splits[row] : self.splits[row + 1]]
        return [self.items[r - _FIRST] for r in rows[::-1].tolist() if r >= _FIRST]

    def find(self, words: str, most: int) -> list[Item]:
        """The items whose titles hold the beginnings of all words, the whole title first, then by popularity; the most
        popular ones without any word."""
        asked = plain(words)
        found: list[tuple[int, int]] = []
        for place, row in enumerate(self._by_popularity):
            title = f" {self._plain[row]}"
            if all(f" {word}" in title for word in asked.split()):
                whole = title in (f" {asked}", f" {asked} {self.items[row].year}")
                found.append((0 if whole else 1 if title.startswith(f" {asked}") else 2, place))
                if not asked and len(found) == most:
                    break
        return [self.items[self._by_popularity[place]] for _, place in sorted(found)[:most]]

    def find_users(self, start: str, most: int) -> list[str]:
        """The id itself, then the first of those that begin so."""
        own = [start] if start in self._user_rows else []
        others = (user for user in self.users if user.startswith(start) and user != start)
        return [*own, *itertools.islice(others, most - len(own))]
