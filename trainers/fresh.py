"""Makes `Fresh`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pydantic

from shortlist.components._queries import NO_TIME
from shortlist.components.artifacts import Artifact
from shortlist.models.fresh import UNKNOWN, Fresh
from shortlist.trainers._common import TrainerConfig, load, prepare, save, serving


class Config(TrainerConfig):
    """Settings of fresh items; see the model."""

    half_life_days: float = pydantic.Field(365.0, gt=0)
    popularity: float = pydantic.Field(0.5, ge=0)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Reads when items came: their `added`, and where the data doesn't say, just after their first training event."""
    prepare(config)
    data, rows = load(config, inputs)
    timed = rows["timestamp"] < NO_TIME
    first = np.full(data.num_items, UNKNOWN)
    np.minimum.at(first, rows["item"][timed], rows["timestamp"][timed] + 1)
    added = data.items["added"]
    model = Fresh(data.num_items, config.half_life_days, config.popularity)
    model.fit(np.where(added > 0, added, first), np.bincount(rows["item"][rows["positive"]], minlength=data.num_items))
    save(model, serving(model, data), config, workdir)
