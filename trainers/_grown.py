"""Trained retrievers over a catalogue that has changed: rows stay where they are, new ones stand behind them.

A new item is to a model what one without a training row is: its content alone to one that has a side for content, 0 or
−∞ to one that knows nothing but who watched what.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData, positive_weight
from shortlist.components.artifacts import NEW, Model
from shortlist.models._base import FIRST_ID
from shortlist.models._cells import read_cells
from shortlist.models._nested import described
from shortlist.models._split_rows import SplitItems
from shortlist.models._wals import PaddedRows
from shortlist.models.content_based import ContentBased
from shortlist.models.ease import EASE
from shortlist.models.hybrid import Hybrid
from shortlist.models.item_knn import ItemKNN
from shortlist.models.knowledge_based import KnowledgeBased
from shortlist.models.two_tower import TwoTower
from shortlist.models.wals import WALS
from shortlist.trainers import content_based, knowledge_based, two_tower, wals
from shortlist.trainers._common import TrainerConfig, bases, interaction_matrix, prepare, save, serving

NEAREST = 10
"""Items whose place in a history a new one takes, by content."""
BLOCK = 1024
"""New items looked at together."""


def grow(config: Any, inputs: Mapping[str, Any], workdir: Path) -> None:
    """Takes over the model `start`, of the catalogue `earlier`, for that of `encoded`.

    Raises:
      ShortlistError: if the rows of `earlier` are not the first ones of `encoded`, and for a model that cannot be taken
        over.
    """
    prepare(config)
    start: Model = inputs["start"]
    data, earlier = EncodedData(inputs["encoded"]), EncodedData(inputs["earlier"])
    for side in ("items", "users"):
        before, now = ((d.artifact / f"{side}.txt").read_text("utf-8") for d in (earlier, data))
        if not now.startswith(before):
            raise ShortlistError(
                f"`run` must have been made by this version of shortlist: its {side} have other rows now. Run "
                f"`shortlist run` on its folder again. Received: {earlier.artifact.uri}."
            )
    old = tf.keras.models.load_model(str(start / "model.keras"), compile=False)
    model = _with_bases(old, data, bases(inputs)) if isinstance(old, Hybrid) else larger(old, earlier, data)
    if isinstance(model, TwoTower):
        model.set_content(**two_tower.item_content(config, data, earlier))
        _watched_like(model, earlier.num_items)
    elif isinstance(model, ContentBased):
        model.set_content(content_based.item_content(data, config, earlier), data.items["id"])
    elif isinstance(model, KnowledgeBased):
        model.has.assign(knowledge_based.item_attributes(data, config.category_values, earlier)[1])
        model.number.assign(np.stack([*knowledge_based.item_numbers(data).values()], axis=1))
    elif isinstance(model, WALS):
        _fold(model, config, data, earlier.num_items)
    info = start.read_json("model.json")
    module = knowledge_based.module_of if isinstance(model, KnowledgeBased) else serving
    save(model, module(model, data), _without_notes(config), workdir, info["history"], info["notes"])


def _without_notes(config: TrainerConfig) -> TrainerConfig:
    """The settings with none that `save` says something about: it is among the notes already."""
    return config.model_copy(update={"patience": 0}) if hasattr(config, "patience") else config


def larger(old: Any, earlier: EncodedData, data: EncodedData) -> Any:
    """The same model with rows for all items and users of `data`; the further ones are 0.

    Raises:
      ShortlistError: for a model behind a split by context, whose further rows are halves of items.
    """
    if isinstance(old, SplitItems):
        raise ShortlistError(
            f"`{old.registered_name}` behind a split by context cannot be refreshed, since its further rows are halves "
            "of items. Run `shortlist run` again on today's data, or leave this source out. Received: split."
        )
    arguments = old.get_config()
    for name in ("num_items", "num_users"):
        if arguments.get(name):
            arguments[name] = getattr(data, name)
    model = type(old).from_config(arguments)
    if not model.built:
        rows, columns = old.table_shape
        if isinstance(old, WALS):
            rows, columns = data.num_users, data.num_items
        elif isinstance(old, EASE | ItemKNN):
            whole = isinstance(old, EASE) and columns == rows
            rows, columns = data.num_items, data.num_items if whole else columns
        model.build((rows, columns))
    put(old.weights, model.weights)
    return model


def put(old: list[tf.Variable], new: list[tf.Variable]) -> None:
    """Puts weights into as many larger ones, at their beginning; the rest is 0."""
    for source, target in zip(old, new, strict=True):
        values = np.zeros(target.shape, target.dtype.as_numpy_dtype)
        values[tuple(map(slice, source.shape))] = source.numpy()
        target.assign(values)


def _with_bases(old: Hybrid, data: EncodedData, models: Mapping[str, Any]) -> Hybrid:
    """The same network over its bases as they are now."""
    arguments = {**old.get_config(), "num_items": data.num_items, "bases": [described(m) for m in models.values()]}
    model = Hybrid.from_config(arguments)
    model.set_bases(list(models.values()))
    for name in ("by_length", "by_count"):
        getattr(model, name).assign(getattr(old, name))
    layers = [[*m.tower, *([m.project] if m.project is not None else [])] for m in (old, model)]
    for before, now in zip(*layers, strict=True):
        now.set_weights(before.get_weights())
    count = old.count.numpy()
    unseen = np.repeat(count[:1], data.num_items - len(count), axis=0)  # as the row of padding, which nobody watches
    model.count.assign(np.concatenate([count, unseen]))
    return model


def _watched_like(model: TwoTower, first: int) -> None:
    """Gives items from the row `first` on the mean place in a history of the ones nearest by content."""
    if model.content is None:
        return
    vectors = tf.math.l2_normalize(model.content(tf.range(model.num_items)), axis=1)
    known = np.flatnonzero(model.trained.numpy()[:first] > 0)
    table, of_known = model.history_table, tf.gather(vectors, known)  # [K, D]
    for start in range(first, model.num_items, BLOCK):
        rows = tf.range(start, min(start + BLOCK, model.num_items))
        cosine = tf.linalg.matmul(tf.gather(vectors, rows), of_known, transpose_b=True)  # [N, K]
        near = tf.gather(known, tf.math.top_k(cosine, min(NEAREST, len(known))).indices)
        table.scatter_nd_update(rows[:, tf.newaxis], tf.reduce_mean(tf.gather(table, near), axis=1))


def _fold(model: WALS, config: Any, data: EncodedData, first: int) -> None:
    """Solves for the items from the row `first` on by who watched them, then for the users with new interactions.

    Everything else, the Gramian of the items included, stays as it was fitted.
    """
    rows = data.rows(*data.artifact.known)
    x = interaction_matrix(rows, data.num_users, data.num_items)
    weigh = config.confidence != "none"
    weights = wals.confidences(config, x, rows, positive_weight(data, rows)) if weigh else None
    cells = read_cells(x, sample_weight=weights)
    by_item = PaddedRows(cells.transposed(), model.embedding_dim, rows=np.arange(first, data.num_items))
    model.half_step("items", by_item)
    users = np.unique(data.rows(NEW)["user"])
    for folded, columns, _, confidence in PaddedRows(cells, model.embedding_dim, users[users >= FIRST_ID]):
        solved = model.fold_in(columns, confidence)
        model.user_factors.scatter_nd_update(folded[:, np.newaxis], solved)
