"""How every layer and model reads the context of a query: conditions of all dimensions as columns of one table."""

from collections.abc import Mapping

import tensorflow as tf

from shortlist.models._base import Query
from shortlist.models._checks import require, require_integer


def checked_contexts(contexts: Mapping[str, int]) -> dict[str, int]:
    """By dimension the number of its conditions, or ShortlistError."""
    known = isinstance(contexts, Mapping) and len(contexts) > 0
    require(known, "`contexts` must give the number of conditions of at least one dimension.", contexts=contexts)
    return {name: require_integer(f"contexts.{name}", size) for name, size in contexts.items()}


def condition_columns(query: Query, contexts: Mapping[str, int]) -> tf.Tensor:
    """The column of each dimension's condition, int64 `[B, C]`: from 1 on, one dimension after the other.

    Column 0 is "not known": the condition 0, any that the dimension doesn't have, and a dimension that is absent.

    Args:
      query: `user` int `[B]`, and `context_<dimension>` int `[B]`.
      contexts: by dimension, the number of its conditions.
    """
    found, first = [], 0
    for name, size in contexts.items():
        condition = tf.cast(query.get(f"context_{name}", tf.zeros_like(query["user"])), tf.int64)
        found.append(tf.where((condition >= 1) & (condition <= size), condition + first, 0))
        first += size
    return tf.stack(found, axis=1)
