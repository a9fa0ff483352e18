"""Trains `TwoTower`."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._batches import BUCKET
from shortlist.components._examples import NextItemExamples, following_words
from shortlist.components._queries import NO_TIME, EncodedData, Rows
from shortlist.components._stored_rows import StoredRows
from shortlist.components.artifacts import Artifact
from shortlist.models._base import FIRST_ID, KINDS
from shortlist.models._optimizer import TableAdagrad
from shortlist.models._skip_gram import SkipGram
from shortlist.models.two_tower import TwoTower
from shortlist.trainers._common import (
    Examples,
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
from shortlist.trainers._warm import RESERVED, Tables, carry, labels

TITLE_LENGTH = 16
"""Words kept of a title."""
DEEP, DEEP_UNITS = 500_000, (128,)


class Config(NextItemConfig):
    """Settings of the two-tower; see the model.

    Args:
      hidden_units: "auto" is none, and from `DEEP` examples to learn from on `DEEP_UNITS` (benchmarks/depth.py).
      hard_warmup: epochs before the hard negatives come; their index is refreshed once an epoch.
      user_id, request_time, example_age: inputs of the query.
      request: what a query says besides is an input too: contexts, columns of the user, words searched for.
      query_pretraining: epochs of skip-gram over which words a user searches for after which, in `train`; the words of
        searches begin with its directions. 0 leaves it out.
      content, title: genres, year and further columns of the items; the words of their titles.
    """

    embedding_dim: int = pydantic.Field(128, ge=1)
    history_length: int = pydantic.Field(10, ge=1)
    long_history_length: int = pydantic.Field(100, ge=0)
    hidden_units: tuple[int, ...] | Literal["auto"] = "auto"
    softmax: Literal["full", "in_batch", "uniform", "popularity", "mixed", "hard", "positives_only"] = "in_batch"
    negatives: int = pydantic.Field(512, ge=1)
    log_q: Literal["counts", "streaming", "none"] = "counts"
    popularity_power: float = pydantic.Field(0.75, ge=0)
    hard_share: float = pydantic.Field(0.1, ge=0, le=1)
    hard_warmup: int = pydantic.Field(2, ge=0)
    temperature: float = pydantic.Field(1.0, gt=0)
    shared_item_table: bool = False
    normalize: bool = False
    dropout: float = pydantic.Field(0.6, ge=0, lt=1)
    id_dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    recency_half_life: float = pydantic.Field(0.0, ge=0)
    user_id: bool = False
    request_time: bool = True
    example_age: bool = False
    request: bool = True
    query_pretraining: int = pydantic.Field(0, ge=0)
    content: bool = True
    title: bool = False
    learning_rate: float = pydantic.Field(0.1, gt=0)

    def supported(self) -> tuple[str, ...]:
        if self.softmax == "hard":  # one index of all items, which each step searches
            return ("none",)
        if self.log_q == "streaming":  # counts the batches of one after the other
            return self.strategies[:3]
        return self.strategies


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Fits the towers to random prefixes of each user's history."""
    prepare(config)
    data, rows = load_stored(config, inputs)
    examples = make_examples(config, data, rows)
    start, first = start_of(inputs)
    model = start or make_model(config, data, examples)
    if start is None and config.query_pretraining:
        pretrain_words(model, config, data, rows)
    notes = carry(model, tables, config, inputs, data) + depth_note(config, examples)
    validate = validate_retriever(model, data, "two_tower", config.patience)
    shown = callbacks("two_tower: epochs", config.epochs, workdir, config.patience, validate)
    history = fit(model, config, partial(next_item_batches, examples, config), first, shown)
    save(model, serving(model, data), config, workdir, history, notes)


def tables(model: TwoTower, data: EncodedData, config: Config) -> Tables:
    """All that is learned, tables by the ids, values and words of their rows; see `carry`."""
    said, content = data.state["request"], model.content
    found: Tables = {"candidate_table": (model.candidate_table, labels(data, "items"))}
    if not model.shared_item_table:
        found["history_table"] = (model.history_table, labels(data, "items"))
    if model.user_table is not None:
        found["user_table"] = (model.user_table, labels(data, "users"))
    for name, table in model.category_tables.items():
        found[f"{name}_table"] = (table, labels(data, said[name]["file"]))
    if model.token_table is not None:
        found["token_table"] = (model.token_table, labels(data, "query"))
    for name in ("time_table", "age_table"):
        found[name] = (getattr(model, name), None)
    if content is not None and model.num_genres:
        found["genre_table"] = (content.genre_table, data.state["genres"])
    if content is not None and model.num_years:
        found["year_table"] = (content.year_table, ["unknown", *_buckets(data.state["year_boundaries"])])
    if content is not None and model.num_title_tokens:
        words = title_words(data.items["title"]).to_pylist()
        found["title_table"] = (content.title_table, [*RESERVED, *words])
    for name, table in content.column_tables.items() if content is not None else ():
        found[f"item_{name}_table"] = (table, labels(data, f"category_{name}"))
    for number, layer in enumerate(model.tower):
        found |= {f"layer {number}": (layer.kernel, None), f"bias {number}": (layer.bias, None)}
    return {name: entry for name, entry in found.items() if entry[0] is not None}


