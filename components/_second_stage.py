"""The ranker over many shortlists."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shortlist import ShortlistError
from shortlist.components.artifacts import Candidates, Model


def score_shortlists(
    ranker: Model, tables: Mapping[str, Mapping[str, np.ndarray]], batch_size: int = 64
) -> dict[str, dict[str, np.ndarray]]:
    """`odds`, `watch` and `expected`, float32 `[Q, K]` each, of the shortlists of each split.

    Raises:
      ShortlistError: if an odds is not a number.
    """
    import tensorflow as tf

    served = tf.saved_model.load(str(ranker / "serving"))  # kept for as long as its functions are called
    return {split: score(served, table, batch_size) for split, table in tables.items()}


def score_shown(ranker: Model, table: Mapping[str, np.ndarray], batch_size: int = 8192) -> dict[str, np.ndarray]:
    """`odds`, `watch` and `expected`, float32 `[N]` each, of impressions (`read_shown`), each a candidate alone.

    Raises:
      ShortlistError: if an odds is not a number.
    """
    import tensorflow as tf

    served = tf.saved_model.load(str(ranker / "serving"))
    rows = {
        "features": table["features"][:, np.newaxis],
        "items": table["item"][:, np.newaxis],
        "history": table["history"][table["owner"]],
    }
    return {name: values[:, 0] for name, values in score(served, rows, batch_size).items()}


def score(ranker: Any, table: Mapping[str, np.ndarray], batch_size: int = 64) -> dict[str, np.ndarray]:
    """`odds`, `watch` and `expected`, float32 `[Q, K]` each, of shortlists (`read_shortlists`), in batches.

    Args:
      ranker: a loaded one, or a model: what has `score(features, items, history)`.
      table: the arrays of the shortlists.
      batch_size: queries at a time.

    Raises:
      ShortlistError: if an odds is not a number.
    """
    import tensorflow as tf

    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(table["items"]), batch_size):
        batch = (tf.constant(table[key][start : start + batch_size]) for key in ("features", "items", "history"))
        parts.append({name: value.numpy() for name, value in ranker.score(*batch).items()})
    none = np.zeros((0, table["items"].shape[1]), np.float32)
    names = ("odds", "watch", "expected")
    scores = {name: np.concatenate([none, *(part[name] for part in parts)]) for name in names}
    if (wrong := np.isnan(scores["odds"])).any():
        raise ShortlistError(
            "`ranker` scores candidates with NaN, so they have no order. Lower --set ranker.learning_rate. "
            f"Received: NaN for {int(wrong.any(axis=1).sum()):,} of {len(wrong):,} queries."
        )
    return scores


def by_odds(items: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """The candidates int32 `[Q, K]`, best first, ties in the order of the candidates."""
    order = np.argsort(np.where(items >= 2, -odds, np.inf), axis=1, kind="stable")
    return np.take_along_axis(items, order, axis=1)


def read_shortlists(candidates: Candidates, split: str) -> dict[str, np.ndarray]:
    """The arrays of one split, see `Candidates`."""
    with np.load(candidates / f"{split}.npz") as table:
        return dict(table)


def read_shown(candidates: Candidates, split: str) -> dict[str, np.ndarray]:
    """The arrays of the impressions of one split, see `Candidates`."""
    return read_shortlists(candidates, f"{split}.shown")
