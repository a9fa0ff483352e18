"""Trains `Hybrid` on what its bases were not fitted to."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._queries import NO_TIME, EncodedData, Ragged, Rows
from shortlist.models._nested import described
from shortlist.models.hybrid import Hybrid
from shortlist.trainers._common import (
    ALONE,
    EpochsConfig,
    Share,
    bases,
    callbacks,
    epoch_batches,
    latest,
    load,
    prepare,
    save,
    serving,
    start_of,
    validate_retriever,
)
from shortlist.trainers._strategy import fit


class Config(EpochsConfig):
    """Settings of the hybrid; see the model.

    Args:
      of: the sources, baselines or models that it is built on.
      held_back: share of each user's latest training positives that it learns from. Its bases are trained without them,
        once more if they are sources too, and those are what it serves: with fresh histories, but without what only
        these rows say.
      cold_share: share of the requests that lose their history in training, so that one without any has an answer.
    """

    of: tuple[str, ...] = pydantic.Field(("wals", "two_tower", "ease"), min_length=1)
    held_back: float = pydantic.Field(0.2, gt=0, lt=1)
    embedding_dim: int = pydantic.Field(16, ge=0)
    hidden_units: tuple[int, ...] = ()
    dropout: float = pydantic.Field(0.3, ge=0, lt=1)
    learning_rate: float = pydantic.Field(0.01, gt=0)
    batch_size: int = pydantic.Field(64, ge=1)
    cold_share: float = pydantic.Field(0.05, ge=0, lt=1)


def train(config: Config, inputs: Mapping[str, Any], workdir: Path) -> None:
    """Learns from one request a user: what they watched of the rows held back, given what they did before.

    Raises:
      ShortlistError: if nobody has a positive to learn from, or a base was fitted to what is held back.
    """
    prepare(config)
    data, rows = load(config, inputs)
    for name, base in inputs["of"].items():
        fitted = base.read_json("model.json")["config"]
        if (fitted["leave_out"], fitted["train_on"]) != (config.held_back, config.train_on):
            raise ShortlistError(
                f"`of` must be trained on {config.train_on} without the {config.held_back:g} held back, or their "
                f"scores of it are too good to learn from. Received: {name}, trained on {fitted['train_on']}, "
                f"leave_out={fitted['leave_out']:g}."
            )
    late = latest(rows, config.held_back)
    examples = Examples(data, rows, late)
    if not len(examples.user):
        raise ShortlistError(
            "`hybrid` learns from each user's latest positives, and no user has two at different times. Give "
            f"timestamps, or leave it out. Received: {len(late):,} training rows, held_back={config.held_back}."
        )
    start, first = start_of(inputs)
    model = start or _new(config, data, bases(inputs), rows["item"][~late & rows["positive"]])
    validate = validate_retriever(model, data, "hybrid", config.patience)
    shown = callbacks("hybrid: epochs", config.epochs, workdir, config.patience, validate)
    history = fit(model, config, partial(_batches, examples, config), first, shown)
    save(model, serving(model, data), config, workdir, history)


def _new(config: Config, data: EncodedData, models: Mapping[str, Any], watched: np.ndarray) -> Hybrid:
    shared = {name: getattr(config, name) for name in ("embedding_dim", "hidden_units", "dropout")}
    model = Hybrid(data.num_items, [described(base) for base in models.values()], **shared)
    model.set_bases(list(models.values()))
    model.set_item_counts(np.bincount(watched, minlength=data.num_items))
    model.compile(optimizer=tf.keras.optimizers.Adam(config.learning_rate))
    return model


class Examples:
    """One request a user whose late rows have a positive that is new to them: `user`, `time`, and ragged `history`,
    `history_time`, `exclude` (all that was seen before) and `targets`; and what the first of these rows says
    besides."""

    def __init__(self, data: EncodedData, rows: Rows, late: np.ndarray):
        key, item, known = rows["user_key"], rows["item"], rows["item"] >= 2
        size = int(item.max(initial=0)) + 1
        seen = known & rows["watched"] & ~late
        new = ~np.isin(key.astype(np.int64) * size + item, key[seen].astype(np.int64) * size + item[seen])
        target = known & rows["positive"] & late & new
        keys, first = np.unique(key[target], return_index=True)
        self.user = rows["user"][target][first]
        self.request = data.request(rows, np.flatnonzero(target)[first])
        self.time = np.full(int(key.max(initial=0)) + 1, NO_TIME)
        np.minimum.at(self.time, key[late], rows["timestamp"][late])
        self.time = self.time[keys]
        history = known & rows["positive"] & ~late & (rows["timestamp"] < NO_TIME)

        def ragged(keep: np.ndarray, values: np.ndarray) -> Ragged:
            keep = keep & np.isin(key, keys)
            lengths = np.bincount(np.searchsorted(keys, key[keep]), minlength=len(keys))
            return Ragged(np.concatenate([[0], np.cumsum(lengths)]), values[keep])

        self.history, self.history_time = ragged(history, item), ragged(history, rows["timestamp"])
        self.exclude, self.targets = ragged(seen, item), ragged(target, item)

    def batch(self, chosen: np.ndarray, cold: np.ndarray) -> dict[str, np.ndarray]:
        """The requests `chosen`, padded; those that are `cold` without what the user did before."""
        found = {"user": np.where(cold, 1, self.user[chosen]), "time": self.time[chosen]}
        found |= {name: values[chosen] for name, values in self.request.items()}
        for name in ("history", "history_time", "exclude", "targets"):
            ragged: Ragged = getattr(self, name)
            start, stop = ragged.offsets[chosen], ragged.offsets[chosen + 1]
            place = start[:, np.newaxis] + np.arange(max(1, (stop - start).max(initial=0)))  # [B, L]
            there = (place < stop[:, np.newaxis]) & ((name == "targets") | ~cold[:, np.newaxis])
            found[name] = np.where(there, ragged.values[np.where(there, place, 0)], 0)
        return found


def _batches(examples: Examples, config: Config, first: int, share: Share = ALONE) -> tuple[tf.data.Dataset, int]:
    def draw(rng: np.random.Generator) -> Callable[[slice], dict[str, np.ndarray]]:
        order = rng.permutation(len(examples.user))
        cold = rng.random(len(order)) < config.cold_share
        return lambda part: examples.batch(order[part], cold[part])

    one = examples.batch(np.zeros(1, np.int64), np.zeros(1, bool))
    spec = {k: tf.TensorSpec([None] * v.ndim, v.dtype) for k, v in one.items()}
    return epoch_batches(draw, len(examples.user), spec, config, first, share)
