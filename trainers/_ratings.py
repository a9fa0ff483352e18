"""What the trainers of rating models do alike."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData, Rows
from shortlist.components.artifacts import Artifact
from shortlist.components.context import SplitByContextConfig, Splits, best_splits
from shortlist.models._base import FIRST_ID
from shortlist.models._nested import described
from shortlist.models._optimizer import TableAdagrad
from shortlist.models._split_rows import SplitItems, SplitUsers
from shortlist.trainers._common import (
    ALONE,
    EpochsConfig,
    Share,
    callbacks,
    contexts_of,
    epoch_batches,
    load,
    prepare,
    save,
    serving,
    start_of,
    validate_retriever,
)
from shortlist.trainers._strategy import fit
from shortlist.trainers._warm import Tables, carry, labels

MANY = 100
"""Conditions of a dimension past which a table with a weight for each of them and each item or user gets a note."""


class RatingConfig(EpochsConfig):
    """What every trainer of a rating model has; see the models.

    Args:
      split: how users, items or both are split by context before; none leaves them whole. The splits are found in what
        is trained on.
    """

    split: SplitByContextConfig | None = None

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
    make: Callable[[EncodedData, int, int], tuple[Any, list[str]]],
) -> None:
    """Fits a rating model to the ratings of the training part; positives or not, all of them count.

    Args:
      config: its settings.
      inputs: "encoded", and to go on "start".
      workdir: where the `Model` is written.
      make: the new model of data and so many rows of users and items, and notes for the report.

    Raises:
      ShortlistError: if no row of the training part has a rating, and for a split without context.
    """
    prepare(config)
    data, rows = load(config, inputs)
    x, y = ratings(rows)
    splits = _splits(config, data, x, y)
    further = {side: len(found.owner) for side, found in splits.items()}
    fresh, notes = make(data, data.num_users + further.get("user", 0), data.num_items + further.get("item", 0))
    start, first = start_of(inputs)
    notes = notes + carry(fresh, tables, config, inputs, data)
    model = start or (_behind(fresh, data, splits) if splits else fresh)
    name = model.registered_name
    if not len(y):
        raise ShortlistError(
            f"`{name}` learns from ratings, and no row of the training part has one. Give a column `rating`, or use "
            f"wals. Received: {len(rows['item']):,} rows."
        )
    model.adapt(x, y)
    if not start:
        model.compile(TableAdagrad(config.learning_rate))
    validate = validate_retriever(model, data, name, config.patience)
    shown = callbacks(f"{name}: epochs", config.epochs, workdir, config.patience, validate)
    history = fit(model, config, partial(rating_batches, x, y, config), first, shown)
    if splits:
        pq.write_table(_table(data, splits), workdir / "context_splits.parquet")
        notes += [
            f"{count:,} of {len(np.unique(x[side])):,} {side}s are split by context." for side, count in further.items()
        ]
    save(model, serving(model, data), config, workdir, history, notes)


def tables(model: Any, data: EncodedData, config: RatingConfig) -> Tables:
    """Vectors and biases by id; see `carry`. Deviations, and rows of halves, begin anew."""
    found: Tables = {}
    for side in ("user", "item"):
        ids = labels(data, f"{side}s")
        rows = getattr(model, f"num_{side}s")
        own: list[str | None] = [*ids, *[None] * (rows - len(ids))]
        found |= {name: (getattr(model, name), own) for name in (f"{side}_table", f"{side}_bias")}
    return found


def _splits(config: RatingConfig, data: EncodedData, x: Mapping[str, np.ndarray], y: np.ndarray) -> dict[str, Splits]:
    """By side, "user" and "item", which rows are split; nothing without the setting."""
    if config.split is None:
        return {}
    if not data.contexts:
        raise ShortlistError(
            "`split` needs a context. Give columns `context_<dimension>`, or leave it out. Received: none."
        )
    conditions = np.stack([x[name] for name in data.contexts], axis=1)
    return {side: best_splits(x[side], y, conditions, config.split) for side in config.split.sides}


def _behind(base: Any, data: EncodedData, splits: Mapping[str, Splits]) -> SplitItems:
    make = SplitItems if "item" in splits else SplitUsers
    model = make(described(base), data.num_users, data.num_items, contexts_of(data))
    for side, found in splits.items():
        model.set_splits(side, found.owner, found.required)
    return model


def _table(data: EncodedData, splits: Mapping[str, Splits]) -> pa.Table:
    """The splits with ids, see `Model`."""
    users = pa.array(["", "", *(data.artifact / "users.txt").read_text("utf-8").split("\n")[:-1]])
    ids = {"user": users, "item": pa.array(data.items["id"].astype(str))}
    tables = []
    for side, found in splits.items():
        parts = []
        for j, (name, size) in enumerate(contexts_of(data).items()):
            values = data.category(f"context_{name}", np.arange(size))
            needed = values.take(pa.array(found.required[:, j]))
            parts.append(pc.binary_join_element_wise(f"{name}=", needed, ""))
        columns = {name: getattr(found, name) for name in ("statistic", "p", "n_in", "n_out")}
        condition = pc.binary_join_element_wise(*parts, " & ", null_handling="skip")
        owner = ids[side].take(pa.array(found.owner))
        tables.append(pa.table({"side": [side] * len(owner), "id": owner, "condition": condition, **columns}))
    return pa.concat_tables(tables)


def ratings(rows: Rows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The inputs of a rating model, int32 `[N]` each, and the ratings float32 `[N]`, of the rows that have one."""
    keep = np.isfinite(rows["rating"]) & (rows["item"] >= FIRST_ID) & (rows["user"] >= FIRST_ID)
    names = ["user", "item", *(name for name in rows if name.startswith("context_"))]
    return {name: rows[name][keep] for name in names}, rows["rating"][keep].astype(np.float32)


def rating_batches(
    x: dict[str, np.ndarray], y: np.ndarray, config: RatingConfig, first: int, share: Share = ALONE
) -> tuple[tf.data.Dataset, int]:
    """`epoch_batches` of ratings."""

    def draw(rng: np.random.Generator) -> Callable[[slice], tuple[dict[str, np.ndarray], np.ndarray]]:
        order = rng.permutation(len(y))
        return lambda part: ({name: values[order[part]] for name, values in x.items()}, y[order[part]])

    spec = ({name: tf.TensorSpec([None], tf.int32) for name in x}, tf.TensorSpec([None], tf.float32))
    return epoch_batches(draw, len(y), spec, config, first, share)
