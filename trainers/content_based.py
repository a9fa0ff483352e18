"""Trains `ContentBased`."""

import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from shortlist import ShortlistError
from shortlist.components._examples import NextItemExamples
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Artifact
from shortlist.models._base import FIRST_ID, OOV
from shortlist.models._content import title_tokens, title_words, weighted_content
from shortlist.models._optimizer import AdamWithTables
from shortlist.models.content_based import ContentBased
from shortlist.trainers._common import (
    NextItemConfig,
    callbacks,
    count_rows,
    load_stored,
    next_item_batches,
    next_item_examples,
    prepare,
    save,
    serving,
    start_of,
    validate_retriever,
)
from shortlist.trainers._strategy import fit
from shortlist.trainers._warm import Tables, carry, labels


class Config(NextItemConfig):
    """Settings of the content-based model; see the model.

    Args:
      form: "network", or "profile" which learns nothing; only the next four settings are for it too.
      title_tokens: words of the titles that have a column.
      title_weight: of the titles; genres, years and each category weigh 1.
      category_values: most frequent values of a category that have a column; the others share one.
    """

    form: Literal["network", "profile"] = "network"
    history_length: int = pydantic.Field(10, ge=1)
    title_tokens: int = pydantic.Field(500, ge=0)
    title_weight: float = pydantic.Field(0.5, ge=0)
    category_values: int = pydantic.Field(100, ge=1)
    hash_buckets: int = pydantic.Field(0, ge=0)
    embedding_dim: int = pydantic.Field(32, ge=1)
    hidden_units: tuple[int, ...] = pydantic.Field((64,), min_length=1)
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    item_dropout: float = pydantic.Field(0.5, ge=0, lt=1)
    learning_rate: float = pydantic.Field(0.01, gt=0)
    table_learning_rate: float = pydantic.Field(0.05, gt=0)
    epochs: int = pydantic.Field(6, ge=1)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Describes the items, and fits a network to random prefixes of each user's history.

    Raises:
      ShortlistError: if nothing is known of the items, or a network finds no positive with an earlier one.
    """
    prepare(config)
    data, rows = load_stored(config, inputs)
    if config.form == "profile":
        model = _new(config, data)
        save(model, serving(model, data), config, workdir)
        return
    make = partial(NextItemExamples, history_length=config.history_length, examples_per_user=config.examples_per_user)
    examples = next_item_examples(rows, make, config.window_rows)
    if not len(examples):
        raise ShortlistError(
            "`content_based` learns what is watched next, and no user has two positives at different times. Give "
            f'timestamps, or take form="profile". Received: {count_rows(rows):,} training rows.'
        )
    start, first = start_of(inputs)
    model = start or _new(config, data)
    if start is None:
        model.set_trained(np.flatnonzero(examples.label_counts(data.num_items)))
        model.compile(AdamWithTables(config.learning_rate, config.table_learning_rate))
    notes = carry(model, tables, config, inputs, data)
    validate = validate_retriever(model, data, "content_based", config.patience)
    shown = callbacks("content_based: epochs", config.epochs, workdir, config.patience, validate)
    history = fit(model, config, partial(next_item_batches, examples, config), first, shown)
    save(model, serving(model, data), config, workdir, history, notes)


def tables(model: ContentBased, data: EncodedData, config: Config) -> Tables:
    """All that is learned, by ids and by what the columns of the content are; see `carry`."""
    columns = column_names(data, config)
    inputs = [f"id {n}" for n in range(config.embedding_dim)] if config.hash_buckets else []
    found: Tables = {"own": (model.own, labels(data, "items")), "content_table": (model.content_table, columns)}
    if config.hash_buckets:
        found["id_table"] = (model.id_table, None)
    for number, layer in enumerate(model.tower):
        found[f"layer {number}"] = (layer.kernel, None if number else [*inputs, *columns])
        found[f"bias {number}"] = (layer.bias, None)
    return found


def item_content(data: EncodedData, config: Config, fitted: EncodedData | None = None) -> np.ndarray:
    """The items' content, float32 `[I, F]`: genres, bucket of the year, words of the title, categories; see
    `weighted_content`. A missing value has no column. The columns and weights are those of `fitted`, if it is given.

    Raises:
      ShortlistError: if there is nothing of it.
    """
    blocks = _blocks(data, config, fitted or data)
    if not any(block.any() for block in blocks.values()):
        raise ShortlistError(
            "`content_based` needs items with genres, years, titles or categories. Give a table of items with "
            f"--set data.items=FILE. Received: {data.num_items - FIRST_ID:,} items without any."
        )
    counted = _blocks(fitted, config, fitted) if fitted else None
    return weighted_content(blocks, {"title": config.title_weight}, counted)


def _blocks(data: EncodedData, config: Config, fitted: EncodedData) -> dict[str, np.ndarray]:
    blocks = {
        "genres": data.items["genres"],
        "year": _one_hot(data.year_bucket(), fitted.year_bucket())[:, 1:],
        "title": title_tokens(data.items["title"], config.title_tokens, fitted.items["title"]),
    }
    for name in fitted.state["categories"]:
        rows, counted = (
            np.where(of < FIRST_ID + config.category_values, of, OOV)
            for of in (d.items[f"category_{name}"] for d in (data, fitted))
        )
        blocks[name] = _one_hot(rows, counted)[:, OOV:]
    return blocks


def column_names(data: EncodedData, config: Config) -> list[str]:
    """What each column of `item_content` is."""
    years = data.state["year_boundaries"]
    names = [f"genre {name}" for name in data.state["genres"]]
    names += [f"year {low} to {high}" for low, high in itertools.pairwise(["", *years, ""])][: data.year_bucket().max()]
    names += [f"word {word}" for word in title_words(data.items["title"], config.title_tokens)]
    for name in data.state["categories"]:
        values = ["another", *data.vocabulary(f"category_{name}")]
        size = int(min(data.items[f"category_{name}"].max(initial=0), OOV + config.category_values))
        names += [f"{name} {value}" for value in values[:size]]
    return names


def _one_hot(rows: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """One column a value from 0 to the highest of `fitted`; any other has none."""
    size = fitted.max(initial=0) + 1
    return np.eye(size + 1, size, dtype=np.float32)[np.minimum(rows, size)]


def _new(config: Config, data: EncodedData) -> ContentBased:
    content = item_content(data, config)
    names = ("form", "history_length", "hash_buckets", "embedding_dim", "hidden_units", "dropout", "item_dropout")
    model = ContentBased(*content.shape, **{name: getattr(config, name) for name in names})
    model.set_content(content, data.items["id"])
    return model
