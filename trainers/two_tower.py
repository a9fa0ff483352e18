"""Trains `TwoTower`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._examples import NextItemExamples
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Artifact
from shortlist.models.two_tower import TwoTower
from shortlist.trainers._common import (
    EpochsConfig,
    callbacks,
    load,
    prepare,
    save,
    serving,
    start_of,
    validate_retriever,
)


class Config(EpochsConfig):
    """Settings of the two-tower; see the model."""

    embedding_dim: int = pydantic.Field(64, ge=1)
    history_length: int = pydantic.Field(10, ge=1)
    hidden_units: tuple[int, ...] = ()
    softmax: Literal["in_batch", "full"] = "in_batch"
    temperature: float = pydantic.Field(1.0, gt=0)
    shared_item_table: bool = False
    normalize: bool = False
    dropout: float = pydantic.Field(0.6, ge=0, lt=1)
    user_id: bool = False
    request_time: bool = True
    content: bool = True
    examples_per_user: int = pydantic.Field(32, ge=1)
    batch_size: int = pydantic.Field(512, ge=2)
    learning_rate: float = pydantic.Field(0.1, gt=0)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Fits the towers to random prefixes of each user's history.

    Raises:
      ShortlistError: if no positive of the training part has an earlier one of the same user.
    """
    prepare(config)
    data, rows = load(config, inputs)
    examples = NextItemExamples(rows, config.history_length, config.examples_per_user)
    if not len(examples):
        raise ShortlistError(
            "`two_tower` learns what is watched next, and no user has two positives at different times. Give "
            f"timestamps, or use wals. Received: {len(rows['item']):,} training rows."
        )
    start, first = start_of(inputs)
    model = start or _new(config, data, examples)
    steps = -(-len(examples) // config.batch_size)
    validate = validate_retriever(model, data, "two_tower", config.patience)
    history = model.fit(
        _batches(examples, config, steps, first),
        epochs=config.epochs,
        initial_epoch=first,
        steps_per_epoch=steps,
        verbose=0,
        callbacks=callbacks("two_tower: epochs", config.epochs, workdir, config.patience, validate),
    )
    save(model, serving(model, data), config, workdir, history.history)


def _new(config: Config, data: EncodedData, examples: NextItemExamples) -> TwoTower:
    years = data.year_bucket()
    shared = ("embedding_dim", "history_length", "hidden_units", "softmax", "temperature", "shared_item_table")
    model = TwoTower(
        num_items=data.num_items,
        num_users=data.num_users if config.user_id else 0,
        time_quantiles=tuple(data.state["time_quantiles"]) if config.request_time else (),
        num_genres=data.items["genres"].shape[1] if config.content else 0,
        num_years=int(years.max()) + 1 if config.content else 0,
        normalize=config.normalize,
        dropout=config.dropout,
        **{name: getattr(config, name) for name in shared},
    )
    model.set_content(data.items["genres"], years)
    model.set_label_counts(examples.label_counts(data.num_items))
    model.compile(optimizer=tf.keras.optimizers.Adagrad(config.learning_rate))
    return model


def _batches(examples: NextItemExamples, config: Config, steps: int, first: int) -> tf.data.Dataset:
    """The batches of the epochs from `first` on, the same whether or not the earlier ones were seen here."""
    rng = np.random.default_rng(config.seed)

    def epochs() -> Iterator[dict[str, Any]]:
        for number in range(config.epochs):
            epoch = examples.epoch(rng)
            for step in range(steps if number >= first else 0):
                part = slice(step * config.batch_size, (step + 1) * config.batch_size)
                yield {key: value[part] for key, value in epoch.items()}

    one = examples.at(examples.usable[:1])
    spec = {k: tf.TensorSpec([None, *v.shape[1:]], v.dtype) for k, v in one.items()}
    return tf.data.Dataset.from_generator(epochs, output_signature=spec).prefetch(8)
