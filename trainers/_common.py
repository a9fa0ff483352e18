"""What every trainer does alike: seeds, callbacks, and the form in which a model is saved."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pydantic
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._batches import BUCKET, rows_of
from shortlist.components._cluster import Strategy
from shortlist.components._config import Config
from shortlist.components._examples import NextItemExamples, StreamedExamples
from shortlist.components._first_stage import retrieve
from shortlist.components._progress import progress
from shortlist.components._queries import NO_TIME, EncodedData, Queries, Rows, build_queries
from shortlist.components._stored_rows import StoredRows
from shortlist.components._training import together
from shortlist.components.artifacts import Model
from shortlist.components.metrics import ranking_metrics
from shortlist.models._base import FIRST_ID, Factorized, query_spec


class TrainerConfig(Config):
    """What every trainer has.

    Args:
      seed: of initial weights, shuffling and sampling.
      deterministic: only operations that repeat exactly, for the rest of the process.
      train_on: "train", or "all" to fit a model that is to be served and not measured.
      leave_out: share of each user's latest positives that is not trained on, for a model that learns from them how far
        to trust this one.
      strategy: how several devices or machines train it together, docs/scaling.md; `strategies` of a class are those
        that its model supports.
    """

    strategies: ClassVar[tuple[str, ...]] = ("none",)

    seed: int = pydantic.Field(0, ge=0, lt=2**31)
    deterministic: bool = True
    train_on: str = pydantic.Field("train", pattern="^(train|all)$")
    leave_out: float = pydantic.Field(0.0, ge=0, lt=1)
    strategy: Strategy = "none"

    @pydantic.model_validator(mode="after")
    def _supported(self) -> "TrainerConfig":
        if self.strategy not in self.supported():
            model = type(self).__module__.rpartition(".")[2]
            raise ValueError(f"`strategy` of {model} can be {', '.join(self.supported())}. Received: {self.strategy}.")
        return self

    def supported(self) -> tuple[str, ...]:
        """The strategies that go with these settings."""
        return self.strategies


class EpochsConfig(TrainerConfig):
    """What a trainer that goes by epochs has besides.

    Args:
      epochs: number of the last epoch; a model that is gone on with has had its own before.
      patience: above 0 stops early, after so many epochs without a better NDCG@10 on `validation`.
    """

    strategies: ClassVar[tuple[str, ...]] = ("none", "mirrored", "multi_worker", "parameter_server")

    epochs: int = pydantic.Field(12, ge=1)
    patience: int = pydantic.Field(0, ge=0)


@dataclass(frozen=True)
class Share:
    """The parts of each batch that one process reads: those of its replicas, of as many parts as there are replicas.

    Args:
      first: the number of the first of them.
      count: how many.
      of: how many there are in all processes.
    """

    first: int
    count: int
    of: int

    def slices(self, start: int, size: int) -> Iterator[slice]:
        """The parts of the examples from `start` on, `size` of them: as large as one another, but for one example."""
        for part in range(self.first, self.first + self.count):
            yield slice(start + part * size // self.of, start + (part + 1) * size // self.of)


ALONE = Share(0, 1, 1)


Examples = NextItemExamples | StreamedExamples


class NextItemConfig(EpochsConfig):
    """What a trainer has besides that learns what is watched next.

    Args:
      examples_per_user: drawn an epoch, the same number for every user.
      window_rows: rows that are held in memory; if there are more, an epoch goes through windows of so many, made of
        users from everywhere, see `StreamedExamples`.
    """

    examples_per_user: int = pydantic.Field(32, ge=1)
    window_rows: int = pydantic.Field(BUCKET, ge=1)
    batch_size: int = pydantic.Field(512, ge=2)


def next_item_examples(rows: Rows | StoredRows, make: Callable[[Rows], NextItemExamples], window: int) -> Examples:
    """The examples of rows in memory, or of rows on disk."""
    return StreamedExamples(rows, make, window) if isinstance(rows, StoredRows) else make(rows)


def count_rows(rows: Rows | StoredRows) -> int:
    return int(rows.sizes.sum()) if isinstance(rows, StoredRows) else len(rows["item"])


def prepare(config: TrainerConfig) -> None:
    """Makes what follows repeatable."""
    tf.keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()


def load(config: TrainerConfig, inputs: Mapping[str, Any]) -> tuple[EncodedData, dict[str, np.ndarray]]:
    """The encoded data and the rows to train on, those of `train_on` but for `leave_out`.

    Raises:
      ShortlistError: if none of the rows is a positive.
    """
    data = EncodedData(inputs["encoded"])
    rows = data.rows(*(data.artifact.names if config.train_on == "all" else ("train",)))
    if not rows["positive"].any():
        raise ShortlistError(
            "`train` must hold a positive, or there is nothing to learn from. Lower --positive-threshold, or leave it "
            f"out. Received: no positive among {len(rows['positive']):,} rows, "
            f"positive_threshold={data.state['positive_threshold']}."
        )
    if config.leave_out:
        late = latest(rows, config.leave_out)
        rows = {name: values[~late] for name, values in rows.items()}
    return data, rows


def load_stored(config: Any, inputs: Mapping[str, Any]) -> tuple[EncodedData, Rows | StoredRows]:
    """As `load`; rows that are more than `window_rows` of the settings stay on disk."""
    data = EncodedData(inputs["encoded"])
    splits = data.artifact.names if config.train_on == "all" else ("train",)
    if sum(rows_of(data.artifact / f"{name}.parquet") for name in splits) <= config.window_rows:
        return load(config, inputs)
    return data, StoredRows(data, splits, (lambda rows: ~latest(rows, config.leave_out)) if config.leave_out else None)


def latest(rows: Mapping[str, np.ndarray], share: float) -> np.ndarray:
    """Which rows `[N]` stand at or after each user's first of the latest `share` of their positives.

    Of n positives with a time these are the last ⌊share · n⌋; rows that share a time with the first of them go with it.
    A user all of whose positives would go keeps them all.
    """
    key, time = rows["user_key"], rows["timestamp"]
    positive = np.flatnonzero(rows["positive"] & (time < NO_TIME))
    users, first, count = np.unique(key[positive], return_index=True, return_counts=True)
    kept = count - (share * count).astype(np.int64)
    start = np.full(int(key.max(initial=0)) + 1, NO_TIME)
    cut = kept < count
    start[users[cut]] = time[positive[first[cut] + kept[cut]]]
    start[users[start[users] <= time[positive[first]]]] = NO_TIME  # nothing would stand before it
    return (time >= start[key]) & (start[key] < NO_TIME)


def contexts_of(data: EncodedData) -> dict[str, int]:
    """By dimension, the number of its conditions, as the layers that read them want it."""
    return {name.removeprefix("context_"): size for name, size in data.contexts.items()}


def bases(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The models that the one to train builds on, by name."""
    return {
        name: tf.keras.models.load_model(str(model / "model.keras"), compile=False)
        for name, model in inputs["of"].items()
    }


