"""The training of WALS by the replicas of a `tf.distribute` strategy, each with a share of the rows of both sides.

Row n of a side belongs to replica n mod R, so that the shares are alike in rows, and on average in cells. A half-step
adds up the replicas' Gramians of the other side, brings every replica the rows of it that its own cells are in, and
solves. Source: ALX (Mehta et al. 2021), whose batches fetch theirs one after the other; here a half-step fetches once.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from shortlist.models._cells import Cells
from shortlist.models._checks import require
from shortlist.models._wals import PaddedRows, gramian
from shortlist.models._wals_progress import Progress

EXCHANGED = 2**20
"""Numbers that each replica gives at once when rows are exchanged: 4 MB."""
SIDES = ("users", "items")
Made = TypeVar("Made")


def sharing_strategy() -> Any:
    """The strategy in whose scope this runs, if it has several replicas; else None.

    Raises:
      ShortlistError: for parameter servers.
    """
    strategy = tf.distribute.get_strategy()
    served = isinstance(strategy, tf.distribute.ParameterServerStrategy)
    rule = "`WALS` must be trained by replicas that own its rows: without a strategy, mirrored or multi_worker."
    require(not served, rule, strategy=type(strategy).__name__)
    return strategy if strategy.num_replicas_in_sync > 1 else None


def outside_the_scope(call: Callable[..., Made], *arguments: Any) -> Made:
    """What `call` returns in a thread that no strategy's scope is for: variables made there are not copied."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *arguments).result()


def _collectives(strategy: Any) -> dict[str, Callable[[Any], Any]]:
    """What all processes call alike, each with a value a replica of its own; traced once a kind of value."""

    def of(call: Callable[[Any, tf.Tensor], tf.Tensor]) -> Callable[[Any], Any]:
        def each(values: Any) -> Any:
            def one(value: tf.Tensor) -> tf.Tensor:  # a copy, since an argument has no device yet
                return call(tf.distribute.get_replica_context(), tf.identity(value))

            return strategy.run(one, (values,))

        return tf.function(each, reduce_retracing=True)

    return {
        "sum": of(lambda context, value: context.all_reduce(tf.distribute.ReduceOp.SUM, value)),
        "gather": of(lambda context, value: context.all_gather(value, axis=0)),
    }


class Share(NamedTuple):
    """What a replica has of one side."""

    rows: PaddedRows
    """Its rows, numbered from 0; their columns are places in `needed`."""
    needed: np.ndarray
    """int32 `[N]`, ascending: the rows of the other side that its cells are in."""
    factors: np.ndarray
    """float32 `[n, D]`."""


def share_of(cells: Cells, factors: np.ndarray, replica: int, replicas: int) -> Share:
    """The share of a replica in one side of the whole matrix and of its factors `[rows, D]`."""
    ids = np.arange(replica, cells.shape[0], replicas)
    lengths = np.diff(cells.starts)[ids]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    index = np.repeat(cells.starts[ids] - starts[:-1], lengths) + np.arange(starts[-1])
    needed, places = np.unique(cells.columns[index], return_inverse=True)
    values, weights = (numbers[index] if len(numbers) > 1 else numbers for numbers in (cells.values, cells.weights))
    own = Cells((len(ids), len(needed)), starts, places.astype(np.int32), values, weights)
    return Share(PaddedRows(own, factors.shape[1]), needed, factors[ids])


