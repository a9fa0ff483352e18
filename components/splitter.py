"""Cuts interactions into train, fold_in, rank_train, validation and test, whatever the order of the file."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from shortlist import ShortlistError
from shortlist.components._analysis import Counts
from shortlist.components._batches import BUCKET, Writer, batches, scattered, smallest
from shortlist.components._config import Config
from shortlist.components._hashing import hash_of, mix
from shortlist.components.artifacts import Anomalies, Examples, Splits
from shortlist.components.pipeline import Component

TRAIN, FOLD_IN, RANK_TRAIN, VALIDATION, TEST = range(len(Splits.NAMES))
NO_TIME = np.iinfo(np.int64).max
FOLD_IN_SHARE = 0.8

GUARANTEES = {
    "per_user_time": "Each user's splits follow each other in time, ties in a seeded random order. Across users "
    "nothing is guaranteed: a training row can be later than another user's test row. Where a user's rows come from "
    "one sitting, as for most users of MovieLens, test measures the continuation of a session.",
    "global_time": "Every row of a split is strictly later than every row of the splits before it, within a user and "
    "across users.",
    "leave_last_out": "Each user's last row is test, the one before it validation, the one before that rank_train, "
    "ties in a seeded random order. Across users nothing is guaranteed: a training row can be later than another "
    "user's test row.",
    "strong": "No row of a held-out user is trained on, and each one's target rows follow its fold_in rows in time. "
    "Across users nothing is guaranteed: a training row can be later than a held-out user's target.",
    "kfold": "Every row is in exactly one split, by a seeded hash of user, item and timestamp. Time is ignored: a "
    "training row can be later than a test row of the same user. It measures rating prediction, not forecasting.",
}


class SplitConfig(Config):
    """How interactions are cut.

    Attributes:
      strategy: see `Splitter`.
      test: share of the last part, above 0. Shares are of a user's rows (`per_user_time`), of all rows (`global_time`)
        or of the users (`strong`); `leave_last_out` and `kfold` use none.
      validation: share of the part before it.
      rank_train: share of the part before that, on which the ranker is trained.
      positive_threshold: the lowest rating that is a positive; None makes every watch one. Recorded for what follows.
      folds: number of folds of `kfold`, at least 3.
      fold: the fold that is test, from 0; the next one, cyclically, is validation.
      seed: orders ties, draws held-out users and folds.
      keep_test: False leaves `test` out of the artifact, so that nothing that comes after can read it: a sweep does so.
    """

    strategy: Literal["per_user_time", "global_time", "leave_last_out", "strong", "kfold"] = "per_user_time"
    test: float = pydantic.Field(0.1, gt=0, lt=1)
    validation: float = pydantic.Field(0.1, ge=0, lt=1)
    rank_train: float = pydantic.Field(0.2, ge=0, lt=1)
    positive_threshold: float | None = None
    folds: int = pydantic.Field(5, ge=3, le=1_000_000)
    fold: int = pydantic.Field(0, ge=0)
    seed: int = pydantic.Field(0, ge=0, lt=2**32)
    keep_test: bool = True

    @pydantic.model_validator(mode="after")
    def _leaves_train(self) -> "SplitConfig":
        total = round(self.test + self.validation + self.rank_train, 9)
        if total >= 1:
            raise ValueError(
                "`test`, `validation` and `rank_train` must add up to less than 1, so that `train` gets its share. "
                f"Received: {self.test:g} + {self.validation:g} + {self.rank_train:g} = {total:g}."
            )
        if self.fold >= self.folds:
            raise ValueError(f"`fold` must be between 0 and {self.folds - 1}, the last fold. Received: {self.fold}.")
        return self


class Splitter(Component):
    """Cuts interactions into parts, by time or by a seeded hash.

    - `per_user_time`: a user's n rows in time order; the last ⌊share·n + ½⌋ are test, those before them validation,
      then rank_train; the rest, at least one row, is train. A user of fewer than 3 rows is all train.
    - `global_time`: the same shares of the whole time line. A split starts at a timestamp, and rows of that timestamp
      all belong to the later split.
    - `leave_last_out`: the last row of each user is test, the one before it validation, the one before that
      rank_train. A user of fewer than 4 rows is all train.
    - `strong`: users with at least 2 rows are drawn by a hash of their id, ⌊share·users + ½⌋ a split; a held-out
      user's first 80 % rows in time are `fold_in`, the last ⌊n/5 + ½⌋, at least one, are the target. All others are
      train. Source: Liang et al. 2018, "Variational Autoencoders for Collaborative Filtering", section 4, which draws
      the 80 % at random; here time decides, since a history holds earlier events only.
    - `kfold`: rows are dealt to folds by a hash of (user, item, timestamp); rank_train is empty. For ratings.

    Interactions of more than `BUCKET` rows are dealt to files by ranges of users first, and cut one after the other.

    Rows of one user and timestamp are ordered by a seeded hash of (user, item): neither the file's order nor the ids'
    magnitude decides. Rows that share the item as well are ordered by the text of their other columns.

    Args:
      config: a `SplitConfig`.

    Raises:
      ShortlistError: when a strategy that goes by time meets a row without a timestamp, and when train or test would
        be empty.

    Example:
      >>> pipeline = Pipeline("runs/x")  # building it runs nothing
      >>> examples = pipeline.add(ExampleGen())
      >>> splits = pipeline.add(Splitter(SplitConfig(strategy="global_time")), examples)
    """

    output = Splits
    config: SplitConfig

    def __init__(self, config: SplitConfig | None = None, name: str = ""):
        super().__init__(config or SplitConfig(), name)

    def run(self, out: Path, examples: Examples, anomalies: Anomalies | None = None) -> None:
        """Writes `Splits`. `anomalies` is not read: it makes the step wait for the validation of its input."""
        path = examples / "interactions.parquet"
        plan = plan_of(partial(batches, path), self.config)
        names = Splits.NAMES if self.config.keep_test else tuple(name for name in Splits.NAMES if name != "test")
        counts, users = np.zeros(len(Splits.NAMES), np.int64), dict.fromkeys(names, 0)
        with contextlib.ExitStack() as files:
            writers = {name: files.enter_context(Writer(out / f"{name}.parquet")) for name in names}
            for table in _by_user(path, out / "buckets", plan):
                parts = cut(table, plan)
                counts += [len(rows) for rows in parts.values()]
                for name, writer in writers.items():
                    part = table.take(pa.array(parts[name]))
                    users[name] += pc.count_distinct(part["user"]).as_py()
                    writer.write(part)
        _refuse_too_small(plan, counts)
        for name in ("items.parquet", "users.parquet", "source.json"):
            shutil.copyfile(examples / name, out / name)
        summary = {
            "strategy": self.config.strategy,
            "seed": self.config.seed,
            "positive_threshold": self.config.positive_threshold,
            "rows": {name: writer.rows for name, writer in writers.items()},
            "users": users,
            "guarantee": GUARANTEES[self.config.strategy],
        }
        (out / "splits.json").write_text(json.dumps(summary, indent=2))


def split_rows(interactions: pa.Table, config: SplitConfig) -> dict[str, np.ndarray]:
    """The rows of each split, sorted by user, then timestamp, ties by a seeded hash of (user, item).

    Args:
      interactions: columns user string, item string, timestamp int64 or null; any others.
      config: the strategy and its numbers.

    Returns:
      Row numbers int64 by split, for all of `Splits.NAMES`; every row is in exactly one.

    Raises:
      ShortlistError: as `Splitter`.

    Example:
      >>> watched = pa.table({"user": ["u"] * 4, "item": ["d", "a", "c", "b"], "timestamp": [40, 10, 30, 20]})
      >>> rows = split_rows(watched, SplitConfig(strategy="leave_last_out"))
      >>> watched["item"][int(rows["test"][0])].as_py()
      'd'
    """
    plan = plan_of(lambda columns: [interactions.select(columns)], config)
    rows = cut(interactions, plan)
    _refuse_too_small(plan, np.array([len(part) for part in rows.values()]))
    return rows


@dataclass(frozen=True)
class Plan:
    """What has to be known of all rows, so that those of some users can be cut without the others.

    Attributes:
      config: the strategy and its numbers.
      rows: how many there are.
      users: ids in ascending order.
      sizes: int64 `[U]`, the rows of each.
      starts: of `global_time`, when test, validation and rank_train start, int64 `[3]`.
      roles: of `strong`, the split of each user's target, int64 `[U]`.
    """

    config: SplitConfig
    rows: int
    users: pa.Array
    sizes: np.ndarray
    starts: np.ndarray | None = None
    roles: np.ndarray | None = None


def plan_of(tables: Callable[[list[str]], Iterable[pa.Table]], config: SplitConfig) -> Plan:
    """The plan.

    Args:
      tables: a new pass over these columns of the interactions.
      config: the strategy and its numbers.

    Raises:
      ShortlistError: if the strategy goes by time and a row has none, and if there is no row.
    """
    counts, state, rows, timeless = Counts("user"), Counts("user").start(), 0, 0
    for table in tables(["user", "timestamp"]):
        state = counts.add(state, table)
        rows, timeless = rows + len(table), timeless + table["timestamp"].null_count
    if config.strategy != "kfold" and timeless:
        raise ShortlistError(
            f"`{config.strategy}` goes by time, so every row needs a timestamp. Give them, or split without time by "
            f"--set split.strategy=kfold. Received: {timeless:,} of {rows:,} rows without one."
        )
    if not rows:
        raise _too_small(config, 0, 0, 0, 0)
    found = counts.result(state).sort_by("value")
    users, sizes = found["value"].combine_chunks(), found["count"].to_numpy()
    plan = Plan(config, rows, users, sizes)
    if config.strategy == "global_time":
        ranks = rows - np.cumsum(_shares(rows, config))  # [3] where test, validation and rank_train start
        times = smallest(
            lambda: (t["timestamp"].to_numpy() for t in tables(["timestamp"])), [*np.minimum(ranks, rows - 1)]
        )
        return replace(plan, starts=np.where(ranks < rows, times, NO_TIME))
    if config.strategy == "strong":
        return replace(plan, roles=_roles(_owner(hash_of(users), config), sizes, config))
    return plan


def cut(interactions: pa.Table, plan: Plan) -> dict[str, np.ndarray]:
    """The rows of each split of all the interactions of some users; see `split_rows`."""
    config = plan.config
    user, ids = _codes(interactions["user"])
    item, item_ids = _codes(interactions["item"])
    time = interactions["timestamp"].fill_null(NO_TIME).to_numpy()
    owner = _owner(hash_of(ids), config)  # [U]
    pair = mix(owner[user] + hash_of(item_ids)[item])  # [N]
    order = _sort(interactions, user, time, pair)
    user, time, pair = user[order], time[order], pair[order]
    size = np.bincount(user, minlength=len(ids))  # [U] rows of each user
    left = (np.cumsum(size) - 1)[user] - np.arange(len(user))  # [N] rows that this user still has after this one
    if plan.starts is not None:
        place = np.searchsorted(plan.starts[::-1], time, side="right")
        part = np.array([TRAIN, RANK_TRAIN, VALIDATION, TEST])[place]
    elif config.strategy == "kfold":
        fold = mix(pair ^ mix(time.astype(np.uint64))) % config.folds
        turn = (fold.astype(np.int64) - config.fold) % config.folds
        part = np.select([turn == 0, turn == 1], [TEST, VALIDATION], TRAIN)
    elif plan.roles is not None:
        target = np.maximum(1, np.floor((1 - FOLD_IN_SHARE) * size + 0.5))
        role = plan.roles[pc.index_in(ids, value_set=plan.users).to_numpy()][user]
        part = np.where((role == TRAIN) | (left < target[user]), role, FOLD_IN)
    elif config.strategy == "leave_last_out":
        counts = np.broadcast_to((size >= 4).astype(np.int64), (3, len(ids)))
        part = _cut(left, counts[:, user])
    else:
        part = _cut(left, (_shares(size, config) * (size >= 3))[:, user])
    return {name: order[part == number] for number, name in enumerate(Splits.NAMES)}


def _by_user(path: Path, folder: Path, plan: Plan) -> Iterator[pa.Table]:
    """The interactions in tables of whole users, in the order of their ids, of about `BUCKET` rows each.

    A user with more rows than that has a table of his own.
    """
    bucket = (np.cumsum(plan.sizes) - plan.sizes) // BUCKET
    firsts = np.flatnonzero(np.diff(bucket, prepend=-1))
    if len(firsts) == 1:
        yield pq.read_table(path).combine_chunks()
    else:
        yield from scattered(batches(path), folder, "user", plan.users.take(pa.array(firsts)).to_pylist())


def _owner(hashes: np.ndarray, config: SplitConfig) -> np.ndarray:
    return mix(hashes ^ mix(np.array([config.seed], np.uint64)))


def _shares(n: np.ndarray | int, config: SplitConfig) -> np.ndarray:
    """Counts int64 [3, ...] for test, validation and rank_train out of n, leaving at least one (if n > 0)."""
    spare = np.maximum(np.asarray(n) - 1, 0)
    counts = []
    for share in (config.test, config.validation, config.rank_train):
        counts.append(np.minimum(np.floor(share * np.asarray(n) + 0.5).astype(np.int64), spare))
        spare = spare - counts[-1]
    return np.stack(counts)


def _cut(left: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Splits int64 [N] from the number of later rows [N] and the sizes [3, N] of test, validation, rank_train."""
    test, validation, rank_train = np.cumsum(counts, axis=0)
    return np.select([left < test, left < validation, left < rank_train], [TEST, VALIDATION, RANK_TRAIN], TRAIN)


