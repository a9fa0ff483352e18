"""Recommendations for many users at once, from the bundle as it is served."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from shortlist import ShortlistError
from shortlist.components._config import Config
from shortlist.components._engine import Each, Engine
from shortlist.components._files import locked, replace_file, replacing
from shortlist.components._progress import progress

STATE = "predictions.json"
CELLS = 1 << 22  # numbers of one table of a batch: users × items, or users × history × DIMENSIONS
MOST, DIMENSIONS, FIRST_ROW = 64, 64, 2


class BulkConfig(Config):
    """Settings of `predict`.

    Args:
      k: how many items a user.
      shard: users a file.
      batch_size: users at a time; what a catalogue of this size lets fit if none is given.
    """

    k: int = pydantic.Field(10, ge=1, le=10_000)
    shard: int = pydantic.Field(100_000, ge=1)
    batch_size: int | None = pydantic.Field(None, ge=1, le=65_536)


@dataclass(frozen=True)
class Predicted:
    """What was done: users and files in all, and how many users were answered now."""

    users: int
    shards: int
    answered: int


def read_users(given: str, saved_model: Path) -> np.ndarray:
    """The ids of a file, in its order: Parquet with a column `user`, or text with one id a line; `all`: the bundle's.

    Raises:
      ShortlistError: if the file cannot be read, has no ids, or an id twice.
    """
    file = saved_model / "assets" / "users.txt" if given == "all" else Path(given)
    try:
        if file.suffix == ".parquet":
            users = pq.read_table(file, columns=["user"])["user"].cast(pa.string()).fill_null("").to_numpy()
        else:
            users = np.array(file.read_text("utf-8").split("\n"), object)
            users = users[:-1] if users[-1] == "" else users
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ShortlistError(
            "`--users` must be `all`, a text file with one id a line, or a Parquet file with a column `user`: "
            f"{' '.join(str(error).split())[:200]}. Received: {given}."
        ) from None
    distinct, counts = np.unique(users.astype(str), return_counts=True)
    if not len(users) or "" in distinct[:1] or counts.max() > 1:
        what = (
            "none"
            if not len(users)
            else "an empty one"
            if distinct[0] == ""
            else f"{str(distinct[counts.argmax()])!r} twice"
        )
        raise ShortlistError(f"`--users` must hold ids, each once. Received: {given} with {what}.")
    return users


def predict(
    saved_model: Path, users: np.ndarray, out: Path, config: BulkConfig | None = None, engine: Engine | None = None
) -> Predicted:
    """Writes what the signature `recommend` answers to every user, all else absent.

    `out/part-<n>-of-<m>.parquet`: user string; items list<string>, best first; scores list<float>; sources
    and reasons list<string>; expected_watch_time list<float> where it is learned. In the order of `users`. A file is
    there when it is whole: started again, the same call goes on with the files that are missing.

    Raises:
      ShortlistError: if `out` holds the answers to something else, another process writes to it, or it cannot be
        written.
    """
    config = config or BulkConfig()
    shards = -(-len(users) // config.shard)
    model = hashlib.sha256()
    for path in sorted(p for p in saved_model.rglob("*") if p.is_file()):
        model.update(path.read_bytes())
    asked = {
        "model": model.hexdigest(),
        "users": hashlib.sha256("\n".join(users).encode()).hexdigest(),
        **config.model_dump(exclude={"batch_size"}),
    }
    parts = [out / f"part-{n:05d}-of-{shards:05d}.parquet" for n in range(shards)]
    try:
        with locked(out / ".lock", f"`--out` must be of one process at a time. Received: {out}."):
            state = out / STATE
            if not state.exists() and any(out.glob("*.parquet")):
                raise ShortlistError(f"`--out` must be an empty folder, or one that this wrote. Received: {out}.")
            if state.exists() and json.loads(state.read_text("utf-8")) != asked:
                raise ShortlistError(
                    "`--out` must hold no answers of another model, to other users, or with another k or shard: give "
                    f"another folder, or remove it. Received: {out}."
                )
            replace_file(state, json.dumps(asked, indent=2))
            missing = [n for n, part in enumerate(parts) if not part.exists()]
            tasks = [(parts[n].absolute(), users[n * config.shard : (n + 1) * config.shard]) for n in missing]
            answered = 0
            if missing:
                work = Answer(saved_model.absolute(), config)
                answered = sum((engine or Engine()).run(out.absolute(), Each(tasks, work))[0])
    except (OSError, ValueError) as error:
        if isinstance(error, ShortlistError):
            raise
        raise ShortlistError(
            f"`--out` must be a folder that can be written: {getattr(error, 'strerror', None) or error}. What is "
            f"whole stays, and the same command goes on from there. Received: {out}."
        ) from error
    return Predicted(len(users), shards, answered)


@dataclass(frozen=True)
class Answer:
    """Writes the answers to some users into a file, and says how many they are."""

    saved_model: Path
    config: BulkConfig

    @cached_property
    def ask(self) -> Callable[[np.ndarray], Iterator[tuple[np.ndarray, Any]]]:
        """See `_asker`."""
        return _asker(self.saved_model, self.config)

    def __call__(self, task: tuple[Path, np.ndarray]) -> int:
        part, users = task
        with progress(part.stem, len(users)) as advance, replacing(part) as partial:
            pq.write_table(_table(users, self.ask(users), advance), partial, compression="zstd")
        return len(users)


def _asker(saved_model: Path, config: BulkConfig) -> Callable[[np.ndarray], Iterator[tuple[np.ndarray, Any]]]:
    """A function from users to places among them and the answers of the signature, a batch at a time.

    Users with as much behind them come together, the most first: the histories of a batch are padded to the longest.
    As many batches are answered at once as TensorFlow has threads: much of the graph is operations that use one.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(str(saved_model))
    function = loaded.signatures["recommend"]
    specs = function.structured_input_signature[1]
    known = pa.array((saved_model / "assets" / "users.txt").read_text("utf-8").split("\n")[:-1], pa.string())
    stored = np.concatenate([np.diff(loaded.splits.numpy())[FIRST_ROW:], [0]])  # the last is of unknown users
    items = loaded.item_ids.shape[0]

    def batches(users: np.ndarray) -> Iterator[np.ndarray]:
        rows = pc.index_in(pa.array(users, pa.string()), known).fill_null(-1).to_numpy()
        order = np.argsort(-stored[rows], kind="stable")
        start = 0
        while start < len(order):
            cells = max(items, DIMENSIONS * int(stored[rows[order[start]]]))
            size = config.batch_size or max(1, min(MOST, CELLS // cells))
            yield order[start : start + size]
            start += size

    def answer(users: np.ndarray) -> dict[str, np.ndarray]:
        given: dict[str, Any] = {}
        for name, spec in specs.items():
            shape = [len(users)] + [1] * (spec.shape.rank - 1)
            given[name] = tf.fill(shape, tf.constant("" if spec.dtype == tf.string else -1, spec.dtype))
        given["user"] = tf.constant(users.astype(str))
        given["k"] = tf.fill([len(users)], tf.constant(config.k, specs["k"].dtype))
        return {name: value.numpy() for name, value in function(**given).items()}

    def ask(users: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        at_once = tf.config.threading.get_inter_op_parallelism_threads() or os.cpu_count() or 1
        waiting: deque[tuple[np.ndarray, Future[Any]]] = deque()
        with ThreadPoolExecutor(at_once) as pool:
            for places in batches(users):
                waiting.append((places, pool.submit(answer, users[places])))
                if len(waiting) > at_once:
                    places, found = waiting.popleft()
                    yield places, found.result()
            for places, found in waiting:
                yield places, found.result()

    return ask


def _table(users: np.ndarray, batches: Iterator[tuple[np.ndarray, Any]], advance: Callable[[int], Any]) -> pa.Table:
    """The answers to users in their order: of padded ones, lists of as many items as each has."""
    places, tables = [], []
    for at, answer in batches:
        count = answer.pop("count")
        offsets = pa.array(np.concatenate([[0], np.cumsum(count)]), pa.int32())
        there = np.arange(answer["items"].shape[1]) < count[:, np.newaxis]
        columns = {"user": pa.array(users[at], pa.string())}
        for name in sorted(answer, key=lambda name: (name != "items", name)):
            values = answer[name][there]
            flat = pa.array(values, pa.binary()).cast(pa.string()) if values.dtype == object else pa.array(values)
            columns[name] = pa.ListArray.from_arrays(offsets, flat)
        tables.append(pa.table(columns))
        places.append(at)
        advance(len(at))
    return pa.concat_tables(tables).take(np.argsort(np.concatenate(places)))
