"""Trains `BiasedMF`."""

from collections.abc import Mapping
from pathlib import Path

import pydantic

from shortlist.components.artifacts import Artifact
from shortlist.models.camf import BiasedMF
from shortlist.trainers._ratings import RatingConfig, train_ratings


class Config(RatingConfig):
    """Settings of matrix factorization with biases; see the model."""

    l2_bias: float = pydantic.Field(0.35, ge=0)
    l2_factors: float = pydantic.Field(1.25, ge=0)
    learning_rate: float = pydantic.Field(0.1, gt=0)
    epochs: int = pydantic.Field(30, ge=1)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Fits it to the ratings of the training part."""
    arguments = {n: getattr(config, n) for n in ("embedding_dim", "l2_bias", "l2_factors", "frequency_exponent")}
    train_ratings(config, inputs, workdir, lambda _, users, items: (BiasedMF(users, items, **arguments), []))