def _roles(owner: np.ndarray, size: np.ndarray, config: SplitConfig) -> np.ndarray:
    able = np.flatnonzero(size >= 2)
    able = able[np.argsort(owner[able], kind="stable")]
    roles = np.full(len(size), TRAIN)
    roles[able] = _cut(np.arange(len(able)), _shares(len(able), config)[:, np.newaxis])
    return roles


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Each row's rank int64 [N] among the sorted distinct ids, and these."""
    encoded = column.dictionary_encode().unify_dictionaries()
    ids = encoded.chunk(0).dictionary
    order = np.asarray(pc.array_sort_indices(ids)).astype(np.int64)
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks])
    return rank[codes], ids.take(pa.array(order))


def _sort(interactions: pa.Table, user: np.ndarray, time: np.ndarray, pair: np.ndarray) -> np.ndarray:
    order = np.lexsort((pair, time, user))
    same = np.ones(len(order) - 1, bool)
    for key in (user, time, pair):
        same &= np.diff(key[order].view(np.int64)) == 0
    tied = np.append(False, same) | np.append(same, False)
    if not tied.any():
        return order
    rows = order[tied]
    rest = {"": pa.array(np.cumsum(~np.append(False, same))[tied])}
    for field in sorted(interactions.schema, key=lambda field: field.name):
        if not pa.types.is_nested(field.type):
            rest[field.name] = interactions[field.name].take(pa.array(rows)).cast(pa.string(), safe=False)
    order[tied] = rows[np.asarray(pc.sort_indices(pa.table(rest), [(name, "ascending") for name in rest]))]
    return order


def _refuse_too_small(plan: Plan, counts: np.ndarray) -> None:
    if not counts[TRAIN] or not counts[TEST]:
        raise _too_small(plan.config, plan.rows, len(plan.users), int(counts[TRAIN]), int(counts[TEST]))


def _too_small(config: SplitConfig, rows: int, users: int, train: int, test: int) -> ShortlistError:
    other = "" if config.strategy == "kfold" else ", or split without time by --set split.strategy=kfold"
    return ShortlistError(
        f"`{config.strategy}` needs interactions that give `train` and `test` at least one row each. Bring more "
        f"rows{other}. Received: {rows:,} rows of {users:,} users, {train:,} to train and {test:,} to test."
    )
