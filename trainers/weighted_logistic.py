"""Trains `WeightedLogistic` on the candidates of `rank_train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData
from shortlist.components._second_stage import by_odds
from shortlist.models.weighted_logistic import WeightedLogistic
from shortlist.trainers._common import EpochsConfig, Validate, callbacks, prepare, save, served, start_of


class Config(EpochsConfig):
    """Settings of the ranker; see the model.

    Args:
      decay_epochs: epochs in which the learning rate falls to 0 along a cosine; those of the training where None.
      train_on: "all" adds the candidates of `validation` and `test`, made by sources that saw neither.
    """

    hidden_units: tuple[int, ...] = (128,)
    dropout: float = pydantic.Field(0.4, ge=0, lt=1)
    l2: float = pydantic.Field(0.001, ge=0)
    learning_rate: float = pydantic.Field(0.002, gt=0)
    batch_size: int = pydantic.Field(1024, ge=1)
    epochs: int = pydantic.Field(10, ge=1)
    decay_epochs: int | None = pydantic.Field(None, ge=1)
    weighted: bool = True


def train(config: Config, inputs: Mapping[str, Any], workdir: Path) -> None:
    """Fits the network to what happened among exactly the candidates.

    Raises:
      ShortlistError: if there is no positive among them.
    """
    prepare(config)
    candidates = inputs["candidates"]
    info = candidates.read_json("candidates.json")
    splits = candidates.names if config.train_on == "all" else ("rank_train",)
    parts = [_examples(candidates / f"{split}.npz", config.weighted) for split in splits]
    features, label, weight = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if not label.any():
        raise ShortlistError(
            "`weighted_logistic` needs positives among the candidates of rank_train. Raise `split.rank_train` (kfold "
            "has none; take another strategy) or `shortlist.quota`. "
            f"Received: {len(label):,} candidates, no positive."
        )
    start, first = start_of(inputs)
    model = start or _new(config, features)
    order = np.random.default_rng(config.seed).permutation(len(features))  # fit shuffles again, by its own seed
    validate = None
    if config.patience:
        held = np.load(candidates / "validation.npz")
        validate = Validate(lambda _: rank(model, held["items"], held["features"]), EncodedData(inputs["encoded"]))
    history = model.fit(
        features[order],
        label[order],
        sample_weight=weight[order],
        batch_size=config.batch_size,
        epochs=config.epochs,
        initial_epoch=first,
        verbose=0,
        callbacks=callbacks("weighted_logistic: epochs", config.epochs, workdir, config.patience, validate),
    )
    proxy = {"rating": "Positives weigh their rating, a proxy for the watch time that the data does not have."}
    notes = [proxy[info["weight_from"]]] if config.weighted and info["weight_from"] in proxy else []
    spec = tf.TensorSpec([None, None, model.num_features], tf.float32, "features")
    save(model, served({"score": (model.odds, [spec])}, model), config, workdir, history.history, notes)


def _new(config: Config, features: np.ndarray) -> WeightedLogistic:
    model = WeightedLogistic(features.shape[1], config.hidden_units, config.dropout, config.l2)
    model.adapt(features)
    steps = -(-len(features) // config.batch_size) * (config.decay_epochs or config.epochs)
    schedule = tf.keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)
    model.compile(optimizer=tf.keras.optimizers.Adam(schedule))
    return model


def rank(model: WeightedLogistic, items: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The candidates `[Q, K]` by the odds, best first."""
    return by_odds(items, model.predict(features, batch_size=64, verbose=0))  # logits are in the order of the odds


def _examples(path: Path, weighted: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(path) as table:
        keep = table["items"] >= 2
        label = table["label"][keep].astype(np.float32)
        weight = np.where(label > 0, table["weight"][keep], 1.0) if weighted else np.ones_like(label)
        return table["features"][keep], label, weight.astype(np.float32)
