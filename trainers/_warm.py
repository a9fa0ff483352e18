"""A start with what an earlier run has learned: rows of tables are taken over by what they are of.

Measured models learn from the training part alone. So what they begin with must not have seen the later parts of this
data either, and `carry` refuses it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._progress import console
from shortlist.components._queries import NO_TIME, EncodedData, Rows
from shortlist.components.artifacts import Model
from shortlist.models._split_rows import SplitItems

RESERVED = ("\0padding", "\0unknown")
"""The labels of the two reserved rows."""

Tables = dict[str, tuple[tf.Variable, Sequence[str | None] | None]]
"""What is learned, by name: a variable, and what each of its rows is of, None for what has no name outside of its
model; without names it is taken over as a whole."""


def labels(data: EncodedData, file: str) -> list[str]:
    """Of a table with a row for each line of a vocabulary."""
    return [*RESERVED, *data.vocabulary(file)]


def carry(
    model: Any,
    tables: Callable[[Any, EncodedData, Any], Tables],
    config: Any,
    inputs: Mapping[str, Any],
    data: EncodedData,
) -> list[str]:
    """Gives a new model what the model `start` of `earlier` has learned of the same items, users, words and values.

    Args:
      model: the new one, whose other rows stay as they are.
      tables: of a model, with its data and settings.
      config: its settings.
      inputs: those of the trainer; without `earlier` nothing is done.
      data: what it is trained on.

    Returns:
      A note for the report, if anything was taken over.

    Raises:
      ShortlistError: if rows have another width, and if `start` has seen rows of the later parts of `data`.
    """
    if "earlier" not in inputs:
        return []
    start, earlier = inputs["start"], EncodedData(inputs["earlier"])
    info = start.read_json("model.json")
    if config.train_on == "train":
        _refuse_seen(earlier, info["trained_on"], data, start)
    old = tf.keras.models.load_model(str(start / "model.keras"), compile=False)
    if isinstance(old, SplitItems):
        old = old.model
    before = tables(old, earlier, type(config)(**info["config"]))
    found = []
    for name, (variable, own) in tables(model, data, config).items():
        if name not in before:
            continue
        source, theirs = before[name]
        if source.shape[1:] != variable.shape[1:] or (own is None and source.shape != variable.shape):
            raise ShortlistError(
                f"`--warm-start` needs tables of the same widths: `{name}` of {info['model']} is of shape "
                f"{tuple(source.shape)} in that run, and of {tuple(variable.shape)} here. Give the settings of that "
                f"run, such as embedding_dim and hidden_units, or leave --warm-start out. Received: {start.uri}."
            )
        if own is None or theirs is None:
            variable.assign(source)
            continue
        place = {label: row for row, label in enumerate(theirs[: source.shape[0]]) if label is not None}
        rows = np.array([place.get(label, -1) if label is not None else -1 for label in own[: variable.shape[0]]])
        values = variable.numpy()
        values[rows >= 0] = source.numpy()[rows[rows >= 0]]
        variable.assign(values)
        if own[:1] == [RESERVED[0]]:
            found.append(f"{int((rows >= 2).sum()):,} of the {len(rows) - 2:,} rows of {name}")
    note = f"{info['model']} began with what an earlier run had learned: {', '.join(found)}."
    console.print(f"          {note}", style="dim", highlight=False, markup=False)
    return [note]


def _refuse_seen(earlier: EncodedData, trained_on: str, data: EncodedData, start: Model) -> None:
    """Refuses what was fitted to rows that this data keeps for later."""
    seen = earlier.rows(*(earlier.artifact.names if trained_on == "all" else ("train",)))
    users = _places(earlier.users["id"], data.users["id"])[seen["user_key"]]
    items = _places(earlier.items["id"], data.items["id"])[seen["item"]]
    both = (users >= 0) & (items >= 2)
    known = _keys(users[both], items[both], seen["timestamp"][both])
    for name in data.artifact.names:
        later: Rows = data.rows(name)
        if name in ("train", "fold_in"):
            continue
        keep = later["item"] >= 2
        held = _keys(later["user_key"][keep], later["item"][keep], later["timestamp"][keep])
        if count := int(np.isin(held, known).sum()):
            raise ShortlistError(
                f"`--warm-start` must be a run that was not trained on what is measured here: {count:,} of the "
                f"{len(held):,} rows of {name} were in its training part. Split as that run did (split.strategy, "
                "split.seed and the shares), on the same data or on data that goes on, or leave --warm-start out. "
                f"Received: {start.uri}."
            )


def _places(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each id stands among others, −1 for one that doesn't."""
    found = pc.index_in(pa.array(ids, pa.string()), value_set=pa.array(among, pa.string()))
    return found.fill_null(-1).to_numpy()


def _keys(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> np.ndarray:
    """A number for each event; those of two events differ but by chance."""
    times = np.where(times == NO_TIME, -1, times).astype(np.uint64)
    pair = (users.astype(np.uint64) << np.uint64(32)) | items.astype(np.uint64)
    return pair * np.uint64(0x9E3779B97F4A7C15) + times * np.uint64(0xC2B2AE3D27D4EB4F)
