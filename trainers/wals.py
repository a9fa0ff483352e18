"""Trains `WALS`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData, positive_weight
from shortlist.components._training import together
from shortlist.components.artifacts import Artifact
from shortlist.models.wals import WALS
from shortlist.trainers._common import (
    EpochsConfig,
    callbacks,
    interaction_matrix,
    known_positives,
    load,
    prepare,
    save,
    serving,
    start_of,
    validate_retriever,
)
from shortlist.trainers._strategy import strategy_of
from shortlist.trainers._warm import Tables, carry, labels


class Config(EpochsConfig):
    """Settings of WALS; see the model.

    Args:
      confidence: "none" for c = 1, "linear" for c = 1 + α r, "log" for c = 1 + α log(1 + r), where r is the watch time
        or rating of what the user watched of an item, 1 for an average one (the number of watches where neither is
        known).
      alpha: α.
    """

    strategies: ClassVar[tuple[str, ...]] = ("none", "mirrored", "multi_worker")

    embedding_dim: int = pydantic.Field(64, ge=1)
    unobserved_weight: float = pydantic.Field(0.2, ge=0)
    l2: float = pydantic.Field(0.01, ge=0)
    frequency_exponent: float = pydantic.Field(1.0, ge=0)
    init_stddev: float = pydantic.Field(0.1, ge=0)
    confidence: Literal["none", "linear", "log"] = "none"
    alpha: float = pydantic.Field(1.0, ge=0)
    solver: Literal["cholesky", "cg", "block"] = "cholesky"
    cg_steps: int = pydantic.Field(3, ge=1)
    block_size: int = pydantic.Field(32, ge=1)


ARGUMENTS = (
    *("embedding_dim", "unobserved_weight", "l2", "frequency_exponent", "init_stddev", "seed"),
    *("solver", "cg_steps", "block_size"),
)


def confidences(config: Config, x: tf.SparseTensor, rows: Mapping[str, np.ndarray], r: np.ndarray) -> tf.SparseTensor:
    """The confidences of x, `interaction_matrix` of `rows`, whose watch times or ratings are r `[N]`."""
    keep = known_positives(rows)
    columns = x.shape[1]
    cells = np.asarray(x.indices) @ [columns, 1]
    place = np.searchsorted(cells, rows["user"][keep].astype(np.int64) * columns + rows["item"][keep])
    r = np.bincount(place, r[keep] / r[keep].mean(), len(cells))
    return x.with_values((1 + config.alpha * (np.log1p(r) if config.confidence == "log" else r)).astype(np.float32))


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Factorizes the matrix of the training part's positives."""
    prepare(config)
    data, rows = load(config, inputs)
    start, first = start_of(inputs)
    model = start or WALS(**{name: getattr(config, name) for name in ARGUMENTS})
    if not model.built:
        model.build((data.num_users, data.num_items))
    notes = carry(model, tables, config, inputs, data)
    validate = validate_retriever(model, data, "wals", config.patience)
    x = interaction_matrix(rows, data.num_users, data.num_items)
    weigh, shared = config.confidence != "none", together()
    with strategy_of(config).scope():
        history = model.fit(
            x,
            sample_weight=confidences(config, x, rows, positive_weight(data, rows)) if weigh else None,
            epochs=config.epochs,
            initial_epoch=first,
            verbose=0,
            checkpoint_dir=str(shared.backup / "wals") if shared else None,
            callbacks=callbacks("wals: epochs", config.epochs, workdir, config.patience, validate),
        )
    save(model, serving(model, data), config, workdir, history.history, notes)


def tables(model: WALS, data: EncodedData, config: Config) -> Tables:
    """The factors, by the ids of their rows; see `carry`."""
    return {
        "user_factors": (model.user_factors, labels(data, "users")),
        "item_factors": (model.item_factors, labels(data, "items")),
    }


def from_scipy(x: Any) -> tf.SparseTensor:
    """A SciPy sparse matrix or array (CSR, COO or any other) as a tensor of the same cells, float32.

    Raises:
      ShortlistError: if it is no sparse matrix of two dimensions.
    """
    if not hasattr(x, "tocoo") or len(x.shape) != 2:
        raise ShortlistError(f"`x` must be a sparse matrix of SciPy, such as csr_matrix. Received: {type(x).__name__}.")
    coo = x.tocoo()
    return tf.SparseTensor(np.stack([coo.row, coo.col], axis=1).astype(np.int64), coo.data.astype(np.float32), x.shape)


def from_arrow(
    table: pa.Table, user: str = "user", item: str = "item", value: str | None = None
) -> tuple[tf.SparseTensor, pa.Array, pa.Array]:
    """Interactions as a tensor `[U, I]`, and the ids of its rows and columns in order.

    Args:
      table: one interaction a row; a cell that comes again is added up by `WALS.fit`.
      user: name of the column with the users' ids, of any type.
      item: of the items' ids.
      value: name of the column with the targets; 1 where None.

    Raises:
      ShortlistError: for a column that is missing or holds a null.
    """
    names = [user, item, *filter(None, [value])]
    for name in names:
        if name not in table.column_names:
            raise ShortlistError(f"`{name}` must be a column of the table. Received: {', '.join(table.column_names)}.")
        if table[name].null_count:
            raise ShortlistError(
                f"`{name}` must hold no null; drop those rows. Received: {table[name].null_count} nulls."
            )
    ids = [(unique := pc.unique(table[name])).take(pc.sort_indices(unique)) for name in (user, item)]
    places = [pc.index_in(table[name], values).to_numpy() for name, values in zip((user, item), ids, strict=True)]
    targets = table[value].to_numpy().astype(np.float32) if value else np.ones(len(table), np.float32)
    indices = np.stack(places, axis=1).astype(np.int64)
    return tf.SparseTensor(indices, targets, [len(values) for values in ids]), *ids
