"""What a request says beside user, history and time, as rows of tables: its contexts, its user's columns, its words.

Each is fitted on `train` alone, as the rest of `Transform`; the layers of `shortlist.models._transform` that the served
graph reads a request with are used here as well, where there is something to compute.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shortlist import ShortlistError
from shortlist.components._analysis import Counts, count
from shortlist.components._categories import FIRST_ID, category, is_number, one_line, vocabulary, with_nan

CONTEXT, USER, WORDS = "context_", "user_", "query"
CONDITIONS = {
    "daypart": ("night", "morning", "afternoon", "evening"),
    "weekday": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "weekend": ("workday", "weekend"),
    "season": ("winter", "spring", "summer", "autumn"),
}
"""Dimensions that a time has: quarters of the day from midnight, Saturday and Sunday, seasons of the northern half."""


class RequestColumns:
    """Fits the vocabularies and writes the rows.

    Args:
      config: `TransformConfig`.
      found: what `analyses` found of the interactions to fit on, and of these themselves by `user`, see `Counts`.
      users: all users; those that have a row there are fitted on.
      shared: vocabularies that users share with items, by column.
      searches: every text that is searched for anywhere; in their order they have the rows of `searches.npy` from 1 on.

    Attributes:
      state: `{name: {"kind": "category", "size", "file"} | {"kind": "number", "quantiles"} | {"kind": "tokens", "size",
        "file", "length"}}`, with `"from_time": true` for a dimension that the time decides.
    """

    def __init__(
        self,
        config: Any,
        found: Mapping[str, Any],
        users: pa.Table,
        shared: Mapping[str, pa.Array],
        searches: pa.Array,
    ):
        self.config, self.state = config, {}
        self.vocabularies: dict[str, pa.Array] = {}
        known = users.filter(pc.is_in(users["user"], value_set=found["user"]["value"].combine_chunks()))
        for name, values in shared.items():
            self.state[USER + name] = {"kind": "category", "size": len(values) + FIRST_ID, "file": f"category_{name}"}
        self._shared, self.searches = shared, searches
        for name in _declared(config, "user_categories", users):
            if name not in shared:
                self._add(USER + name, vocabulary(count(one_line(known[name]))))
        for name in _declared(config, "user_numbers", users):
            numbers = with_nan(known[name]).to_numpy()
            numbers = numbers[np.isfinite(numbers)]
            if len(numbers):
                quantiles = np.quantile(numbers, np.linspace(0, 1, config.quantiles)).tolist()
                self.state[USER + name] = {"kind": "number", "quantiles": quantiles}
        for name in [c for c in found if c.startswith(CONTEXT)]:
            self._add(name, vocabulary(found[name]))
        for name in config.time_contexts:
            if CONTEXT + name in found:
                raise ShortlistError(
                    "`transform.time_contexts` must name dimensions that the data does not have itself. "
                    f"Received: {name}."
                )
            self._add(CONTEXT + name, pa.array(CONDITIONS[name], pa.string()), from_time=True)
        if WORDS in found:
            self._add_words(found[WORDS]["value"])

    def _add(self, name: str, values: pa.Array, kind: str = "category", **further: Any) -> None:
        if len(values):
            self.vocabularies[name] = values
            self.state[name] = {"kind": kind, "size": len(values) + FIRST_ID, "file": name, **further}

    def _add_words(self, texts: pa.ChunkedArray) -> None:
        if not len(texts):
            return
        from shortlist.models._transform import split_words

        words = pa.chunked_array([pa.array(split_words(texts.to_pylist()).flat_values.numpy(), pa.binary())])
        values = vocabulary(count(words.cast(pa.string())), top=self.config.query_words)
        self._add(WORDS, values, "tokens", length=self.config.query_length)

    def of_rows(self, part: pa.Table) -> dict[str, np.ndarray]:
        """The columns of interactions: contexts, and the row of `searches.npy` that each one's words are."""
        found = {}
        for name, values in self.vocabularies.items():
            if name == WORDS:
                rows = pc.index_in(part["query"], value_set=self.searches, skip_nulls=True)
                found[name] = (rows.fill_null(-1).to_numpy() + 1).astype(np.int32)
            elif self.state[name].get("from_time"):
                found[name] = self._from_time(name, part["timestamp"])
            elif name.startswith(CONTEXT):
                conditions = category(one_line(part[name]), values)
                found[name] = np.where(conditions < FIRST_ID, 0, conditions)
        return found

    def _from_time(self, name: str, times: pa.ChunkedArray) -> np.ndarray:
        from shortlist.models._transform import TimeContext

        layer = TimeContext(name.removeprefix(CONTEXT), self.config.time_zone)
        return np.where(times.is_null().to_numpy(), 0, layer(times.fill_null(0).to_numpy()).numpy()).astype(np.int32)

    def of_users(self, users: pa.Table) -> dict[str, np.ndarray]:
        """The columns of users, categories int32 and numbers float32."""
        found = {}
        for name, info in self.state.items():
            column = name.removeprefix(USER)
            if not name.startswith(USER):
                continue
            if info["kind"] == "number":
                found[name] = with_nan(users[column]).to_numpy()
            else:
                values = self._shared[column] if column in self._shared else self.vocabularies[name]
                found[name] = category(one_line(users[column]), values)
        return found

    def write(self, out: Path) -> None:
        """Writes the vocabularies, and of the words searched for `searches.npy` int32 `[N, T]`, row 0 for none."""
        for name, values in self.vocabularies.items():
            (out / f"{name}.txt").write_text("".join(f"{value}\n" for value in values.to_pylist()), "utf-8")
        if WORDS not in self.vocabularies:
            return
        from shortlist.models._transform import Words

        rows = Words(str(out / f"{WORDS}.txt"), self.config.query_length)(["", *self.searches.to_pylist()]).numpy()
        np.save(out / "searches.npy", rows)


def analyses(config: Any, columns: Sequence[str]) -> dict[str, Counts]:
    """What has to be known of the interactions, whose `columns` these are."""
    found = {name: Counts(name, text=True) for name in columns if name.startswith(CONTEXT)}
    return {**found, WORDS: Counts(WORDS)} if config.query_words else found


def _declared(config: Any, setting: str, users: pa.Table) -> list[str]:
    """The columns that a setting names; of its default, those that are there.

    Raises:
      ShortlistError: for a column that users don't have.
    """
    names = getattr(config, setting)
    numbers = {field.name for field in users.schema if is_number(field.type)}
    if names == type(config).model_fields[setting].default:
        return [n for n in names if n in users.column_names and (setting == "user_categories" or n in numbers)]
    for name in names:
        if name not in users.column_names or name == "user":
            have = ", ".join(n for n in users.column_names if n != "user") or "none"
            raise ShortlistError(
                f"`transform.{setting}` must name columns that the users have: {have}. Received: {name}."
            )
        if setting == "user_numbers" and name not in numbers:
            kind = users.schema.field(name).type
            raise ShortlistError(f"`transform.{setting}` must name columns of numbers. Received: {name}, {kind}.")
    return list(names)
