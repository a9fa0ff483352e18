"""Trains `CAMF`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pydantic

from shortlist import ShortlistError
from shortlist.components._progress import console
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Artifact
from shortlist.models.camf import CAMF
from shortlist.trainers._common import contexts_of
from shortlist.trainers._ratings import MANY, RatingConfig, train_ratings


class Config(RatingConfig):
    """Settings of context-aware matrix factorization; see the model."""

    deviation: Literal["C", "CI", "CU", "CUCI", "low_rank"] = "CUCI"
    l2_deviation: float = pydantic.Field(0.5, ge=0)
    rank: int = pydantic.Field(4, ge=1)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Fits it to the ratings of the training part, each with its context.

    Raises:
      ShortlistError: if the data has no context.
    """

    def make(data: EncodedData, users: int, items: int) -> tuple[CAMF, list[str]]:
        contexts = contexts_of(data)
        if not contexts:
            raise ShortlistError(
                "`camf` needs a context. Give columns `context_<dimension>`, or use biased_mf. Received: none."
            )
        large = [name for name, size in contexts.items() if size > MANY and config.deviation not in ("C", "low_rank")]
        notes = [
            f"context_{name} has {contexts[name]:,} conditions, and deviation {config.deviation} a weight for each "
            "item or user and condition: low_rank needs fewer."
            for name in large
        ]
        for note in notes:
            console.print(f"          warning: {note}", style="dim", highlight=False, markup=False)
        arguments = (
            "deviation",
            "embedding_dim",
            "l2_bias",
            "l2_factors",
            "l2_deviation",
            "frequency_exponent",
            "rank",
        )
        settings = {name: getattr(config, name) for name in arguments}
        return CAMF(users, items, contexts, **settings), notes

    train_ratings(config, inputs, workdir, make)
