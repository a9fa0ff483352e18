"""Splits of items and users by context: the tests, and the tables with the ids of both halves."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic
import scipy.special

from shortlist import ShortlistError
from shortlist.components._categories import ascending
from shortlist.components._config import Config

PREFIX = "context_"
SIDES = ("item", "user")
CONDITION = pa.list_(pa.struct({"dimension": pa.string(), "condition": pa.string()}))
TABLE = pa.schema(
    {
        "side": pa.string(),
        "id": pa.string(),
        "condition": CONDITION,
        "statistic": pa.float64(),
        "p": pa.float64(),
        "n_in": pa.int64(),
        "n_out": pa.int64(),
        "id_in": pa.string(),
        "id_out": pa.string(),
    }
)
"""A row a split: an item or user, its condition (all parts must hold), the test, and the ids of its two halves."""


class SplitByContextConfig(Config):
    """How items and users are split by context.

    Args:
      side: what is split: "item", "user" or "both", each by itself.
      criterion: "t", Welch's test of the mean rating; "z", the test of two proportions of high ratings;
        "information_gain" about the ratings as classes, tested as a likelihood ratio (G).
      mode: "simple" splits by one condition, "complex" also by conjunctions; these overfit more easily.
      max_dimensions: the most dimensions of a conjunction.
      alpha: the level of the test: p must be below it.
      min_ratings: the fewest ratings of a half. Of ratings in whole stars Welch's p is too small where a half is: of
        1,000 sets without an effect (20 items, 140 tests, with correction at .05) 85 had a split with halves of at
        least 10 ratings, and 53 with 20.
      correction: hold the rate of false splits among all splits below `alpha` (Benjamini and Hochberg 1995), instead of
        that of each test.
      high_rating: for "z": the lowest rating that is high.
    """

    side: Literal["item", "user", "both"] = "item"
    criterion: Literal["t", "z", "information_gain"] = "t"
    mode: Literal["simple", "complex"] = "simple"
    max_dimensions: int = pydantic.Field(2, ge=2, le=4)
    alpha: float = pydantic.Field(0.05, gt=0, lt=1)
    min_ratings: int = pydantic.Field(20, ge=2)
    correction: bool = False
    high_rating: float = 4.0

    @property
    def sides(self) -> tuple[str, ...]:
        """What is split, one or both of `SIDES`."""
        return SIDES if self.side == "both" else (self.side,)


@dataclass(frozen=True)
class Splits:
    """A row a split: `owner` int `[S]`, `required` int `[S, C]` (a condition of each dimension, 0 for any), `statistic`
    and `p` float64, `n_in` and `n_out` int."""

    owner: np.ndarray
    required: np.ndarray
    statistic: np.ndarray
    p: np.ndarray
    n_in: np.ndarray
    n_out: np.ndarray

    def halves(self, owner: np.ndarray, conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of rows: the split of their owner int `[N]`, -1 for none, and whether its condition holds, bool `[N]`."""
        slot = np.full(max(owner.max(initial=-1), self.owner.max(initial=-1)) + 2, -1)
        slot[self.owner] = np.arange(len(self.owner))
        split = slot[owner]
        required = np.concatenate([self.required, np.zeros_like(conditions[:1], shape=(1, conditions.shape[1]))])[split]
        return split, (split >= 0) & ((required == 0) | (required == conditions)).all(axis=1)


