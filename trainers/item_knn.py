"""Trains `ItemKNN`."""

from collections.abc import Mapping
from pathlib import Path

import pydantic

from shortlist.components.artifacts import Artifact
from shortlist.models.item_knn import ItemKNN
from shortlist.trainers._common import TrainerConfig, interaction_matrix, load, prepare, save, serving


class Config(TrainerConfig):
    """Settings of item-based nearest neighbours; see the model."""

    neighbours: int = pydantic.Field(25, ge=1)
    shrink: float = pydantic.Field(13.0, ge=0)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Computes the neighbours from the positives of the training part."""
    prepare(config)
    data, rows = load(config, inputs)
    model = ItemKNN(data.num_items, config.neighbours, config.shrink)
    model.fit(interaction_matrix(rows, data.num_users, data.num_items))
    save(model, serving(model, data), config, workdir)
