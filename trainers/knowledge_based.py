"""Makes `KnowledgeBased` from the items' columns."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Artifact
from shortlist.models._base import FIRST_ID, query_spec
from shortlist.models.knowledge_based import Constraints, KnowledgeBased
from shortlist.trainers._common import TrainerConfig, load, prepare, save, served


class Config(TrainerConfig):
    """Settings of the knowledge-based model; see the model.

    Args:
      category_values: most frequent values of a category that are attributes.
      relaxation: names such as "range:year", "like:genres", "refuse:genres", the first to be relaxed first; those left
        out are never relaxed. None relaxes all in the order of the model.
    """

    category_values: int = pydantic.Field(100, ge=1)
    relaxation: tuple[str, ...] | None = None
    history_length: int = pydantic.Field(10, ge=1)
    likes: int = pydantic.Field(5, ge=1)
    refuse_after: float = pydantic.Field(3.0, gt=0)
    middle: float = pydantic.Field(0.8, gt=0, le=1)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Takes the attributes and numbers of the items, and their popularity from the positives of the training part.

    Raises:
      ShortlistError: if items have neither genres nor categories.
    """
    prepare(config)
    data, rows = load(config, inputs)
    attributes, has = item_attributes(data, config.category_values)
    numbers = item_numbers(data)
    names = ("relaxation", "history_length", "likes", "refuse_after", "middle")
    settings = {name: getattr(config, name) for name in names}
    model = KnowledgeBased(data.num_items, attributes, tuple(numbers), **settings)
    count = np.bincount(rows["item"][rows["positive"]], minlength=data.num_items)
    model.set_items(has, np.stack([*numbers.values()], axis=1), count)
    save(model, module_of(model, data), config, workdir)


def module_of(model: KnowledgeBased, data: EncodedData) -> tf.Module:
    """What is saved for serving."""
    asked = Constraints(
        tf.TensorSpec([None, model.has.shape[1]], tf.int8, "wanted"),
        tf.TensorSpec([None, model.number.shape[1], 2], tf.float32, "between"),
    )
    rest = [tf.TensorSpec([], tf.int32, "k"), tf.TensorSpec([None, None], tf.int32, "exclude")]
    functions: dict[str, tuple[Callable[..., Any], list[Any]]] = {
        "score_items": (model.score_items, [query_spec(data.kinds)]),
        "recommend": (model.recommend, [asked, *rest]),
    }
    return served(functions, model)


def item_numbers(data: EncodedData) -> dict[str, np.ndarray]:
    """The numbers of the items by name, `[I]`, NaN where unknown."""
    years = np.where(data.items["year"] > 0, data.items["year"], np.nan)
    return {"year": years, **{name: data.items[f"number_{name}"] for name in data.state["numbers"]}}


def item_attributes(
    data: EncodedData, most: int, fitted: EncodedData | None = None
) -> tuple[dict[str, list[str]], np.ndarray]:
    """The names of the attributes by column, those of `fitted` if it is given, and which items have them, float32
    `[I, A]`.

    Raises:
      ShortlistError: if there is none.
    """
    names = {"genres": list(data.state["genres"])} if data.state["genres"] else {}
    blocks = [data.items["genres"]]
    for column in data.state["categories"]:
        rows = data.items[f"category_{column}"]
        known = np.arange(FIRST_ID, min((fitted or data).items[f"category_{column}"].max() + 1, FIRST_ID + most))
        if len(known):
            names[column] = data.category(f"category_{column}", known).to_pylist()
            blocks.append((rows[:, np.newaxis] == known).astype(np.float32))
    if not names:
        raise ShortlistError(
            "`knowledge_based` needs items with genres or categories. Give a table of items with --set "
            f"data.items=FILE. Received: {data.num_items - FIRST_ID:,} items without any."
        )
    return names, np.concatenate(blocks, axis=1)
