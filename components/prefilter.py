"""Exact pre-filtering: only the rows of a context, or of a more general one where they are too few."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shortlist import ShortlistError
from shortlist.components.context import PREFIX, dimensions_of

Hierarchy = Mapping[str, Mapping[str, str]]
"""By dimension, what each condition belongs to, such as {"weekday": {"saturday": "weekend"}}; all belong to "any"."""


def prefilter(
    interactions: pa.Table, context: Mapping[str, str], hierarchy: Hierarchy | None = None, min_rows: int = 1
) -> tuple[pa.Table, dict[str, str | None]]:
    """Only the rows of a context, or of the nearest more general one that has enough of them.

    A context is made more general a step at a time, from a condition to what it belongs to and at last to any. Of all
    that have at least `min_rows` rows, the one with the fewest steps is taken, then the one with the most rows, then
    the one whose first dimensions remain. A row of unknown condition belongs to any alone.

    Source: Adomavicius and Tuzhilin 2011, "Context-Aware Recommender Systems", §3.1 (exact and generalized
    pre-filtering).

    Args:
      interactions: with columns `context_<dimension>`.
      context: a condition by dimension.
      hierarchy: see there.
      min_rows: how many rows are enough.

    Returns:
      The rows, and the condition taken of each dimension, None for any.

    Raises:
      ShortlistError: for a dimension that there is no column for, and for a hierarchy that goes round.
    """
    known = dimensions_of(interactions)
    for name in context:
        if name not in known:
            received = ", ".join(known) or "none"
            raise ShortlistError(
                f"`context` must name dimensions of the data. Received: {name}; there are: {received}."
            )
    parents = {name: (hierarchy or {}).get(name, {}) for name in context}
    levels = [[*_ancestors(parents[name], condition, name), None] for name, condition in context.items()]
    masks = [
        [_belongs(interactions[PREFIX + name], parents[name], name, level) for level in chain]
        for name, chain in zip(context, levels, strict=True)
    ]
    best: tuple[tuple[int, int, Sequence[int]], np.ndarray] | None = None
    for steps in itertools.product(*(range(len(chain)) for chain in levels)):
        mask = np.ones(len(interactions), bool)
        for own, step in zip(masks, steps, strict=True):
            mask &= own[step]
        rank = (sum(steps), -int(mask.sum()), steps)
        if (mask.sum() >= min_rows or rank[0] == sum(len(chain) - 1 for chain in levels)) and (
            not best or rank < best[0]
        ):
            best = rank, mask
    assert best is not None
    taken = {name: chain[step] for name, chain, step in zip(context, levels, best[0][2], strict=True)}
    return interactions.filter(pa.array(best[1])), taken


def _ancestors(parents: Mapping[str, str], condition: str, dimension: str) -> list[str]:
    chain = [condition]
    while (parent := parents.get(chain[-1])) is not None:
        if parent in chain:
            raise ShortlistError(
                f"`hierarchy.{dimension}` must lead from every condition to any. Received: "
                f"{' → '.join([*chain, parent])}, which goes round."
            )
        chain.append(parent)
    return chain


def _belongs(column: pa.ChunkedArray, parents: Mapping[str, str], dimension: str, level: str | None) -> np.ndarray:
    if level is None:
        return np.ones(len(column), bool)
    values = pc.unique(column).drop_null()
    below = [value for value in values.to_pylist() if level in _ancestors(parents, value, dimension)]
    return pc.is_in(column, pa.array(below, pa.string())).to_numpy()