def _buckets(boundaries: Sequence[float]) -> list[str]:
    """The buckets of the year by what they hold, so that only one of the same years is the same."""
    ends = ["", *map(str, boundaries), ""]
    return [f"{low} to {high}" for low, high in itertools.pairwise(ends)]


def make_examples(config: Config, data: EncodedData, rows: Rows | StoredRows) -> Examples:
    """What the towers are fitted to.

    Raises:
      ShortlistError: if no positive has an earlier one of the same user.
    """
    newest = _newest(rows) if config.example_age else 0

    def make(rows: Rows) -> NextItemExamples:
        further = data.request(rows, np.arange(len(rows["item"]))) if config.request else {}
        if config.example_age:
            further["example_age"] = (newest - np.minimum(rows["timestamp"], newest)).astype(np.float32)
        length = max(config.history_length, config.long_history_length)
        return NextItemExamples(rows, length, config.examples_per_user, further)

    examples = next_item_examples(rows, make, config.window_rows)
    if not len(examples):
        raise ShortlistError(
            "`two_tower` learns what is watched next, and no user has two positives at different times. Give "
            f"timestamps, or use wals. Received: {count_rows(rows):,} training rows."
        )
    return examples


def _newest(rows: Rows | StoredRows) -> int:
    """The latest time of all rows, 0 if none has one."""
    pieces = [rows] if isinstance(rows, dict) else map(rows.read, rows.windows(BUCKET))
    return max(int(times[times < NO_TIME].max(initial=0)) for times in (piece["timestamp"] for piece in pieces))


def depth(config: Config, examples: Examples) -> tuple[int, ...]:
    """The widths of the hidden layers."""
    if config.hidden_units != "auto":
        return config.hidden_units
    return DEEP_UNITS if examples.labels >= DEEP else ()


def depth_note(config: Config, examples: Examples) -> list[str]:
    """What is said of a depth that the data chose."""
    if config.hidden_units != "auto":
        return []
    units = " → ".join(map(str, depth(config, examples)))
    return [
        f"two_tower has {f'hidden layers of {units}' if units else 'no hidden layer'}: there are "
        f"{examples.labels:,} next watches to learn from, and from {DEEP:,} on it gets some (hidden_units = auto)."
    ]