def best_splits(owner: np.ndarray, rating: np.ndarray, conditions: np.ndarray, config: SplitByContextConfig) -> Splits:
    """For each owner the split with the least p, then the largest statistic, of those that pass.

    A condition is tested against all other ratings of the owner, those of unknown context included, as a request
    without context gets the other half. Where the statistic is undefined, such as for ratings that are all equal,
    there is no split.

    Source: Baltrunas and Ricci 2009, "Context-based splitting of item ratings in collaborative filtering", and 2014,
    "Experimental evaluation of context-dependent collaborative filtering using item splitting", for the idea and the
    criteria; p of the information gain, and the correction, are additions.

    Args:
      owner: int `[N]`, the item or user of each rating.
      rating: float `[N]`.
      conditions: int `[N, C]`, a condition of each dimension from 1 on, 0 where it isn't known.
      config: see there.

    Example:
      >>> owner, rating = np.zeros(8, int), np.array([5, 5, 4, 5, 1, 2, 1, 1])
      >>> weekend = np.array([[1], [1], [1], [1], [2], [2], [2], [0]])
      >>> found = best_splits(owner, rating, weekend, SplitByContextConfig(min_ratings=3))
      >>> found.required.tolist(), found.n_in.tolist(), round(float(found.statistic[0]), 2)
      ([[1]], [4], 9.9)
    """
    count = np.bincount(owner, minlength=1)
    able = np.flatnonzero(count >= 2 * config.min_ratings)
    slot = np.full(len(count), -1)
    slot[able] = np.arange(len(able))
    keep = slot[owner] >= 0
    owner, rating, conditions = slot[owner[keep]], np.asarray(rating, np.float64)[keep], conditions[keep]
    measures = _measures(rating, config)
    total = _sums(owner, measures, len(able))
    found: list[tuple[np.ndarray, ...]] = []
    for dimensions in _groups(conditions.shape[1], config):
        sizes = [int(conditions[:, d].max(initial=0)) for d in dimensions]
        known = (conditions[:, dimensions] > 0).all(axis=1)
        if not known.any():
            continue
        width = int(np.prod(sizes))
        code = np.ravel_multi_index(tuple(conditions[known][:, dimensions].T - 1), sizes)
        cells, inside = _cells(owner[known].astype(np.int64) * width + code, measures[known], len(able) * width)
        enough = (inside[:, 0] >= config.min_ratings) & (total[cells // width, 0] - inside[:, 0] >= config.min_ratings)
        cells, inside = cells[enough], inside[enough]
        outside = total[cells // width] - inside
        statistic, p = {"t": _welch, "z": _proportions, "information_gain": _gain}[config.criterion](inside, outside)
        required = np.zeros((len(cells), conditions.shape[1]), np.int64)
        required[:, dimensions] = np.stack(np.unravel_index(cells % width, sizes), axis=1) + 1
        found.append((cells // width, required, statistic, p, inside[:, 0].astype(int), outside[:, 0].astype(int)))
    if not found:
        empty = np.zeros(0, np.int64)
        return Splits(empty, np.zeros((0, conditions.shape[1]), np.int64), empty * 1.0, empty * 1.0, empty, empty)
    joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    which, _, statistic, p, _, _ = joined
    defined = ~np.isnan(p)
    passed = defined & (p <= _benjamini_hochberg(p[defined], config.alpha) if config.correction else p < config.alpha)
    rows = np.flatnonzero(passed)
    rows = rows[np.lexsort((-np.abs(statistic[rows]), p[rows], which[rows]))]  # stable: then the fewest dimensions
    rows = rows[np.diff(which[rows], prepend=-1) > 0]
    return Splits(able[which[rows]], *(values[rows] for values in joined[1:]))


def _groups(dimensions: int, config: SplitByContextConfig) -> Iterator[list[int]]:
    most = config.max_dimensions if config.mode == "complex" else 1
    for size in range(1, min(most, dimensions) + 1):
        yield from map(list, itertools.combinations(range(dimensions), size))


def _measures(rating: np.ndarray, config: SplitByContextConfig) -> np.ndarray:
    """What of each rating is summed, float64 `[N, M]`, the first of it 1."""
    ones = np.ones(len(rating))
    if config.criterion == "z":
        return np.stack([ones, rating >= config.high_rating], axis=1)
    if config.criterion == "information_gain":
        classes, which = np.unique(rating, return_inverse=True)
        return np.column_stack([ones, which[:, np.newaxis] == np.arange(len(classes))])
    centred = rating - np.round(rating.mean()) if len(rating) else rating  # a whole number: sums of halves stay exact
    return np.stack([ones, centred, centred**2], axis=1)


def _sums(cell: np.ndarray, measures: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.bincount(cell, column, size) for column in measures.T], axis=1)


def _cells(cell: np.ndarray, measures: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells that occur and the sums of the measures in each."""
    if size > 2 * len(cell) + 1_000_000:  # most are empty: a table of all would be larger than the ratings
        cells, cell = np.unique(cell, return_inverse=True)
        return cells, _sums(cell, measures, len(cells))
    sums = _sums(cell, measures, size)
    cells = np.flatnonzero(sums[:, 0])
    return cells, sums[cells]


def _welch(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    means, errors = [], []
    for n, total, squares in (inside.T, outside.T):
        variance = (squares - total**2 / n) / (n - 1)
        variance = np.where(variance <= 1e-12 * squares, 0, variance)  # what rounding leaves of equal ratings
        means.append(total / n)
        errors.append(variance / n)
    difference, error = means[0] - means[1], errors[0] + errors[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where((error == 0) & (np.abs(difference) < 1e-9), np.nan, difference / np.sqrt(error))
        freedom = error**2 / (errors[0] ** 2 / (inside[:, 0] - 1) + errors[1] ** 2 / (outside[:, 0] - 1))
    return t, 2 * scipy.special.stdtr(np.where(error == 0, 1, freedom), -np.abs(t))


def _proportions(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (n_in, high_in), (n_out, high_out) = inside.T, outside.T
    share = (high_in + high_out) / (n_in + n_out)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (high_in / n_in - high_out / n_out) / np.sqrt(share * (1 - share) * (1 / n_in + 1 / n_out))
    return z, 2 * scipy.special.ndtr(-np.abs(z))


def _gain(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bits, and p of G = 2 n ln 2 · bits, which goes as χ² of one degree less than the classes that the owner has."""
    both = inside + outside
    share = np.divide(both[:, 1:], both[:, :1])
    nats = sum(
        scipy.special.xlogy(part[:, 1:], part[:, 1:] / np.where(share > 0, part[:, :1] * share, 1)).sum(axis=1)
        for part in (inside, outside)
    )
    freedom = (both[:, 1:] > 0).sum(axis=1) - 1
    p = np.where(freedom > 0, scipy.special.chdtrc(np.maximum(freedom, 1), np.maximum(2 * nats, 0)), np.nan)
    return nats / (both[:, 0] * np.log(2)), p


def _benjamini_hochberg(p: np.ndarray, alpha: float) -> float:
    """The largest p that still passes, or −1."""
    order = np.sort(p)
    below = np.flatnonzero(order <= alpha * np.arange(1, len(p) + 1) / max(len(p), 1))
    return float(order[below[-1]]) if len(below) else -1.0


# --- tables with ids ------------------------------------------------------------------------------------------------


def dimensions_of(interactions: pa.Table) -> list[str]:
    """The dimensions of the context that a table has columns for."""
    return [name.removeprefix(PREFIX) for name in interactions.column_names if name.startswith(PREFIX)]


def find_splits(interactions: pa.Table, config: SplitByContextConfig) -> pa.Table:
    """The splits of items, users or both that the rated rows of a table call for: the columns of `TABLE`.

    Args:
      interactions: columns user, item, rating (null: not used) and `context_<dimension>` string (null: not known).
      config: see there.

    Raises:
      ShortlistError: without a column of context or without a rating.
    """
    names = dimensions_of(interactions)
    rated = interactions.filter(pc.is_valid(interactions["rating"]))
    if not names or not len(rated):
        raise ShortlistError(
            "Splitting by context needs ratings and at least one column `context_<dimension>`. Received: "
            f"{len(rated):,} ratings and the columns {', '.join(interactions.column_names)}."
        )
    codes, values = zip(*(row_numbers(rated[PREFIX + name]) for name in names), strict=True)
    conditions, rating = np.stack(codes, axis=1), rated["rating"].to_numpy()
    tables = []
    for side in config.sides:
        owner, ids = row_numbers(rated[side])
        found = best_splits(owner - 1, rating, conditions, config)
        split, dimension = np.nonzero(found.required)  # by split, then by dimension
        code = found.required[split, dimension]
        condition = pa.nulls(len(split), pa.string())
        for d, known in enumerate(values):
            condition = pc.if_else(
                pa.array(dimension == d), known.take(pa.array(np.where(dimension == d, code, 0))), condition
            )
        parts = pa.array(names, pa.string()).take(pa.array(dimension))
        offsets = pa.array(np.searchsorted(split, np.arange(len(found.owner) + 1)), pa.int32())
        text = pc.binary_join(
            pa.ListArray.from_arrays(offsets, pc.binary_join_element_wise(parts, condition, "=")), " & "
        )
        base = ids.take(pa.array(found.owner + 1))
        inside, outside = (pc.binary_join_element_wise(base, before, text, "]", "") for before in (" [", " [not "))
        while pc.any(pc.is_in(pa.concat_arrays([inside, outside]), ids)).as_py():
            inside, outside = (pc.binary_join_element_wise(half, "'", "") for half in (inside, outside))
        columns = {
            "side": pa.nulls(len(base), pa.string()).fill_null(side),
            "id": base,
            "condition": pa.ListArray.from_arrays(
                offsets, pa.StructArray.from_arrays([parts, condition], ["dimension", "condition"])
            ),
            **{name: getattr(found, name) for name in ("statistic", "p", "n_in", "n_out")},
            "id_in": inside,
            "id_out": outside,
        }
        tables.append(pa.table(columns, TABLE))
    return pa.concat_tables(tables)


def apply_splits(interactions: pa.Table, splits: pa.Table) -> pa.Table:
    """The rows with the id of the half that their context belongs to; an unknown context belongs to the other half."""
    for side in SIDES:
        own = splits.filter(pc.equal(splits["side"], side))
        if not len(own):
            continue
        row = pc.index_in(interactions[side], own["id"].combine_chunks())
        split = row.fill_null(-1).to_numpy()
        holds = split >= 0
        lists = own["condition"].combine_chunks()
        parent, parts = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
        for name in pc.unique(parts.field("dimension")).to_pylist():
            mine = np.flatnonzero(pc.equal(parts.field("dimension"), name).to_numpy(zero_copy_only=False))
            place = np.full(len(own) + 1, -1)  # the last for rows without a split
            place[parent[mine]] = mine
            place = place[split]
            needed = parts.field("condition").take(pa.array(place, mask=place < 0))
            known = PREFIX + name in interactions.column_names
            given = interactions[PREFIX + name].combine_chunks() if known else pa.nulls(len(interactions), pa.string())
            same = pc.fill_null(pc.equal(given, needed), False).to_numpy(zero_copy_only=False)
            holds &= (place < 0) | same
        half = pc.if_else(pa.array(holds), own["id_in"].take(row).combine_chunks(), own["id_out"].take(row))
        ids = pc.coalesce(half, interactions[side])
        interactions = interactions.set_column(interactions.column_names.index(side), side, ids)
    return interactions


def undo_splits(table: pa.Table, splits: pa.Table) -> pa.Table:
    """The rows with the ids that they had before the split."""
    for side in SIDES:
        own = splits.filter(pc.equal(splits["side"], side))
        if side in table.column_names and len(own):
            halves = pa.concat_arrays([own["id_in"].combine_chunks(), own["id_out"].combine_chunks()])
            bases = pa.concat_arrays([own["id"].combine_chunks()] * 2)
            ids = pc.coalesce(bases.take(pc.index_in(table[side], halves).combine_chunks()), table[side])
            table = table.set_column(table.column_names.index(side), side, ids)
    return table


def split_catalogue(table: pa.Table, side: str, splits: pa.Table) -> pa.Table:
    """The table of items or users with two rows, alike but for the id, in the place of each that is split."""
    own = splits.filter(pc.equal(splits["side"], side))
    row = pc.index_in(table[side], own["id"].combine_chunks())
    inside, outside = (pc.coalesce(own[half].take(row), table[side]) for half in ("id_in", "id_out"))
    place = table.column_names.index(side)
    both = pa.concat_tables([table.set_column(place, side, inside), table.set_column(place, side, outside)])
    keep = np.arange(len(both)) < len(table)
    keep[len(table) :] = pc.is_valid(row).to_numpy()
    order = np.argsort(np.tile(np.arange(len(table)), 2)[keep], kind="stable")
    return both.filter(pa.array(keep)).take(pa.array(order))


def half_rows(splits: pa.Table, side: str, ids: pa.Array, conditions: Mapping[str, pa.Array]) -> dict[str, np.ndarray]:
    """What `shortlist.models._split_rows.SplitRows` is told of the rows of a vocabulary.

    Args:
      splits: the table of `find_splits`.
      side: "item" or "user".
      ids: the id of each row, R of them.
      conditions: by dimension, in the order of the layer's, its conditions, from 1 on.

    Returns:
      `required` int32 `[R, C]`, `inverse` bool `[R]` and `sibling` int32 `[R]`.
    """
    own = splits.filter(pc.equal(splits["side"], side))
    lists = own["condition"].combine_chunks()
    parent, parts = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
    needed = np.zeros((len(own) + 1, len(conditions)), np.int32)  # the last for rows that are no half
    for j, (name, values) in enumerate(conditions.items()):
        mine = pc.equal(parts.field("dimension"), name).to_numpy(zero_copy_only=False)
        code = pc.fill_null(pc.index_in(parts.field("condition"), values), len(values)).to_numpy() + 1
        needed[parent[mine], j] = code[mine]  # a condition that no row has stands past the last: it never holds
    inside, outside = (
        pc.fill_null(pc.index_in(ids, own[n].combine_chunks()), -1).to_numpy() for n in ("id_in", "id_out")
    )
    split = np.maximum(inside, outside)
    sibling = np.arange(len(ids), dtype=np.int32)
    for here, half in ((inside, "id_out"), (outside, "id_in")):
        other = pc.fill_null(pc.index_in(own[half].combine_chunks(), ids), -1).to_numpy()
        found = (here >= 0) & (np.append(other, -1)[here] >= 0)
        sibling[found] = other[here[found]]
    return {"required": needed[split], "inverse": outside >= 0, "sibling": sibling}


def row_numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Rows from 1 on in the sorted distinct values, 0 for null; and the values, the first null."""
    values = ascending(pc.unique(column).drop_null())
    found = pc.fill_null(pc.index_in(column, values), -1).to_numpy() + 1
    return found, pa.concat_arrays([pa.nulls(1, pa.string()), values])
