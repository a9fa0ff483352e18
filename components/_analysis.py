"""What is learned of a table in one pass: computations whose parts can be made anywhere and put together after.

Each has `start() → state`, `add(state, table) → state`, `merge(a, b) → state` and `result(state)`. A state is small
beside the rows that it was made from and can be pickled; merging is associative, and the order of the parts does not
matter for what is fitted (for `Quantiles` past `exact` rows, not beyond its stated error). No state that is given is
changed. The local runner adds batch after batch (`analyse`), a cluster merges many.

An analysis by value, whose state grows with the number of different values, can also be cut: `split(state, n)` makes
states of n buckets of values, of which each worker merges its own; `reduce(state)` leaves what is needed of a bucket
that is complete, and `join` makes the result of those of all buckets.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from shortlist.components._categories import one_line
from shortlist.components._hashing import split_tables

S = TypeVar("S")
EXACT = 2**24
"""Numbers of which quantiles are exact."""
LEVEL = 2**18


class Analysis(Protocol[S]):
    """One computation; see the module."""

    def start(self) -> S: ...

    def add(self, state: S, table: pa.Table) -> S: ...

    def merge(self, a: S, b: S) -> S: ...

    def result(self, state: S) -> Any: ...


def analyse(analysis: Analysis[S], tables: Iterable[pa.Table]) -> S:
    """The state after all of `tables`."""
    state = analysis.start()
    for table in tables:
        state = analysis.add(state, table)
    return state


@dataclass(frozen=True)
class Together:
    """Several computations of one pass, by name; so are their states and results."""

    parts: Mapping[str, Any]

    def start(self) -> dict[str, Any]:
        return {name: part.start() for name, part in self.parts.items()}

    def add(self, state: dict[str, Any], table: pa.Table) -> dict[str, Any]:
        return {name: part.add(state[name], table) for name, part in self.parts.items()}

    def merge(self, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        return {name: part.merge(a[name], b[name]) for name, part in self.parts.items()}

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        return {name: part.result(state[name]) for name, part in self.parts.items()}


@dataclass(frozen=True)
class ByValue:
    """An analysis of the different values of a column: what each is there for, in tables with a column `value`.

    A state is a few such tables. They are joined when the later ones have as many rows as the first, so that each value
    is handled a few times only.

    Args:
      column: its name.
    """

    column: str

    def of(self, table: pa.Table) -> pa.Table:
        """What a batch has."""
        raise NotImplementedError

    def joined(self, tables: Sequence[pa.Table]) -> pa.Table:
        """One table of many, of which there may be none."""
        raise NotImplementedError

    def start(self) -> list[pa.Table]:
        return []

    def add(self, state: list[pa.Table], table: pa.Table) -> list[pa.Table]:
        return self.merge(state, [self.of(table)])

    def merge(self, a: list[pa.Table], b: list[pa.Table]) -> list[pa.Table]:
        state = [*a, *b]
        if sum(map(len, state[1:])) > max(len(state[0]) if state else 0, 2**16):
            state = [self.joined(state)]
        return state

    def split(self, state: list[pa.Table], buckets: int) -> list[list[pa.Table]]:
        """States of the values of each bucket, all of which are in one."""
        return split_tables(state, "value", buckets)

    def reduce(self, state: list[pa.Table]) -> pa.Table:
        """What is needed of a bucket that is complete."""
        return self.joined(state)

    def join(self, reduced: Sequence[pa.Table]) -> pa.Table:
        """The result of all buckets."""
        return pa.concat_tables([table for table in reduced if len(table)] or reduced[:1])

    def result(self, state: list[pa.Table]) -> pa.Table:
        return self.join([self.reduce(state)])


@dataclass(frozen=True)
class Counts(ByValue):
    """How many rows each value of a column has, nulls left out: columns `value` and `count` int64.

    The values stand in the order in which they were first met.

    Args:
      column: its name.
      text: as text of one line each, "" being a null: what a vocabulary is made of.
    """

    text: bool = False

    def of(self, table: pa.Table) -> pa.Table:
        return count(one_line(table[self.column]) if self.text else table[self.column])

    def joined(self, tables: Sequence[pa.Table]) -> pa.Table:
        if not tables:
            return pa.table({"value": pa.array([], pa.string()), "count": pa.array([], "i8")})
        if len(tables) == 1:
            return tables[0]
        table = pa.concat_tables(tables)
        values = table["value"].combine_chunks().dictionary_encode()  # in the order of their first rows
        total = np.bincount(values.indices.to_numpy(), table["count"].to_numpy(), len(values.dictionary))
        return pa.table({"value": values.dictionary, "count": total.astype(np.int64)})


def count(values: pa.ChunkedArray) -> pa.Table:
    """Columns `value` and `count` of the values that aren't null, in the order of their first rows."""
    counts = values.drop_null().value_counts()
    return pa.table({"value": counts.field("values"), "count": counts.field("counts")})


