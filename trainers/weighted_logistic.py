"""Trains `WeightedLogistic` on the impressions of `rank_train`, or on its candidates where the log has none."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData
from shortlist.components._second_stage import by_odds, read_shortlists, read_shown, score
from shortlist.components.artifacts import Candidates
from shortlist.models._layers import last_n
from shortlist.models._optimizer import AdamWithTables
from shortlist.models._ranking_features import GROUPS, group_of
from shortlist.models.weighted_logistic import LADDER, WeightedLogistic
from shortlist.trainers._common import (
    EpochsConfig,
    Share,
    Validate,
    callbacks,
    epoch_batches,
    prepare,
    save,
    served,
    start_of,
)
from shortlist.trainers._strategy import fit

PROXY = "Positives weigh their rating, a proxy for the watch time that the data does not have."
UNSHOWN = (
    "The log has no impressions, so the ranker learned from candidates that were not shown: its odds are an order, not "
    "minutes."
)


class Config(EpochsConfig):
    """Settings of the ranker; see the model.

    Args:
      hidden_units: widths, or one of the paper's by name: 0, 256, 512, 1024, 512-256, 1024-512, 1024-512-256.
      table_learning_rate: of the item embeddings, where there are any.
      decay_epochs: epochs in which the learning rate falls to 0 along a cosine; those of the training where None.
      weighted: whether a positive weighs its watch time (or rating); else 1, and the odds are those of a watch.
      watch_time_cap: seconds; a longer watch time weighs as much.
      watch_time_unit: seconds; the weights, and so the odds, are in this unit. 60 for minutes.
      without: groups of features to leave out: retriever, history, impressions, content, context, example_age.
      negatives: "shown" learns from impressions, "retrieved" from candidates; "auto" from impressions where the log
        has them.
      train_on: "all" adds `validation` and `test`, described by sources that saw neither.
    """

    hidden_units: tuple[int, ...] = (128,)
    dropout: float = pydantic.Field(0.4, ge=0, lt=1)
    l2: float = pydantic.Field(0.001, ge=0)
    learning_rate: float = pydantic.Field(0.002, gt=0)
    batch_size: int = pydantic.Field(1024, ge=1)
    epochs: int = pydantic.Field(10, ge=1)
    decay_epochs: int | None = pydantic.Field(None, ge=1)
    cross_layers: int = pydantic.Field(1, ge=0, le=10)
    embedding_dim: int = pydantic.Field(0, ge=0)
    history_length: int = pydantic.Field(10, ge=1)
    table_learning_rate: float = pydantic.Field(0.02, gt=0)
    use_powers: bool = True
    without: tuple[str, ...] = ("example_age",)
    weighted: bool = True
    exact: bool = False
    watch_time_cap: float | None = pydantic.Field(None, gt=0)
    watch_time_unit: float = pydantic.Field(60.0, gt=0)
    negatives: Literal["auto", "shown", "retrieved"] = "auto"

    @pydantic.field_validator("hidden_units", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if not isinstance(value, str | int):
            return value
        if str(value) not in LADDER:
            raise ValueError(f"`hidden_units` must be widths, or one of {', '.join(LADDER)}. Received: {value!r}.")
        return LADDER[str(value)]

    @pydantic.field_validator("without")
    @classmethod
    def _groups(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := sorted(set(value) - set(GROUPS)):
            raise ValueError(f"`without` must name groups of features: {', '.join(GROUPS)}. Received: {wrong[0]}.")
        return value


def train(config: Config, inputs: Mapping[str, Any], workdir: Path) -> None:
    """Fits the network to what happened among exactly what was shown, or retrieved.

    Raises:
      ShortlistError: if there is no positive or no negative among it, or no impressions where they are asked for.
    """
    prepare(config)
    candidates: Candidates = inputs["candidates"]
    info = candidates.read_json("candidates.json")
    shown = _learns_from_impressions(config, candidates)
    splits = candidates.names if config.train_on == "all" else ("rank_train",)
    parts = [_examples(candidates, split, shown) for split in splits]
    x = {key: np.concatenate([part[0][key] for part in parts]) for key in parts[0][0]}
    label, weight = (np.concatenate([part[n] for part in parts]) for n in (1, 2))
    if not label.any() or label.all():
        what, which = ("impressions", "impression without a watch") if shown else ("candidates", "negative")
        raise ShortlistError(
            f"`weighted_logistic` needs positives and negatives among the {what} of rank_train. Raise "
            "`split.rank_train` (kfold has none; take another strategy) or `shortlist.quota`. "
            f"Received: {len(label):,} {what}, no {'positive' if not label.any() else which}."
        )
    weight = _weights(config, info["weight_from"], label, weight)
    start, first = start_of(inputs)
    data = EncodedData(inputs["encoded"])
    model = start or _new(config, info["feature_names"], data.num_items, x["features"], label, weight)
    if not config.embedding_dim:
        x = {"features": x["features"]}
    else:
        x["history"] = last_n(x["history"], config.history_length)[0].numpy()
        shutil.copy(inputs["encoded"] / "items.txt", workdir / "items.txt")
    order = np.random.default_rng(config.seed).permutation(len(label))  # fit shuffles again, by its own seed
    validate = None
    if config.patience:
        held = read_shortlists(candidates, "validation")
        validate = Validate(lambda _: by_odds(held["items"], score(model, held)["odds"]), data)
    examples = ({key: values[order] for key, values in x.items()}, label[order], weight[order])
    bar = callbacks("weighted_logistic: epochs", config.epochs, workdir, config.patience, validate)
    if config.strategy == "none":
        epochs = {"epochs": config.epochs, "initial_epoch": first, "batch_size": config.batch_size}
        history = model.fit(*examples[:2], sample_weight=examples[2], verbose=0, callbacks=bar, **epochs).history
    else:
        history = fit(model, config, partial(_batches, examples, config), first, bar)
    model.calibrate(x, label, weight)
    notes = [PROXY] if config.weighted and info["weight_from"] == "rating" else []
    notes += [] if shown else [UNSHOWN]
    spec = [
        tf.TensorSpec([None, None, model.num_features], tf.float32, "features"),
        tf.TensorSpec([None, None], tf.int32, "items"),
        tf.TensorSpec([None, None], tf.int32, "history"),
    ]
    learned = config.weighted and shown and info["weight_from"] == "watch_time"
    facts = {"expected_watch_time": {"unit": config.watch_time_unit} if learned else None, "learned_from_shown": shown}
    save(model, served({"score": (model.score, spec)}, model), config, workdir, history, notes, facts)


def _batches(learned: Any, config: Config, first: int, share: Share) -> tuple[tf.data.Dataset, int]:
    """`epoch_batches` of the examples."""
    x, label, weight = learned

    def draw(rng: np.random.Generator) -> Callable[[slice], Any]:
        order = rng.permutation(len(label))
        return lambda part: ({k: v[order[part]] for k, v in x.items()}, label[order[part]], weight[order[part]])

    spec = tf.nest.map_structure(lambda v: tf.TensorSpec([None, *v.shape[1:]], v.dtype), (x, label, weight))
    return epoch_batches(draw, len(label), spec, config, first, share)


def _learns_from_impressions(config: Config, candidates: Candidates) -> bool:
    there = (candidates / "rank_train.shown.npz").exists()
    if config.negatives == "shown" and not there:
        raise ShortlistError(
            "`ranker.negatives` can be shown only for a log with impressions: rows whose `event` is impression. Give "
            "them, or take retrieved. Received: shown, for a log of watches."
        )
    return there and config.negatives != "retrieved"


def _examples(candidates: Candidates, split: str, shown: bool) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Inputs of the model, label and weight, one a row."""
    if shown:
        table = read_shown(candidates, split)
        x = {"features": table["features"], "item": table["item"], "history": table["history"][table["owner"]]}
        return x, table["watched"].astype(np.float32), table["weight"]
    table = read_shortlists(candidates, split)
    keep = table["items"] >= 2
    x = {"features": table["features"][keep], "item": table["items"][keep]}
    x["history"] = table["history"][np.nonzero(keep)[0]]
    return x, table["label"][keep].astype(np.float32), table["weight"][keep]


def _weights(config: Config, weight_from: str, label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What every example weighs: a positive its watch time in the unit, up to the cap, or its rating; a negative 1."""
    if not config.weighted:
        return np.ones_like(weight)
    if weight_from == "watch_time":
        weight = np.minimum(weight, config.watch_time_cap or np.inf) / config.watch_time_unit
    return np.where(label > 0, weight, 1).astype(np.float32)


def _new(
    config: Config, names: list[str], num_items: int, features: np.ndarray, label: np.ndarray, weight: np.ndarray
) -> WeightedLogistic:
    model = WeightedLogistic(
        len(names),
        config.hidden_units,
        config.dropout,
        config.l2,
        cross_layers=config.cross_layers,
        embedding_dim=config.embedding_dim,
        num_items=num_items if config.embedding_dim else 0,
        history_length=config.history_length,
        use_powers=config.use_powers,
        ignored=[place for place, name in enumerate(names) if group_of(name) in config.without],
        exact=config.exact,
    )
    model.adapt(features)
    model.start_from_base_rate(label, weight)
    steps = -(-len(features) // config.batch_size) * (config.decay_epochs or config.epochs)
    schedule = tf.keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)
    model.compile(optimizer=AdamWithTables(schedule, config.table_learning_rate))
    return model
