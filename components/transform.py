"""Strings to table rows: vocabularies, bucket boundaries and quantiles, fitted on the training part only."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa
import pydantic

from shortlist import ShortlistError
from shortlist.components._analysis import Together
from shortlist.components._batches import GROUP, batches, sort_by_key
from shortlist.components._categories import is_number
from shortlist.components._config import Config
from shortlist.components._engine import Analyse, Rows, Write
from shortlist.components._fitted import fit, part_names
from shortlist.components.artifacts import Encoded, Splits
from shortlist.components.pipeline import Component


class TransformConfig(Config):
    """Settings of `Transform`.

    Args:
      fit_on: "train", or "all" to fit on every part (for a model that is to be served, never for one to be measured).
      min_count: items with fewer rows are out of vocabulary.
      top: of the others, the most frequent that are kept; None keeps all.
      year_buckets: number of buckets of the items' year, of equal share.
      quantiles: number of quantiles kept of a number that is to be normalized.
      categories: text columns of the items, and of the users where they have them too, that the ranker tells apart.
      numbers: columns of numbers of the items that it sees.
      user_categories: text columns of the users, which a request may say.
      user_numbers: columns of numbers of the users.
      time_contexts: contexts that the time decides: daypart (quarters of the day from midnight), weekday, weekend
        (Saturday and Sunday), season (of the northern half). They stand beside the data's own `context_*` columns.
      time_zone: where the users are, such as Europe/Vienna. MovieLens doesn't say, so UTC's evening may be a morning.
      query_words: the most frequent words searched for (the column `query`) that are told apart; 0 leaves them out.
      query_length: words of one search that are kept, the first ones.

    Of the default names of columns, those that the source has are taken; any other name must be there.
    """

    fit_on: Literal["train", "all"] = "train"
    min_count: int = pydantic.Field(1, ge=1)
    top: int | None = pydantic.Field(None, ge=1)
    year_buckets: int = pydantic.Field(20, ge=1, le=1000)
    quantiles: int = pydantic.Field(101, ge=2, le=10_001)
    categories: tuple[str, ...] = ("language", "channel")
    numbers: tuple[str, ...] = ("length",)
    user_categories: tuple[str, ...] = ("gender", "occupation", "country", "place", "language")
    user_numbers: tuple[str, ...] = ("age",)
    time_contexts: tuple[Literal["daypart", "weekday", "weekend", "season"], ...] = ()
    time_zone: str = "UTC"
    query_words: int = pydantic.Field(20_000, ge=0)
    query_length: int = pydantic.Field(16, ge=1, le=1000)

    @pydantic.field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"`time_zone` must be a name of the IANA data base, such as Europe/Vienna. Received: {value!r}."
            ) from None
        return value

    def columns(self, items: pa.Schema) -> tuple[list[str], list[str]]:
        """The categories and the numbers that the items have.

        Raises:
          ShortlistError: if a declared column is not there, or of another type.
        """
        found: list[list[str]] = []
        for setting, fits, kind in (("categories", pa.types.is_string, "text"), ("numbers", is_number, "numbers")):
            names = getattr(self, setting)
            if names == type(self).model_fields[setting].default:
                names = tuple(name for name in names if name in items.names and fits(items.field(name).type))
            for name in names:
                if name not in items.names:
                    have = ", ".join(items.names)
                    raise ShortlistError(
                        f"`transform.{setting}` must name columns that the items have: {have}. Received: {name}."
                    )
                if not fits(items.field(name).type) or name in ("item", "title"):
                    raise ShortlistError(
                        f"`transform.{setting}` must name columns of {kind} that describe items. "
                        f"Received: {name}, {items.field(name).type}."
                    )
            found.append(list(dict.fromkeys(names)))
        return found[0], found[1]


class Transform(Component):
    """Maps every part of the splits to table rows, with a state fitted on `train` alone.

    Item and user vocabularies are ordered by count, ties by a hash of the id, so neither the order of a file nor the
    magnitude of an id means anything. Row 0 is padding, row 1 is out of vocabulary. The same maps are Keras layers in
    the served graph: `shortlist.models._transform`. After `RefreshGen` the state is fitted as before, on what it was
    fitted on; items and users that are new get rows behind the others, and every item is described as it is now.

    Interactions are read and written in record batches, once to fit and once to encode; what is held is the tables of
    items and users, the vocabularies and the different texts that are searched for.
    """

    output = Encoded

    def __init__(self, config: TransformConfig | None = None, name: str = ""):
        self.config: TransformConfig = config or TransformConfig()
        super().__init__(self.config, name)

    def run(self, out: Path, splits: Splits) -> None:
        """See `Encoded` for what is written.

        Raises:
          ShortlistError: if no item is left in the vocabulary.
        """
        fitted = fit(self.config, splits, partial(self._analysed, splits, out))
        parts = {out / f"{name}.parquet": splits / f"{name}.parquet" for name in part_names(splits)}
        orders = {path: _Order(len(fitted.encoder.users)) for path in parts}
        settings = {"key": "user_key", "group": GROUP}
        encode = (Write(Rows(of), path, fitted.encoder, settings, orders[path]) for path, of in parts.items())
        self.engine.run(out, *encode)
        for path, order in orders.items():
            if not order.kept:  # such as after a ContextSplitter, which renames users
                unordered = path.rename(path.with_suffix(".unordered"))
                sort_by_key(path, "user_key", order.sizes, partial(batches, unordered))
                unordered.unlink()
        fitted.write(out)
        for name in ("splits.json", "source.json"):
            shutil.copy(splits / name, out / name)

    def _analysed(self, splits: Splits, out: Path, analysis: Together, parts: Sequence[str]) -> dict[str, Any]:
        """The results of an analysis of some parts."""
        columns = list(analysis.parts)
        tables = [Rows(splits / f"{name}.parquet", columns) for name in parts]
        return self.engine.run(out, Analyse(analysis, tables))[0]


class _Order:
    """Looks at batches of encoded rows that follow each other: whether users come in order, and `sizes`, the rows of
    each."""

    def __init__(self, users: int):
        self.sizes, self.kept, self._last = np.zeros(users, np.int64), True, 0

    def __call__(self, encoded: pa.Table) -> None:
        keys = encoded["user_key"].to_numpy()
        self.sizes += np.bincount(keys, minlength=len(self.sizes))
        self.kept &= bool((np.diff(keys, prepend=self._last) >= 0).all())
        self._last = keys[-1] if len(keys) else self._last
