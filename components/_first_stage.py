"""Retrieval over many queries, and the one way to build the first stage from artifacts."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from shortlist import ShortlistError
from shortlist.components._ann import load_approximate
from shortlist.components._config import Config
from shortlist.components._progress import progress
from shortlist.components._queries import EncodedData, Queries, has_impressions, known_weight, weight_source
from shortlist.components.artifacts import Index

if TYPE_CHECKING:
    from shortlist.models._ranking_features import Catalogue
    from shortlist.models._shortlist import Shortlist

YEAR = 365.2425 * 86_400
MOST = 100_000  # candidates


class ShortlistConfig(Config):
    """The first stage.

    Args:
      size: K, the candidates that the ranker sees.
      quota: what each source may propose, one number for all or one a source by name.
      history_length: the last watched items that the ranker's features look at.
      recent_years: the window of the recent counts, which also answer an empty history.
    """

    size: int = pydantic.Field(300, ge=1, le=MOST)
    quota: int | dict[str, int] = 300
    history_length: int = pydantic.Field(50, ge=1)
    recent_years: float = pydantic.Field(3.0, gt=0)

    @pydantic.field_validator("quota")
    @classmethod
    def _at_least_one(cls, quota: int | dict[str, int]) -> int | dict[str, int]:
        values = quota.values() if isinstance(quota, dict) else [quota]
        if any(value < 1 for value in values):
            raise ValueError(f"`quota` must be at least 1 for every source. Received: quota={quota}.")
        if any(value > MOST for value in values):
            raise ValueError(f"`quota` must be at most {MOST:,} for every source. Received: quota={quota}.")
        return quota

    def quotas(self, sources: Mapping[str, Any]) -> dict[str, int]:
        """The quota of each source.

        Raises:
          ShortlistError: if a source has none, or one has a quota that is not a source.
        """
        if isinstance(self.quota, int):
            return dict.fromkeys(sources, self.quota)
        if set(self.quota) != set(sources):
            raise ShortlistError(
                f"`shortlist.quota` must name exactly the sources {', '.join(sources)}. "
                f"Received: {', '.join(self.quota)}."
            )
        return dict(self.quota)


def load_index(index: Index) -> Any:
    """The SavedModel of an `Index`. Keep what it returns for as long as its functions are called."""
    import tensorflow as tf

    return tf.saved_model.load(str(index / "index"))


def build_shortlist(
    data: EncodedData,
    sources: Mapping[str, Index],
    config: ShortlistConfig,
    approximate: bool = False,
    catalogue: "Catalogue | None" = None,
) -> "Shortlist":
    """The first stage over `data`'s catalogue: the same object for candidates, evaluation and the served graph.

    Args:
      data: the encoded data.
      sources: the indexes by name, in the order of the union.
      config: of the first stage.
      approximate: ask the approximate indexes of those sources that have one, which no graph can hold.
      catalogue: what `describe_catalogue` says of them, for whoever shall not read all interactions again.

    Raises:
      ShortlistError: if a source was not made for this catalogue, or a quota names no source.
    """
    from shortlist.components._near_shortlist import NearShortlist
    from shortlist.models._ranking_features import RankingFeatures
    from shortlist.models._shortlist import Shortlist

    for index in sources.values():
        index.refuse_unless_made_from(data.artifact)
    loaded = {name: load_index(index) for name, index in sources.items()}
    vectors = {name: s.item_vectors().numpy() for name, s in loaded.items() if hasattr(s, "item_vectors")}
    catalogue = describe_catalogue(data, config.recent_years) if catalogue is None else catalogue
    quota = config.quotas(loaded)
    features = RankingFeatures(catalogue, vectors, tuple(loaded), config.history_length, tuple(quota.values()))
    size = min(config.size, sum(quota.values()))
    closed = data.closed if data.closed.any() else None
    arguments = (loaded, quota, size, catalogue.recent_count, features, data.kinds, closed)
    near = {name: load_approximate(sources[name], own) for name, own in vectors.items()} if approximate else {}
    found = {name: index for name, index in near.items() if index is not None}
    return NearShortlist(found, *arguments) if found else Shortlist(*arguments)


def describe_catalogue(data: EncodedData, recent_years: float) -> "Catalogue":
    """The catalogue's content, and its counts and times in the part that the encoding was fitted on."""
    from shortlist.models._ranking_features import Catalogue

    rows = data.fitted_rows()
    keep = rows["positive"]
    items, times = rows["item"][keep], rows["timestamp"][keep]
    first = np.full(data.num_items, times.max(initial=0))
    last = np.full(data.num_items, times.min(initial=times.max(initial=0)))
    np.minimum.at(first, items, times)
    np.maximum.at(last, items, times)
    of_item = lambda rows, weights=None: np.bincount(rows, weights, data.num_items)  # noqa: E731
    weight, source = known_weight(data, rows)[keep].astype(np.float64), weight_source(data)
    weight = np.where(weight >= 0, weight, weight[weight >= 0].mean() if (weight >= 0).any() else 0.0)
    recent = times > times.max(initial=0) - recent_years * YEAR
    return Catalogue(
        genres=data.items["genres"],
        year=data.items["year"],
        count=of_item(items),
        recent_count=of_item(items[recent]),
        first_time=first,
        last_time=last,
        weight=of_item(items, weight),
        shown=of_item(rows["item"]) if has_impressions(data) else None,
        weight_from=source,
        highest=float(weight.max(initial=0)) or 1.0,
        categories={name: data.items[f"category_{name}"] for name in data.state["categories"]},
        shared=tuple(data.state["shared_categories"]),
        numbers={name: data.items[f"number_{name}"] for name in data.state["numbers"]},
        contexts={n: _by_condition(items, rows[n][keep], data.num_items, size) for n, size in data.contexts.items()},
    )


def _by_condition(items: np.ndarray, conditions: np.ndarray, num_items: int, size: int) -> np.ndarray:
    """How many rows every item has in every condition, float64 `[I, N]`."""
    cells = items.astype(np.int64) * size + conditions
    return np.bincount(cells, minlength=num_items * size).reshape(num_items, size).astype(np.float64)


def retrieve(score: Callable[..., Any], queries: Queries, k: int, name: str, batch_size: int = 128) -> np.ndarray:
    """The k best unseen items of every query, int32 `[Q, k]`, 0 where none is left.

    Args:
      score: a `Query` → scores float32 `[B, I]`.
      queries: what to ask.
      k: at least 1.
      name: of the model, for the bar and the error.
      batch_size: queries at a time; bounds the memory.

    Raises:
      ShortlistError: if a score is not a number.
    """
    import tensorflow as tf

    from shortlist.models._base import masked_top_k

    parts = []
    with progress(f"{name}: {queries.split}", len(queries)) as advance:
        for rows, batch in queries.batches(batch_size):
            exclude = batch.pop("exclude")
            scores = score({key: tf.constant(value) for key, value in batch.items()})
            if bool(tf.reduce_any(tf.math.is_nan(scores))):
                raise ShortlistError(
                    f"`{name}` scores items with NaN, so they have no order. Train it with a smaller learning rate "
                    f"or more regularization. Received: NaN among {queries.split}'s queries {rows.start} "
                    f"to {rows.stop - 1}."
                )
            parts.append(masked_top_k(scores, k, exclude)[0].numpy())
            advance(len(exclude))
    return np.concatenate(parts) if parts else np.zeros((0, k), np.int32)