class ShardedRows:
    """Both sides of a matrix and their factors, shared by the replicas; `half_step` and `objective` as those of `WALS`.

    Args:
      model: a built `WALS`, whose factors are the start, the same in every process.
      strategy: mirrored, over one process or several.
      by_user: the whole matrix.
      by_item: the same.
      progress: of which the replica with number 0 writes.

    Attributes:
      received: bytes that each replica has had from others by now.
    """

    def __init__(self, model: Any, strategy: Any, by_user: PaddedRows, by_item: PaddedRows, progress: Progress):
        self.progress = progress
        self.model, self.strategy, self.replicas = model, strategy, strategy.num_replicas_in_sync
        self.received = 0
        self.mean_weight = by_user.mean_weight
        found: list[int] = []

        def note(replica: int) -> tf.Tensor:
            found.append(replica)
            return tf.zeros([])

        self._by_replica(note)
        self.local = sorted(found)
        self.alone = len(self.local) == self.replicas  # replicas of one process exchange in its memory
        self._collectives = _collectives(strategy)
        self.tables = dict(zip(SIDES, (model.user_factors, model.item_factors), strict=True))
        self.sizes = dict(zip(SIDES, model.table_shape, strict=True))
        self.shares = {
            side: [share_of(rows.cells, self.tables[side].numpy(), r, self.replicas) for r in self.local]
            for side, rows in zip(SIDES, (by_user, by_item), strict=True)
        }
        self.given = {side: self._given_to_others(side) for side in SIDES}
        self._require_same(progress.half_steps)

    def held(self, side: str, place: int = 0) -> int:
        """Bytes that a half-step of one side takes in a replica of this process: its factors, before and after, the
        rows of the other side that it needs, and its cells."""
        share = self.shares[side][place]
        cells = share.rows.cells
        of_cells = sum(numbers.nbytes for numbers in (cells.starts, cells.columns, cells.values, cells.weights))
        return 2 * share.factors.nbytes + len(share.needed) * share.factors.shape[1] * 4 + of_cells

    def epoch(self, epoch: int, done: int, hooks: Any) -> float:
        """The loss after both half-steps, of which the first may be done; the model has the factors then."""
        if done <= 2 * epoch:
            self.half_step("items", hooks, 0)
            self._finish(2 * epoch + 1, "items")
        observed = self.half_step("users", hooks, 1)
        self._finish(2 * epoch + 2, "users")
        return self.objective(observed)

    def _finish(self, half_steps: int, side: str) -> None:
        """Gives the model the side that was solved, and notes how far it is, in the one process that writes."""
        self.collect(side)
        if 0 in self.local:
            outside_the_scope(self.progress.finish, half_steps)

    def half_step(self, side: str, hooks: Any, step: int) -> float:
        """Solves a side; see `WALS.half_step`. To the callbacks it is one batch."""
        other, shares = SIDES[side == "users"], self.shares[side]
        hooks.on_train_batch_begin(step)
        gram = self._sum([gramian(share.factors) for share in self.shares[other]]).astype(np.float32)
        solved = [share.factors.copy() for share in shares]
        vectors = self._vectors(side)

        def solve(place: int) -> float:
            rows, table = shares[place].rows, solved[place]
            table[rows.empty] = 0
            with tf.device(self.strategy.extended.worker_devices[place]):
                batches = self.model.solve(rows, table, tf.constant(vectors[place]), gram, self.sizes[other])
                return sum(added for _, added in batches)

        with ThreadPoolExecutor(1 if self.model.on_numba() else len(shares)) as pool:  # the kernels use all cores
            added = [np.array([value]) for value in pool.map(solve, range(len(shares)))]
        observed = float(self._sum(added)[0])
        if not np.isfinite(observed):
            self._require_finite(side, solved)
        self.shares[side] = [share._replace(factors=factors) for share, factors in zip(shares, solved, strict=True)]
        if side == "users":
            self.model.note_items(gram, self.mean_weight, self.sizes[other])
        hooks.on_train_batch_end(step)
        return observed

    def objective(self, observed: float) -> float:
        """The loss, from what the half-step of the users gave."""
        w0, l2, exponent = self.model.unobserved_weight, self.model.l2, self.model.frequency_exponent
        grams = [self._sum([gramian(share.factors) for share in self.shares[side]]) for side in SIDES]
        total = observed + w0 * float((grams[0] * grams[1]).sum())
        for side, other in (SIDES, SIDES[::-1]):
            squares = []
            for share in self.shares[side]:
                n = share.rows.lengths + w0 * self.sizes[other]
                squares.append(np.array([n**exponent @ np.einsum("rd,rd->r", share.factors, share.factors)]))
            total += l2 * float(self._sum(squares)[0])
        return total

    def collect(self, side: str) -> None:
        """Gives the model the factors of all replicas."""
        most = -(-self.sizes[side] // self.replicas)
        parts = [np.pad(s.factors, [(0, most - len(s.factors)), (0, 0)]) for s in self.shares[side]]
        found = self._gather(parts).reshape(self.replicas, most, -1)
        self.tables[side].assign(found.swapaxes(0, 1).reshape(self.replicas * most, -1)[: self.sizes[side]])

    def _require_same(self, number: int) -> None:
        """Refuses replicas that stand at different half-steps."""
        found = self._gather([np.array([number])] * len(self.local))
        rule = "`checkpoint_dir` must be one folder that all processes see."
        require(bool((found == number).all()), rule, half_steps=found.tolist())

    def _given_to_others(self, side: str) -> list[np.ndarray]:
        """The rows of the other side that replicas need and do not own, by the replica that owns them."""
        size = self.sizes[SIDES[side == "users"]]
        masks = []
        for share in self.shares[side]:
            mask = np.zeros(-(-size // 32) * 32, bool)
            mask[share.needed] = True
            masks.append(np.packbits(mask).view(np.int32)[np.newaxis])
        found = np.unpackbits(self._gather(masks).view(np.uint8), axis=1)[:, :size]
        lists = []
        for owner in range(self.replicas):
            needed = np.delete(found[:, owner :: self.replicas], owner, axis=0).any(0)
            lists.append((owner + self.replicas * np.flatnonzero(needed)).astype(np.int32))
        return lists

    def _vectors(self, side: str) -> list[np.ndarray]:
        """For each replica of this process, the factors of its `needed` rows of the other side."""
        other, given, dim = SIDES[side == "users"], self.given[side], self.model.embedding_dim
        tables = []
        for replica, share, owned in zip(self.local, self.shares[side], self.shares[other], strict=True):
            table = np.empty((len(share.needed), dim), np.float32)
            own = share.needed % self.replicas == replica
            table[own] = owned.factors[share.needed[own] // self.replicas]
            tables.append(table)
        size = max(1, EXCHANGED // dim)
        for first in range(0, max(map(len, given)), size):
            ids = [rows[first : first + size] for rows in given]
            most = max(map(len, ids))
            parts = []
            for replica, owned in zip(self.local, self.shares[other], strict=True):
                part = np.zeros((most, dim), np.float32)
                part[: len(ids[replica])] = owned.factors[ids[replica] // self.replicas]
                parts.append(part)
            found = self._gather(parts).reshape(self.replicas, most, dim)
            for share, table in zip(self.shares[side], tables, strict=True):
                for rows, vectors in zip(ids, found, strict=True):
                    _, place, at = np.intersect1d(share.needed, rows, assume_unique=True, return_indices=True)
                    table[place] = vectors[at]
        return tables

    def _require_finite(self, side: str, solved: list[np.ndarray]) -> None:
        """Names the first row of the side that is not finite, in every process."""
        none, first = np.iinfo(np.int64).max, []
        for replica, table in zip(self.local, solved, strict=True):
            wrong = np.flatnonzero(~np.isfinite(table).all(axis=1))
            first.append(np.array([replica + self.replicas * wrong[0] if len(wrong) else none]))
        row = int(self._gather(first).min())
        if row != none:
            self.model.refuse_row(side, row)

    def _by_replica(self, value: Callable[[int], tf.Tensor]) -> Any:
        """What a function of the replica's number gives, for the replicas of this process."""
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: value(context.replica_id_in_sync_group)
        )

    def _collective(self, name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
        values = self._by_replica(lambda replica: tf.constant(parts[self.local.index(replica)]))
        return self.strategy.experimental_local_results(self._collectives[name](values))[0].numpy()

    def _sum(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The sum over all replicas; as a ring adds up, each receives all but its share twice."""
        found = np.sum(parts, axis=0) if self.alone else self._collective("sum", parts)
        self.received += 2 * found.nbytes * (self.replicas - 1) // self.replicas
        return found

    def _gather(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The parts of all replicas, one after the other; they are of one shape."""
        found = np.concatenate(parts) if self.alone else self._collective("gather", parts)
        self.received += found.nbytes * (self.replicas - 1) // self.replicas
        return found
