"""What is in a column, as an analysis whose parts merge: the same to the last bit, however a table is cut."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shortlist.components._analysis import Counts, Quantiles, Summary
from shortlist.components._categories import is_number

SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
DOMAIN = 100
"""Text columns with at most so many values are listed in full."""
FREQUENT = 20
_SCALE = 1128  # 2^-1128 divides every float64
_CHUNK = 2**16


@dataclass(frozen=True)
class Moments:
    """Exact sums of finite numbers: `total` and `squares` in units of 2^-1128 and 2^-2256."""

    count: int = 0
    total: int = 0
    squares: int = 0

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float | None:
        """Rounded once."""
        return float(Fraction(self.total, self.count << _SCALE)) if self.count else None

    @property
    def standard_deviation(self) -> float | None:
        """Of the population."""
        if not self.count:
            return None
        root = math.isqrt((self.count * self.squares - self.total**2) << 256)  # of 128 bits more than there are
        return float(Fraction(root, self.count << (_SCALE + 128)))


def moments(values: np.ndarray) -> Moments:
    """The sums of finite float64 `[N]`.

    A number is M · 2^e with M of 53 bits, cut in three parts of 18 bits or less: sums of their products over 2^16
    numbers are exact in float64, one an exponent.
    """
    found = Moments()
    for start in range(0, len(values), _CHUNK):
        mantissa, exponent = np.frexp(values[start : start + _CHUNK])
        whole = np.ldexp(mantissa, 53).astype(np.int64)
        parts = [whole >> 36, whole >> 18 & (2**18 - 1), whole & (2**18 - 1)]
        low = int(exponent.min())
        place = exponent - low
        total = squares = 0
        for shift, part in zip((36, 18, 0), parts, strict=True):
            total += _sum(place, part, low - 53 + _SCALE, 1) << shift
        for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)):
            shift = 36 + 36 - 18 * (i + j) + (i != j)
            squares += _sum(place, parts[i] * parts[j], 2 * (low - 53 + _SCALE), 2) << shift
        found += Moments(len(mantissa), total, squares)
    return found


def _sum(place: np.ndarray, parts: np.ndarray, shift: int, step: int) -> int:
    """Σ parts · 2^(shift + step · place)."""
    sums = np.bincount(place, parts.astype(np.float64))
    return sum(int(sums[at]) << (shift + step * int(at)) for at in np.flatnonzero(sums))


@dataclass
class State:
    """Of a column so far: the table's rows, nulls, empty lists, values within lists and numbers that aren't finite; the
    ends; the moments; the distribution; how often each value is there."""

    rows: int = 0
    nulls: int = 0
    empty: int = 0
    values: int = 0
    not_finite: int = 0
    minimum: Any = None
    maximum: Any = None
    moments: Moments = Moments()
    summary: Summary | None = None
    counts: Sequence[pa.Table] = ()
    distinct: int = 0
    frequent: pa.Table | None = None


@dataclass(frozen=True)
class ColumnStatistics:
    """An analysis of a column; its result has the entries of `Statistics` for it.

    Args:
      column: its name.
      kind: its type.
      quantiles: of its values, which are called "value".
    """

    column: str
    kind: pa.DataType
    quantiles: Quantiles = Quantiles("value")  # noqa: RUF009  frozen
    _counts = Counts("value")

    @property
    def inner(self) -> pa.DataType:
        """The type of the values: of lists, those within."""
        return self.kind.value_type if self._lists else self.kind

    @property
    def _lists(self) -> bool:
        return pa.types.is_list(self.kind) or pa.types.is_large_list(self.kind)

    @property
    def _numbers(self) -> bool:
        return is_number(self.inner) or pa.types.is_decimal(self.inner)

    @property
    def _counted(self) -> bool:
        text = pa.types.is_string(self.inner) or pa.types.is_large_string(self.inner)
        return text or pa.types.is_boolean(self.inner) or is_number(self.inner)

    def start(self) -> State:
        return State(summary=self.quantiles.start(), counts=self._counts.start())

    def add(self, state: State, table: pa.Table) -> State:
        values = table[self.column]
        new = State(rows=len(values), nulls=values.null_count, summary=self.quantiles.start())
        if self._lists:
            new.empty = pc.sum(pc.equal(pc.fill_null(pc.list_value_length(values), 0), 0)).as_py() or 0
            values = pc.list_flatten(values)
            new.values = len(values)
        values = values.drop_null()
        if pa.types.is_floating(self.inner):
            finite = pc.add(values.filter(pc.is_finite(values)), pa.scalar(0, self.inner))  # -0.0 is 0.0
            new.not_finite, values = len(values) - len(finite), finite
        if self._numbers or pa.types.is_temporal(self.inner):
            ends = pc.min_max(values).as_py()
            new.minimum, new.maximum = ends["min"], ends["max"]
        if self._numbers:
            wide = values.cast(pa.float64(), safe=False)
            new.moments = moments(wide.to_numpy())
            new.summary = self.quantiles.add(self.quantiles.start(), pa.table({"value": wide}))
        if self._counted:
            new.counts = self._counts.add(self._counts.start(), pa.table({"value": values}))
        return self.merge(state, new)

    def merge(self, a: State, b: State) -> State:
        assert a.summary is not None
        assert b.summary is not None
        return State(
            rows=a.rows + b.rows,
            nulls=a.nulls + b.nulls,
            empty=a.empty + b.empty,
            values=a.values + b.values,
            not_finite=a.not_finite + b.not_finite,
            minimum=min((v for v in (a.minimum, b.minimum) if v is not None), default=None),
            maximum=max((v for v in (a.maximum, b.maximum) if v is not None), default=None),
            moments=a.moments + b.moments,
            summary=self.quantiles.merge(a.summary, b.summary),
            counts=self._counts.merge(list(a.counts), list(b.counts)),
        )

    def split(self, state: State, buckets: int) -> Iterator[State]:
        """States of the values of each bucket; the first has all that is not by value."""
        for number, counts in enumerate(self._counts.split(list(state.counts), buckets)):
            own = vars(state) if number == 0 else {"summary": self.quantiles.start()}
            yield State(**{**own, "counts": counts})

    def reduce(self, state: State) -> State:
        """Of a bucket that is complete, what can be among the most frequent of all."""
        counts = self._counts.result(list(state.counts))
        return State(**{**vars(state), "counts": (), "distinct": len(counts), "frequent": _most(counts, DOMAIN)})

    def join(self, reduced: Sequence[State]) -> dict[str, Any]:
        """The result of the buckets together."""
        tables = [state.frequent for state in reduced if state.frequent]
        counts = pa.concat_tables(tables) if tables else self._counts.result([])
        return self._about(reduced[0], sum(state.distinct for state in reduced), counts)

    def result(self, state: State) -> dict[str, Any]:
        return self.join([self.reduce(state)])

    def _about(self, state: State, distinct: int, counts: pa.Table) -> dict[str, Any]:
        about: dict[str, Any] = {"type": str(self.kind), "nulls": state.nulls}
        if self._lists:
            about |= {"empty": state.empty, "values": state.values}
        if self._numbers:
            assert state.summary is not None
            cut = state.summary.quantiles(np.array(SHARES))
            ends = (state.minimum, state.maximum)
            if pa.types.is_decimal(self.inner):
                ends = (None, None) if ends[0] is None else (float(ends[0]), float(ends[1]))
            about |= {
                "not_finite": state.not_finite,
                "minimum": ends[0],
                "maximum": ends[1],
                "mean": state.moments.mean,
                "standard_deviation": state.moments.standard_deviation,
                "quantiles": dict(zip(map(str, SHARES), cut, strict=True)) if cut else {},
            }
        elif pa.types.is_temporal(self.inner):
            ends = (state.minimum, state.maximum)
            about |= dict(zip(("minimum", "maximum"), (None if v is None else str(v) for v in ends), strict=True))
        if self._counted:
            listed = distinct if distinct <= DOMAIN and not pa.types.is_floating(self.inner) else FREQUENT
            most = _most(counts, listed)
            pairs = [list(pair) for pair in zip(most["value"].to_pylist(), most["count"].to_pylist(), strict=True)]
            about |= {"distinct": distinct, "most_frequent": pairs}
        return about


def _most(counts: pa.Table, number: int) -> pa.Table:
    if not len(counts):
        return counts
    order = [("count", "descending"), ("value", "ascending")]
    return counts.take(pc.select_k_unstable(counts, k=number, sort_keys=order)).combine_chunks()
