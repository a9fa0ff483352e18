"""What the trainers of rating models do alike."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData, Rows
from shortlist.components.artifacts import Artifact
from shortlist.models._base import FIRST_ID
from shortlist.trainers._common import (
    EpochsConfig,
    callbacks,
    epoch_batches,
    load,
    prepare,
    save,
    serving,
    start_of,
    validate_retriever,
)

MANY = 100
"""Conditions of a dimension past which a table with a weight for each of them and each item or user gets a note."""


class RatingConfig(EpochsConfig):
    """What every trainer of a rating model has; see the models."""

    embedding_dim: int = pydantic.Field(20, ge=1)
    l2_bias: float = pydantic.Field(0.2, ge=0)
    l2_factors: float = pydantic.Field(0.5, ge=0)
    frequency_exponent: float = pydantic.Field(0.5, ge=0)
    learning_rate: float = pydantic.Field(0.4, gt=0)
    batch_size: int = pydantic.Field(1024, ge=1)
    epochs: int = pydantic.Field(60, ge=1)


def train_ratings(
    config: RatingConfig,
    inputs: Mapping[str, Artifact],
    workdir: Path,
    make: Callable[[EncodedData], tuple[Any, list[str]]],
) -> None:
    """Fits a rating model to the ratings of the training part; positives or not, all of them count.

    Args:
      config: its settings.
      inputs: "encoded", and to go on "start".
      workdir: where the `Model` is written.
      make: the new model, and notes for the report.

    Raises:
      ShortlistError: if no row of the training part has a rating.
    """
    prepare(config)
    data, rows = load(config, inputs)
    x, y = ratings(rows)
    fresh, notes = make(data)
    start, first = start_of(inputs)
    model = start or fresh
    name = type(model).registered_name
    if not len(y):
        raise ShortlistError(
            f"`{name}` learns from ratings, and no row of the training part has one. Give a column `rating`, or use "
            f"wals. Received: {len(rows['item']):,} rows."
        )
    model.adapt(x, y)
    if not start:
        model.compile(tf.keras.optimizers.Adagrad(config.learning_rate))
    batches, steps = _batches(x, y, config, first)
    validate = validate_retriever(model, data, name, config.patience)
    history = model.fit(
        batches,
        epochs=config.epochs,
        initial_epoch=first,
        steps_per_epoch=steps,
        verbose=0,
        callbacks=callbacks(f"{name}: epochs", config.epochs, workdir, config.patience, validate),
    )
    save(model, serving(model, data), config, workdir, history.history, notes)


def ratings(rows: Rows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The inputs of a rating model, int32 `[N]` each, and the ratings float32 `[N]`, of the rows that have one."""
    keep = np.isfinite(rows["rating"]) & (rows["item"] >= FIRST_ID) & (rows["user"] >= FIRST_ID)
    names = ["user", "item", *(name for name in rows if name.startswith("context_"))]
    return {name: rows[name][keep] for name in names}, rows["rating"][keep].astype(np.float32)


def _batches(x: dict[str, np.ndarray], y: np.ndarray, config: RatingConfig, first: int) -> tuple[tf.data.Dataset, int]:
    def draw(rng: np.random.Generator) -> Callable[[slice], tuple[dict[str, np.ndarray], np.ndarray]]:
        order = rng.permutation(len(y))
        return lambda part: ({name: values[order[part]] for name, values in x.items()}, y[order[part]])

    spec = ({name: tf.TensorSpec([None], tf.int32) for name in x}, tf.TensorSpec([None], tf.float32))
    return epoch_batches(draw, len(y), spec, config, first)
