"""Trains `EASE`."""

from collections.abc import Mapping
from pathlib import Path

import pydantic

from shortlist.components.artifacts import Artifact
from shortlist.models.ease import EASE
from shortlist.trainers._common import TrainerConfig, interaction_matrix, load, prepare, save, serving


class Config(TrainerConfig):
    """Settings of the closed-form linear model; see the model."""

    l2: float = pydantic.Field(150.0, gt=0)
    neighbours: int | None = pydantic.Field(1000, ge=1)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Solves for the weights from the positives of the training part."""
    prepare(config)
    data, rows = load(config, inputs)
    model = EASE(data.num_items, config.l2, config.neighbours)
    model.fit(interaction_matrix(rows, data.num_users, data.num_items))
    save(model, serving(model, data), config, workdir)