def start_of(inputs: Mapping[str, Any]) -> tuple[Any, int]:
    """The model to go on with, its optimizer's state included, and the epochs that it has had; None and 0 if there is
    none, and training begins anew, if only with tables of an `earlier` one (`shortlist.trainers._warm`)."""
    start: Model | None = inputs.get("start")
    if start is None or "earlier" in inputs:
        return None, 0
    return tf.keras.models.load_model(str(start / "model.keras")), start.read_json("model.json")["config"]["epochs"]


def known_positives(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether a row is a positive of a known user and a known item, bool `[N]`."""
    return rows["positive"] & (rows["item"] >= FIRST_ID) & (rows["user"] >= FIRST_ID)


def interaction_matrix(rows: Mapping[str, np.ndarray], num_users: int, num_items: int) -> tf.SparseTensor:
    """The positives as a matrix of ones `[U, I]`; repeated watches are one cell, unknown ids none."""
    keep = known_positives(rows)
    cells = np.unique(np.stack([rows["user"][keep], rows["item"][keep]], axis=1).astype(np.int64), axis=0)
    return tf.SparseTensor(cells, np.ones(len(cells), np.float32), [num_users, num_items])


def epoch_batches(
    draw: Callable[[np.random.Generator], Callable[[slice], Any]],
    size: int,
    spec: Any,
    config: Any,
    first: int,
    share: Share = ALONE,
) -> tuple[tf.data.Dataset, int]:
    """The batches of the epochs from `first` on, the same whether or not the earlier ones were seen here.

    Every process draws the same epochs, and makes of their batches the parts of its own replicas, one after the other.

    Args:
      draw: draws an epoch; what it returns makes the batch of a slice of its examples.
      size: examples an epoch.
      spec: of a batch.
      config: with `epochs`, `batch_size` and `seed`.
      first: the epoch to begin with.
      share: what of each batch is read here.

    Returns:
      The data set, and how many batches an epoch has.
    """
    rng = np.random.default_rng(config.seed)

    def generate() -> Iterator[Any]:
        for number in range(config.epochs):
            batch = draw(rng)
            for start in range(0, size if number >= first else 0, config.batch_size):
                yield from map(batch, share.slices(start, min(config.batch_size, size - start)))

    batches = tf.data.Dataset.from_generator(generate, output_signature=spec).prefetch(8)
    return batches, -(-size // config.batch_size)


def next_item_batches(examples: Examples, config: Any, first: int, share: Share = ALONE) -> tuple[tf.data.Dataset, int]:
    """As `epoch_batches`, of examples."""
    spec = {name: tf.TensorSpec([None, *values.shape[1:]], values.dtype) for name, values in examples.one().items()}
    rng = np.random.default_rng(config.seed)

    def generate() -> Iterator[dict[str, np.ndarray]]:
        for number in range(config.epochs):
            batches = examples.batches(rng, config.batch_size)
            for batch in batches if number >= first else ():
                for part in share.slices(0, len(batch["label"])):
                    yield {name: values[part] for name, values in batch.items()}

    batches = tf.data.Dataset.from_generator(generate, output_signature=spec).prefetch(8)
    return batches, -(-len(examples) // config.batch_size)


def with_vectors(models: Mapping[str, Any]) -> Any:
    """The one model, which must have item vectors.

    Raises:
      ShortlistError: if it has none.
    """
    ((name, model),) = models.items()
    if not isinstance(model, Factorized):
        raise ShortlistError(
            f"`of` must name a model whose score is a dot product, such as wals or two_tower. Received: {name!r}, "
            f"{type(model).__name__}, which has no item vectors."
        )
    return model


class Bar(tf.keras.callbacks.Callback):
    """A progress bar over the epochs."""

    def __init__(self, label: str, epochs: int):
        super().__init__()
        self._bar = progress(label, epochs)

    def on_train_begin(self, logs: Any = None) -> None:
        self._advance = self._bar.__enter__()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._advance(1)

    def on_train_end(self, logs: Any = None) -> None:
        self._bar.__exit__(None, None, None)


class Validate(tf.keras.callbacks.Callback):
    """Adds `val_ndcg@10`, measured on `validation` over the full catalogue, to the logs of an epoch.

    Args:
      rank: from the queries of `validation` to the ranked items of each, int32 `[Q, K]`.
      data: the encoded data.

    Raises:
      ShortlistError: if `validation` has no positive.
    """

    def __init__(self, rank: Callable[[Queries], np.ndarray], data: EncodedData):
        super().__init__()
        self.rank, self.queries = rank, build_queries(data, "validation")
        if not len(self.queries):
            raise ShortlistError(
                "`patience` needs a positive in validation to stop by. Give it a share, such as --set "
                "split.validation=0.1, or leave patience out. Received: none."
            )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        targets = self.queries.targets
        values = ranking_metrics(self.rank(self.queries), targets.offsets, targets.values, (10,))["ndcg@10"]
        if logs is not None:
            logs["val_ndcg@10"] = float(np.nanmean(values))


def callbacks(label: str, epochs: int, workdir: Path, patience: int, validate: Validate | None) -> list[Any]:
    """The bar and TensorBoard, both of the chief alone, and early stopping on the validation metric where `patience`
    is above 0."""
    found: list[Any] = []
    if patience and validate is not None:
        found += [validate]
        stop = {"monitor": "val_ndcg@10", "mode": "max", "patience": patience, "restore_best_weights": True}
        found += [tf.keras.callbacks.EarlyStopping(**stop)]
    shared = together()
    if shared and not shared.cluster.is_chief:
        return found
    return [*found, tf.keras.callbacks.TensorBoard(str(workdir / "logs"), write_graph=False), Bar(label, epochs)]


def validate_retriever(model: Any, data: EncodedData, name: str, patience: int) -> Validate | None:
    """The validation of a retriever, if it is to stop early."""
    if not patience:
        return None
    return Validate(lambda queries: retrieve(model.score_items, queries, 10, name), data)


def serving(model: Any, data: EncodedData) -> tf.Module:
    """What of a retriever is saved for serving: its functions and variables, without its class."""
    spec = query_spec(data.kinds)
    functions: dict[str, list[Any]] = {"score_items": [spec]}
    if hasattr(model, "item_vectors"):
        functions |= {"embed_query": [spec], "item_vectors": []}
    if hasattr(model, "fold_in_history"):
        history = tf.TensorSpec([None, None], tf.int32, "history")
        functions["fold_in_history"] = [history, tf.TensorSpec([None, None], tf.float32, "weights")]
        functions["explain_history"] = [history, tf.TensorSpec([None], tf.int32, "item")]
        functions["user_vectors"] = []
    return served({name: (getattr(model, name), spec) for name, spec in functions.items()}, model)


def served(functions: Mapping[str, tuple[Callable[..., Any], list[Any]]], model: Any) -> tf.Module:
    """A module with `functions` (each with its input signature) over the variables of `model`."""
    module = tf.Module(name="serving")
    module.state = model.variables
    for name, (function, spec) in functions.items():
        setattr(module, name, tf.function(function, input_signature=spec, autograph=False))
    return module


def save(
    model: Any,
    module: tf.Module,
    config: TrainerConfig,
    workdir: Path,
    history: Mapping[str, Sequence[float]] | None = None,
    notes: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes a `Model` artifact; see there. Of several processes that trained the model together, the chief does."""
    shared = together()
    if shared:
        shared.leave_the_rest_to_the_chief()
    model.save(str(workdir / "model.keras"))
    tf.saved_model.save(module, str(workdir / "serving"))
    if getattr(config, "patience", 0):
        notes = [*notes, f"Rows of validation chose the epoch of {model.registered_name} (patience)."]
    info = {
        "model": model.registered_name,
        "config": config.model_dump(mode="json"),
        "trained_on": config.train_on,
        "history": {key: [float(v) for v in values] for key, values in (history or {}).items()},
        "notes": list(notes),
        **(facts or {}),
    }
    (workdir / "model.json").write_text(json.dumps(info, indent=2))