def make_model(config: Config, data: EncodedData, examples: Examples) -> TwoTower:
    """A new model, which knows the items' content and how often each is a label."""
    content, items = item_content(config, data, data), data.items
    years, columns = content["years"], content["categories"]
    num_tokens = len(title_words(items["title"])) + FIRST_ID if config.title else 0
    said = data.state["request"] if config.request else {}
    of_kind = {kind: [name for name, info in said.items() if info["kind"] == kind] for kind in KINDS}
    numbers, tokens = of_kind["number"], of_kind["tokens"]
    steps = -(-len(examples) // config.batch_size)
    shared: tuple[str, ...] = (
        "embedding_dim",
        "history_length",
        "long_history_length",
        "softmax",
        "negatives",
        "log_q",
    )
    shared += (
        "popularity_power",
        "hard_share",
        "temperature",
        "recency_half_life",
        "shared_item_table",
        "normalize",
        "dropout",
    )
    model = TwoTower(
        num_items=data.num_items,
        num_users=data.num_users if config.user_id else 0,
        hidden_units=depth(config, examples),
        hard_warmup=config.hard_warmup * steps,
        hard_refresh=steps,
        time_quantiles=tuple(data.state["time_quantiles"]) if config.request_time else (),
        age_quantiles=examples.quantiles("example_age") if config.example_age else (),
        categories={name: said[name]["size"] for name in of_kind["category"]},
        numbers=tuple(numbers),
        num_tokens=said[tokens[0]]["size"] if tokens else 0,
        num_genres=items["genres"].shape[1] if config.content else 0,
        num_years=int(years.max()) + 1 if config.content else 0,
        num_title_tokens=num_tokens,
        title_length=TITLE_LENGTH,
        item_categories={name: int(rows.max()) + 1 for name, rows in columns.items()},
        id_dropout=config.id_dropout,
        **{name: getattr(config, name) for name in shared},
    )
    model.set_content(**content)
    if numbers:
        known = data.users["user"] >= FIRST_ID
        model.set_numbers(np.stack([data.users[name][known] for name in numbers], axis=1))
    model.set_label_counts(examples.label_counts(data.num_items))
    model.compile(optimizer=TableAdagrad(config.learning_rate))
    return model


def pretrain_words(model: TwoTower, config: Config, data: EncodedData, rows: Rows | StoredRows) -> None:
    """Gives the words of searches the directions that skip-gram finds, as long in the mean square as they begin.

    Raises:
      ShortlistError: if no user searched for different words, one after the other.
    """
    windows = (
        (rows.read(pieces) for pieces in rows.windows(config.window_rows)) if isinstance(rows, StoredRows) else (rows,)
    )
    found = [
        following_words(part["user_key"], data.request(part, np.arange(len(part["item"])))["query"])
        for part in (windows if model.token_table is not None else ())
    ]
    pairs = [np.concatenate(side) for side in zip(*found, strict=True)]
    if not pairs or not len(pairs[0]):
        raise ShortlistError(
            "`query_pretraining` learns which words a user searches for after which, and nobody in `train` searched "
            "for two different ones. Give a column `query`, or leave it out. "
            f"Received: query_pretraining={config.query_pretraining}."
        )
    learner = SkipGram(model.num_tokens, model.embedding_dim)
    learner.set_counts(np.bincount(pairs[1], minlength=model.num_tokens))
    learner.compile(TableAdagrad(config.learning_rate))
    batches = tf.data.Dataset.from_tensor_slices(dict(zip(("word", "follower"), pairs, strict=True)))
    batches = batches.shuffle(min(len(pairs[0]), 1_000_000), config.seed).batch(config.batch_size)
    learner.fit(batches, epochs=config.query_pretraining, verbose=0)
    table: Any = model.token_table
    words, begin = learner.word_table.numpy(), table.numpy()
    table.assign(words * np.sqrt(np.square(begin).mean() / np.square(words).mean()))


def item_content(config: Config, data: EncodedData, fitted: EncodedData) -> dict[str, Any]:
    """What the candidates are told of the items of `data`, see `TwoTower.set_content`, in the words of `fitted`."""
    items, columns = data.items, data.state["categories"] if config.content else ()
    return {
        "genres": items["genres"],
        "years": np.minimum(data.year_bucket(), fitted.year_bucket().max()),
        "titles": title_rows(items["title"], title_words(fitted.items["title"]), TITLE_LENGTH)
        if config.title
        else None,
        "categories": {n: _known(items[f"category_{n}"], fitted.items[f"category_{n}"]) for n in columns},
    }


def _known(rows: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """The rows of a category, 1 for one past the highest of `fitted`."""
    return np.where(rows <= fitted.max(), rows, 1)


def title_words(titles: np.ndarray, least: int = 2) -> pa.Array:
    """The words of at least so many titles, the most frequent first.

    A word is a run of letters and digits, in small letters.
    """
    counts = _words(titles)[0].value_counts().flatten()
    known = pa.table({"word": counts[0], "count": counts[1]}).sort_by([("count", "descending"), ("word", "ascending")])
    return known.filter(pc.greater_equal(known["count"], least))["word"].combine_chunks()


def title_rows(titles: np.ndarray, words: pa.Array, length: int) -> np.ndarray:
    """The words of titles as rows of a table, int32 `[I, length]`, padded with 0; another word has row 1, unknown."""
    flat, of = _words(titles)
    rows = pc.add(pc.index_in(flat, value_set=words), FIRST_ID).fill_null(1).to_numpy()
    place = np.arange(len(of)) - np.searchsorted(of, of)
    out = np.zeros((len(titles), length), np.int32)
    out[of[place < length], place[place < length]] = rows[place < length]
    return out


def _words(titles: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    """All words of all titles, and whose title each is of."""
    words = pc.split_pattern_regex(pc.utf8_lower(pa.array(titles, pa.string())), r"[^\pL\pN]+")
    flat, of = words.flatten(), pc.list_parent_indices(words).to_numpy()
    said = pc.not_equal(flat, "").to_numpy(zero_copy_only=False)
    return flat.filter(pa.array(said)), of[said]
