"""Trains `Popularity`."""

from collections.abc import Mapping
from pathlib import Path

import pydantic

from shortlist.components.artifacts import Artifact
from shortlist.models.popularity import Popularity
from shortlist.trainers._common import TrainerConfig, load, prepare, save, serving


class Config(TrainerConfig):
    """Settings of popularity; see the model."""

    window_days: int | None = pydantic.Field(None, ge=1)
    resolution_days: int = pydantic.Field(30, ge=1)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Counts the positives of the training part."""
    prepare(config)
    data, rows = load(config, inputs)
    model = Popularity(data.num_items, config.window_days, config.resolution_days)
    keep = rows["positive"] & (rows["item"] >= 2)
    model.fit(rows["item"][keep], None if config.window_days is None else rows["timestamp"][keep])
    save(model, serving(model, data), config, workdir)