@dataclass
class Summary:
    """The state of `Quantiles`: arrays of numbers by level, one of level h standing for 2^h of the rows."""

    levels: list[list[np.ndarray]] = field(default_factory=lambda: [[]])
    count: int = 0
    minimum: Any = None
    maximum: Any = None

    def quantiles(self, shares: np.ndarray) -> list[float]:
        """Linear quantiles, as `np.quantile` has them; nothing of no number."""
        if not self.count:
            return []
        if len(self.levels) == 1:
            return np.quantile(_joined(self.levels[0]), shares).tolist()
        values = np.concatenate([_joined(level) for level in self.levels])
        weights = np.concatenate([np.full(sum(map(len, level)), 2**h) for h, level in enumerate(self.levels)])
        order = np.argsort(values)
        values, weights = values[order].astype(np.float64), weights[order]
        middle = np.cumsum(weights) - (weights + 1) / 2  # the mean rank of the rows that each stands for
        found = np.interp(shares * (self.count - 1), middle, values)
        return np.where(shares <= 0, self.minimum, np.where(shares >= 1, self.maximum, found)).tolist()


@dataclass(frozen=True)
class Quantiles:
    """The distribution of a column of numbers, what is null or not finite left out.

    Up to `exact` numbers all are kept, and the quantiles are those of `np.quantile`. Past that, a level of more than
    `level` numbers is sorted and every second of them, now the odd and now the even ones, goes on to the next level,
    where it counts twice. That moves the rank of no number by more than 2^h at level h, so that the rank of a quantile
    of n numbers is wrong by less than a share (1 + log2(n / level)) / level: 10⁻⁴ for 10⁹ at the default. Minimum and
    maximum are exact.

    Source: Manku, Rajagopalan and Lindsay 1998 (deterministic collapses); Agarwal et al. 2012 (that they merge).

    Args:
      column: its name.
      exact: at least `level`.
    """

    column: str
    exact: int = EXACT
    level: int = LEVEL

    def start(self) -> Summary:
        return Summary()

    def add(self, state: Summary, table: pa.Table) -> Summary:
        values = table[self.column].drop_null().to_numpy()
        values = values[np.isfinite(values)]
        if not len(values):
            return state
        return self.merge(state, Summary([[values]], len(values), values.min(), values.max()))

    def merge(self, a: Summary, b: Summary) -> Summary:
        if not a.count or not b.count:
            return a if a.count else b
        none: list[np.ndarray] = []
        levels = [[*x, *y] for x, y in itertools.zip_longest(a.levels, b.levels, fillvalue=none)]
        merged = Summary(levels, a.count + b.count, min(a.minimum, b.minimum), max(a.maximum, b.maximum))
        if merged.count > self.exact:
            self._collapse(merged)
        return merged

    def result(self, state: Summary) -> Summary:
        return state

    def _collapse(self, state: Summary) -> None:
        h = 0
        while h < len(state.levels):
            size = sum(map(len, state.levels[h]))
            if size > self.level:
                values = np.sort(_joined(state.levels[h]))
                even = len(values) // 2 * 2
                if h + 1 == len(state.levels):
                    state.levels.append([])
                first = state.count // 2**h % 2
                state.levels[h + 1].append(values[first:even:2])
                state.levels[h] = [values[even:]]
            h += 1


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
