"""Makes `PostFiltered` of another retriever and of what was watched in which context."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Artifact
from shortlist.models._base import FIRST_ID
from shortlist.models._nested import described
from shortlist.models.post_filter import PostFiltered
from shortlist.trainers._common import TrainerConfig, bases, contexts_of, known_positives, load, prepare, save, serving

MOST = 2000
"""Items past which each can't be an attribute of its own."""


class Config(TrainerConfig):
    """Settings of post-filtering; see the model.

    Args:
      of: the source, baseline or model whose shortlist it is.
      attributes: what of an item fits a context: its "genres", or the "item" itself, in a small catalogue.
    """

    of: str = "wals"
    attributes: Literal["genres", "item"] = "genres"
    candidates: int = pydantic.Field(500, ge=1)
    mode: Literal["weight", "filter"] = "weight"
    smoothing: float = pydantic.Field(10.0, gt=0)
    threshold: float = pydantic.Field(0.1, ge=0, le=1)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Counts the positives of the training part.

    Raises:
      ShortlistError: if the data has no context, or the items have no such attributes.
    """
    prepare(config)
    data, rows = load(config, inputs)
    contexts, attributes = contexts_of(data), _attributes(data, config.attributes)
    if not contexts:
        raise ShortlistError(
            "`post_filter` needs a context. Give columns `context_<dimension>`, or set transform.time_contexts. "
            "Received: none."
        )
    ((_, base),) = bases(inputs).items()
    keep = known_positives(rows)
    watched = {name: rows[name][keep] for name in ("user", "item", *data.contexts)}
    settings = {name: getattr(config, name) for name in ("candidates", "mode", "smoothing", "threshold")}
    sizes = data.num_users, data.num_items, attributes.shape[1]
    model = PostFiltered(*sizes, contexts, described(base), **settings)
    model.adapt(base, watched, attributes)
    save(model, serving(model, data), config, workdir)


def _attributes(data: EncodedData, name: str) -> np.ndarray:
    """Float `[I, A]`, 1 where an item has an attribute."""
    if name == "genres":
        if not data.state["genres"]:
            raise ShortlistError(
                "`attributes` must be there: the items have no genres. In a small catalogue each item can be its own: "
                "attributes=item. Received: 'genres'."
            )
        return np.asarray(data.items["genres"])
    if data.num_items > MOST + FIRST_ID:
        raise ShortlistError(
            f"`attributes` can be the items themselves for {MOST:,} of them at most; use genres. "
            f"Received: {data.num_items - FIRST_ID:,} items."
        )
    return np.eye(data.num_items)[:, FIRST_ID:]
