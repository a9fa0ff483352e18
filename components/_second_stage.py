"""The ranker over many shortlists."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shortlist import ShortlistError
from shortlist.components.artifacts import Candidates, Model


def score_shortlists(
    ranker: Model, tables: Mapping[str, Mapping[str, np.ndarray]], batch_size: int = 64
) -> dict[str, np.ndarray]:
    """The odds float32 `[Q, K]` of the shortlists of each split.

    Raises:
      ShortlistError: if an odds is not a number.
    """
    import tensorflow as tf

    served = tf.saved_model.load(str(ranker / "serving"))  # kept for as long as its functions are called
    return {split: _score(served, table["features"], batch_size) for split, table in tables.items()}


def _score(served: Any, features: np.ndarray, batch_size: int) -> np.ndarray:
    import tensorflow as tf

    starts = range(0, len(features), batch_size)
    parts = [served.score(tf.constant(features[start : start + batch_size])).numpy() for start in starts]
    odds = np.concatenate(parts) if parts else np.zeros(features.shape[:2], np.float32)
    if np.isnan(odds).any():
        raise ShortlistError(
            "`ranker` scores candidates with NaN, so they have no order. Lower --set ranker.learning_rate. "
            f"Received: NaN for {int(np.isnan(odds).any(axis=1).sum()):,} of {len(odds):,} queries."
        )
    return odds


def by_odds(items: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """The candidates int32 `[Q, K]`, best first, ties in the order of the candidates."""
    order = np.argsort(np.where(items >= 2, -odds, np.inf), axis=1, kind="stable")
    return np.take_along_axis(items, order, axis=1)


def read_shortlists(candidates: Candidates, split: str) -> dict[str, np.ndarray]:
    """The arrays of one split, see `Candidates`."""
    with np.load(candidates / f"{split}.npz") as table:
        return dict(table)
