"""WALS: matrix factorization of implicit feedback by weighted alternating least squares.

Past 400 lines because the objective, its training and what is asked of the factors share their notation.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.models import _als_graph
from shortlist.models._base import FIRST_ID, Query, masked_top_k, register
from shortlist.models._cells import Cells, read_cells
from shortlist.models._checks import require, require_integer, require_number
from shortlist.models._fold_in import FoldsIn
from shortlist.models._wals import (
    DAMPING,
    PaddedRows,
    RowStream,
    biases,
    centered,
    gramian,
    read_new_rows,
    read_targets,
    require_rows,
    two_sides,
)
from shortlist.models._wals_progress import Progress
from shortlist.models._wals_sharded import ShardedRows, outside_the_scope, sharing_strategy

Side = Literal["users", "items"]
SOLVERS = ("cholesky", "cg", "block")
BACKENDS = ("auto", "numba", "tensorflow")
CENTERS = ("none", "mean", "biases")
Rows = PaddedRows | RowStream
Solved = Iterator[tuple[np.ndarray, float]]
CACHED_NUMBERS = 2**22
"""Numbers in the vectors of the rows that the TensorFlow path solves at once on a CPU: 16 MB. With fewer its time goes
into starting operations."""
_PADDED = tuple(tf.TensorSpec([None, None], dtype) for dtype in (tf.int32, tf.float32, tf.float32))
_MATRIX = tf.TensorSpec([None, None], tf.float32)


@tf.function(reduce_retracing=True)
def _draws(shape: tf.Tensor, seed: tf.Tensor, stddev: tf.Tensor) -> tf.Tensor:
    """From a normal distribution, scaled in their own memory."""
    return tf.random.stateless_normal(shape, seed, stddev=stddev)


def _sum_of_cells(columns: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Σ of `numbers` `[B, L]` over the observed cells: rows in float32, their sum in float64."""
    of_rows = tf.reduce_sum(tf.where(columns >= 0, numbers, 0.0), axis=1)
    return tf.reduce_sum(tf.cast(of_rows, tf.float64))


@register("wals")
class WALS(FoldsIn):
    """Factorizes a users × items matrix, its empty cells included, by alternating least squares.

    Minimizes Σ_obs c_ui (a_ui − u·v)² + w0 Σ_unobs (u·v)² + λ Σ_u n_u^ν |u|² + λ Σ_i n_i^ν |v|², with n a row's number
    of observed cells plus w0 times the size of the other side. An epoch solves all items, then all users. A row with
    observed cells O solves (w0 G + Σ_O (c − w0) v vᵀ + λ n^ν 1) u = Σ_O c a v, where G = Σ v vᵀ over the other side;
    one without gets the zero vector. w0 = 0 ignores empty cells (plain ALS); c = w0 = 1, λ = 0 is the truncated SVD.

    "cholesky" solves each row exactly. "cg" takes `cg_steps` steps of conjugate gradients from the row's factors as
    they were; "block" solves `block_size` coordinates at a time, the others held (iALS++). In the end all three agree.

    For explicit ratings, `center` takes the mean μ off the targets first, or μ + b_u + b_i with b_i = Σ c (a − μ) /
    (Σ c + 5) over the cells of an item and b_u = Σ c (a − μ − b_i) / (Σ c + 5) over those of a user; `predict` adds
    them again, and items are ordered by u·v + b_i. With w0 = 0 only the observed ratings are factorized.

    A weight for each row or column is a factor of the confidences: c_ui = row_u column_i in `sample_weight`.

    Source: Hu, Koren and Volinsky 2008, eq. 3–5; Rendle et al. 2022 for n and ν. There w0 applies to all cells, here
    to the empty ones alone. Takács et al. 2011 for "cg", Rendle et al. 2021 for "block".

    Args:
      embedding_dim: D.
      unobserved_weight: w0 ≥ 0.
      l2: λ ≥ 0.
      frequency_exponent: ν ≥ 0; 0 regularizes every row alike, 1 in proportion to its cells.
      init_stddev: the factors start from a normal distribution with standard deviation init_stddev / √D.
      seed: of that start.
      solver: "cholesky", "cg" or "block".
      cg_steps: of "cg", a half-step.
      block_size: of "block"; at D or above it is "cholesky".
      center: what is taken off the targets, "none", "mean" or "biases".
      backend: of training. "numba" is for CPUs, "tensorflow" for any device; "auto" takes numba where no GPU is.

    Call: a `Query`, of which only `history` is used: it is folded in as a new row with a = 1 and the mean confidence of
    the cells that were fitted, so users need not be known; where targets are centered, a = 1 is one above what the
    biases say. A repeated item is one cell; rows 0 (padding) and 1 (out of vocabulary) say nothing. → scores float32
    `[B, I]`.

    Raises:
      ShortlistError: for an argument out of range, and when asked before `fit`.

    Example:
      >>> model = WALS(embedding_dim=2, unobserved_weight=0.1, l2=0.003)
      >>> seen = tf.sparse.from_dense([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
      >>> _ = model.fit(seen, epochs=8, verbose=0)
      >>> items, scores = model.recommend([1], k=1, exclude=[[0]])
      >>> items.numpy()
      array([[1]], dtype=int32)
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        unobserved_weight: float = 0.1,
        l2: float = 0.003,
        frequency_exponent: float = 1.0,
        init_stddev: float = 0.1,
        seed: int = 0,
        solver: str = "cholesky",
        cg_steps: int = 3,
        block_size: int = 32,
        center: str = "none",
        backend: str = "auto",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.embedding_dim = require_integer("embedding_dim", embedding_dim)
        self.unobserved_weight = require_number("unobserved_weight", unobserved_weight)
        self.l2 = require_number("l2", l2)
        self.frequency_exponent = require_number("frequency_exponent", frequency_exponent)
        self.init_stddev = require_number("init_stddev", init_stddev)
        self.seed = require_integer("seed", seed, low=0)
        require(solver in SOLVERS, f"`solver` must be one of: {', '.join(SOLVERS)}.", solver=solver)
        self.solver = solver
        self.cg_steps = require_integer("cg_steps", cg_steps)
        self.block_size = require_integer("block_size", block_size)
        require(center in CENTERS, f"`center` must be one of: {', '.join(CENTERS)}.", center=center)
        self.center = center
        require(backend in BACKENDS, f"`backend` must be one of: {', '.join(BACKENDS)}.", backend=backend)
        self.backend = backend

    def make_weights(self, rows: int, columns: int) -> None:
        def factors(name: str, size: int, stream: int) -> tf.Variable:
            def start(shape: Any, dtype: Any = None) -> tf.Tensor:
                stddev = self.init_stddev / self.embedding_dim**0.5
                return _draws(tf.constant(shape), tf.constant([self.seed, stream]), tf.constant(stddev))

            return self.add_weight(name, (size, self.embedding_dim), tf.float32, start, trainable=False)

        self.user_factors = factors("user_factors", rows, 0)  # [U, D]
        self.item_factors = factors("item_factors", columns, 1)  # [I, D]
        shape = (self.embedding_dim, self.embedding_dim)
        self.item_gramian = self.add_weight("item_gramian", shape, tf.float32, "zeros", trainable=False)
        self.mean_confidence = self.add_weight("mean_confidence", (), tf.float32, "ones", trainable=False)
        self.fitted_items = self.add_weight("fitted_items", (), tf.float32, "zeros", trainable=False)
        self.offsets = []  # the mean, and the biases of users and items
        if self.center != "none":
            shapes = {"mean": (), "user_bias": (rows,), "item_bias": (columns,)}
            self.offsets = [
                self.add_weight(n, size, tf.float32, "zeros", trainable=False) for n, size in shapes.items()
            ]

    def fit(
        self,
        x: tf.SparseTensor | tuple[tf.data.Dataset, tf.data.Dataset],
        *,
        sample_weight: tf.SparseTensor | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Any = None,
        validation_data: tf.SparseTensor | None = None,
        initial_epoch: int = 0,
        duplicates: str = "sum",
        checkpoint_dir: str | None = None,
    ) -> tf.keras.callbacks.History:
        """Trains, from where the model stands if it was fitted or loaded.

        In the scope of a mirrored strategy, of one process or several, each replica solves a share of the rows, and has
        their cells alone; every process calls this with the same arguments and has the whole model afterwards.

        Args:
          x: `[U, I]`, the targets a of the observed cells, 1 for implicit feedback; any order of indices. Or, for a
            matrix larger than memory, a pair of data sets, of the users' rows and of the items': see `RowStream` for
            their batches; the model is built first, `model.build((users, items))`.
          sample_weight: the confidences c ≥ 0 of the same cells; 1 where None.
          epochs: the number of the last epoch.
          verbose: as in Keras.
          callbacks: as in Keras; a batch is one of rows, those of the items first; or a side, where replicas
            share it.
          validation_data: `[U, I]`, whose `loss` is logged as `val_loss`.
          initial_epoch: the epoch to start from, when a run goes on.
          duplicates: "sum" adds up the values given for one cell (and its confidences), "refuse" raises.
          checkpoint_dir: a folder that gets the model's state after each half-step. A run that finds one there goes on
            after that half-step and ends with the factors of one that was never interrupted.

        Returns:
          A History with `loss`, the objective after each epoch, and `val_loss`.

        Raises:
          ShortlistError: for a matrix that `read_cells` refuses or of another shape than before, data sets that
            `RowStream` refuses, the checkpoint of another model, and factors that are no longer finite.
        """
        strategy = sharing_strategy()
        rows: tuple[Rows, ...] = self._rows_to_fit(x, sample_weight, duplicates)
        held_out = None if validation_data is None else self._sides_of(self._read("validation_data", validation_data))
        progress = outside_the_scope(Progress, self, checkpoint_dir)
        shared = None if strategy is None else self._shared(strategy, rows, progress)
        rows = () if shared else rows  # each replica has its own part of the cells
        done = max(2 * initial_epoch, progress.half_steps)
        verbose = 1 if verbose == "auto" else verbose
        hooks = tf.keras.callbacks.CallbackList(
            callbacks,
            add_history=True,
            add_progbar=verbose != 0,
            model=self,
            verbose=verbose,
            epochs=epochs,
            steps=2 if shared else sum(map(len, rows)) or None,
        )
        self.stop_training = False
        hooks.on_train_begin()
        logs: dict[str, float] = {}
        for epoch in range(done // 2, epochs):
            hooks.on_epoch_begin(epoch)
            if shared:
                logs = {"loss": shared.epoch(epoch, done, hooks)}
            else:
                logs = {"loss": self._epoch(epoch, done, hooks, progress, *rows)}
            if held_out:
                logs["val_loss"] = self._loss(*held_out)
            hooks.on_epoch_end(epoch, logs)
            if self.stop_training:
                break
        hooks.on_train_end(logs)
        return self.history

    def _epoch(self, epoch: int, done: int, hooks: Any, progress: Progress, by_user: Rows, by_item: Rows) -> float:
        """The loss after both half-steps, of which the first may be done."""
        if done <= 2 * epoch:
            self.half_step("items", by_item, hooks)
            progress.finish(2 * epoch + 1)
        else:
            by_item.count()
        observed = self.half_step("users", by_user, hooks, first_step=len(by_item))
        progress.finish(2 * epoch + 2)
        return self._objective(observed, by_user, by_item)

    def _shared(self, strategy: Any, rows: tuple[Rows, ...], progress: Progress) -> ShardedRows:
        matrix = [side for side in rows if isinstance(side, PaddedRows)]
        rule = "`x` must be a matrix where replicas share the training; data sets are read by one."
        require(len(matrix) == 2, rule, strategy=type(strategy).__name__)
        by_user, by_item = matrix
        return ShardedRows(self, strategy, by_user, by_item, progress)

    def evaluate(
        self,
        x: tf.SparseTensor,
        *,
        sample_weight: tf.SparseTensor | None = None,
        verbose: int | str = "auto",
        return_dict: bool = False,
    ) -> Any:
        """The objective on a matrix and the error of its observed cells.

        Args:
          x: `[U, I]`, as for `fit`.
          sample_weight: as for `fit`.
          verbose: 0 prints nothing.
          return_dict: whether to return a dictionary.

        Returns:
          `loss`, as `loss`, and `rmse`, √(Σ c (a − u·v)² / Σ c) over the observed cells; two numbers, or by name.
        """
        self.require_fitted()
        by_user, by_item = self._sides_of(self._read("x", x, sample_weight))
        errors, scores = self._observed_sums(by_user)
        total = by_user.mean_weight * len(by_user.cells.columns)
        loss = self._objective(errors - self.unobserved_weight * scores, by_user, by_item)
        found = {"loss": loss, "rmse": (errors / total) ** 0.5 if total else 0.0}
        if verbose:
            tf.keras.utils.Progbar(1).update(1, list(found.items()))
        return found if return_dict else list(found.values())

    def predict(self, x: Any, **arguments: Any) -> np.ndarray:
        """The expected targets of some cells, or the scores of queries.

        Args:
          x: a pair of int `[N]`, the users and the items; or what Keras's `predict` takes, queries in batches.
          **arguments: of Keras's `predict`.

        Returns:
          float32 `[N]`, u·v and what `center` took off; or `[B, I]`, see `score_items`.

        Raises:
          ShortlistError: for a user or item that is not in the table.
        """
        if not isinstance(x, tuple | list):
            return super().predict(x, **arguments)
        self.require_fitted()
        rows = [
            require_rows(name, ids, n) for name, ids, n in zip(("users", "items"), x, self.table_shape, strict=True)
        ]
        u, v = (tf.gather(*pair) for pair in zip((self.user_factors, self.item_factors), rows, strict=True))
        expected = tf.reduce_sum(u * v, axis=1)
        if self.offsets:
            mean, *offsets = self.offsets
            expected += mean + sum(tf.gather(*pair) for pair in zip(offsets, rows, strict=True))
        return expected.numpy()

    def half_step(self, side: Side, rows: Rows, callbacks: Any = None, first_step: int = 0) -> float:
        """Solves rows of one side, given the other; the others of that side stay as they are, and all if it raises.

        Args:
          side: which factors to solve for.
          rows: the batches of that side, in memory or from a data set.
          callbacks: a Keras CallbackList to tell of each batch.
          first_step: the number of the first batch in its epoch.

        Returns:
          The part of the objective that `rows`' cells add to that of the Gramians: Σ_obs c (a − u·v)² − w0 (u·v)².
        """
        own, other = self._sides(side)
        hooks = callbacks or tf.keras.callbacks.CallbackList()
        given, table = other.value(), np.array(own.value())
        gram = gramian(np.asarray(given)).astype(np.float32)
        observed, step = 0.0, first_step
        for part in rows.parts():
            table[part.ids[part.empty]] = 0
            batches = self.solve(part, table, given, gram, len(given))
            for _ in range(len(part)):
                hooks.on_train_batch_begin(step)
                ids, added = next(batches)
                if not np.isfinite(added):
                    wrong = ids[~np.isfinite(table[ids]).all(axis=1)]
                    if len(wrong):
                        self.refuse_row(side, wrong.min())
                observed += added
                hooks.on_train_batch_end(step)
                step += 1
        own.assign(table)
        if side == "users":
            self.note_items(gram, rows.mean_weight, len(given))
        return observed

    def note_items(self, gram: np.ndarray, confidence: float, size: int) -> None:
        """Keeps what folding in needs to know of the items that the users were solved with."""
        self.item_gramian.assign(gram)
        self.mean_confidence.assign(confidence)
        self.fitted_items.assign(size)

    def on_numba(self) -> bool:
        """Whether the kernels train, and not TensorFlow's operations."""
        return self.backend == "numba" or (self.backend == "auto" and not _als_graph.on_gpu())

    def solve(self, rows: PaddedRows, own: np.ndarray, other: tf.Tensor, gram: np.ndarray, size: int) -> Solved:
        """Solves batches of rows into `own`, one after the other; see `_als_kernels.solve_rows`.

        Args:
          rows: their columns are rows of `other`.
          own: float32 `[N, D]`, of which the rows' ids are overwritten.
          other: float32 `[M, D]`, the factors that the columns need.
          gram: float32 `[D, D]`, of the whole other side.
          size: its number of rows.
        """
        solve = self._solve_with_numba if self.on_numba() else self._solve_with_tensorflow
        return solve(rows, own, other, gram, size)

    def refuse_row(self, side: str, row: int) -> None:
        """Raises ShortlistError: this row has no solution."""
        raise ShortlistError(
            f"`l2` must be large enough for one solution a row: the factors of row {row} of the {side} are "
            "not finite. Raise l2 or unobserved_weight, or lower embedding_dim. "
            f"Received: l2={self.l2}, unobserved_weight={self.unobserved_weight}."
        )

    def project(
        self,
        columns: tf.Tensor,
        targets: tf.Tensor,
        weights: tf.Tensor,
        other: tf.Tensor,
        gram: tf.Tensor,
        size: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The exact factors of rows, given the other side: training, fold-in and the served graph all come here.

        Args:
          columns: int32 `[B, L]`, the rows of `other` that are observed, −1 pads; each at most once a row.
          targets: float32 `[B, L]`, a.
          weights: float32 `[B, L]`, c.
          other: float32 `[M, D]`, the factors of the other side.
          gram: float32 `[D, D]`, otherᵀ other.
          size: float32, the number of `other`'s rows that have cells to be empty; all of them, M, if None.

        Returns:
          float32 `[B, D]`; zeros for a row without an observed cell.
        """
        return _als_graph.cholesky(self._systems(columns, targets, weights, other, gram, size))[0]

    def _systems(
        self,
        columns: tf.Tensor,
        targets: tf.Tensor,
        weights: tf.Tensor,
        other: tf.Tensor,
        gram: tf.Tensor,
        size: tf.Tensor | None = None,
    ) -> _als_graph.Systems:
        constants = (self.unobserved_weight, self.l2, self.frequency_exponent)
        size = tf.cast(tf.shape(other)[0], tf.float32) if size is None else size
        return _als_graph.systems(columns, targets, weights, other, gram, *constants, size)

    def _solve_with_tensorflow(
        self, rows: PaddedRows, own: np.ndarray, other: tf.Tensor, gram: np.ndarray, size: int
    ) -> Solved:
        for local, *batch in rows:
            ids = rows.ids[local]
            own[ids], observed = (x.numpy() for x in self._solve_batch(*batch, other, gram, own[ids], size))
            yield ids, observed

    def _solve_with_numba(
        self, rows: PaddedRows, own: np.ndarray, other: tf.Tensor, gram: np.ndarray, size: int
    ) -> Solved:
        from shortlist.models._als_kernels import aligned, solve_rows  # numba, which a loaded model does not need

        w0 = self.unobserved_weight
        ridge = (self.l2 * (rows.lengths + w0 * size) ** self.frequency_exponent).astype(np.float32)

        solver = (self.solver, self.cg_steps, self.block_size)
        return solve_rows(rows, own, aligned(np.asarray(other)), gram, ridge, w0, *solver)

    @tf.function(input_signature=(*_PADDED, _MATRIX, _MATRIX, _MATRIX, tf.TensorSpec([], tf.float32)))
    def _solve_batch(
        self,
        columns: tf.Tensor,
        targets: tf.Tensor,
        weights: tf.Tensor,
        other: tf.Tensor,
        gram: tf.Tensor,
        start: tf.Tensor,
        other_size: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The factors of a batch's rows, `[B, D]`, and Σ c (a − u·v)² − w0 (u·v)² over its cells.

        On a CPU, so many rows at a time that their vectors stay in its cache from one operation to the next.
        """
        start = tf.ensure_shape(start, [None, self.embedding_dim])
        size, length = tf.unstack(tf.shape(columns))
        rows = size if _als_graph.on_gpu() else tf.maximum(1, CACHED_NUMBERS // (length * self.embedding_dim))
        count = -(-size // rows)
        solved = tf.TensorArray(tf.float32, count, element_shape=[None, self.embedding_dim], infer_shape=False)
        observed = tf.TensorArray(tf.float64, count, element_shape=[])
        for part in tf.range(count):
            tf.autograph.experimental.set_loop_options(parallel_iterations=2)
            first, last = part * rows, (part + 1) * rows
            cells = columns[first:last], targets[first:last], weights[first:last]
            systems = self._systems(*cells, other, gram, other_size)
            if self.solver == "cg":
                factors, scores = _als_graph.cg(systems, start[first:last], self.cg_steps)
            elif self.solver == "block":
                factors, scores = _als_graph.block(systems, start[first:last], self.block_size)
            else:
                factors, scores = _als_graph.cholesky(systems)
            solved = solved.write(part, factors)
            error = cells[2] * tf.square(cells[1] - scores) - self.unobserved_weight * tf.square(scores)
            observed = observed.write(part, _sum_of_cells(cells[0], error))
        return solved.concat(), tf.reduce_sum(observed.stack())

    @tf.function(input_signature=(*_PADDED, _MATRIX, _MATRIX))
    def _errors(
        self, columns: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor, other: tf.Tensor, own: tf.Tensor
    ) -> tf.Tensor:
        """Σ c (a − u·v)² and Σ (u·v)² over the cells of a batch, float64 `[2]`."""
        scores = tf.linalg.matvec(tf.gather(other, tf.maximum(columns, 0)), own)  # [B, L]
        sums = weights * tf.square(targets - scores), tf.square(scores)
        return tf.stack([_sum_of_cells(columns, numbers) for numbers in sums])

    def _observed_sums(self, by_user: PaddedRows) -> tuple[float, float]:
        users, items = self.user_factors.value(), self.item_factors.value()
        parts = [self._errors(*batch, items, tf.gather(users, rows)) for rows, *batch in by_user]
        errors, scores = np.sum(parts, axis=0)
        return float(errors), float(scores)

    def loss(self, x: tf.SparseTensor, sample_weight: tf.SparseTensor | None = None) -> float:
        """The objective on a matrix `[U, I]`, over all its cells, with the factors as they are; see `fit`."""
        self.require_fitted()
        return self._loss(*self._sides_of(self._read("x", x, sample_weight)))

    def _loss(self, by_user: PaddedRows, by_item: PaddedRows) -> float:
        errors, scores = self._observed_sums(by_user)
        return self._objective(errors - self.unobserved_weight * scores, by_user, by_item)

    def _objective(self, observed: float, by_user: Rows, by_item: Rows) -> float:
        users, items = (np.asarray(factors.value()) for factors in (self.user_factors, self.item_factors))
        total = observed + self.unobserved_weight * float((gramian(users) * gramian(items)).sum())
        for own, rows, size in ((users, by_user, len(items)), (items, by_item, len(users))):
            n = rows.lengths + self.unobserved_weight * size
            total += self.l2 * float(n**self.frequency_exponent @ np.einsum("rd,rd->r", own, own))
        return total

    def _read(
        self, name: str, x: tf.SparseTensor, sample_weight: tf.SparseTensor | None = None, duplicates: str = "sum"
    ) -> Cells:
        cells = read_cells(x, name, duplicates, sample_weight)
        if not self.built:
            outside_the_scope(self.build, cells.shape)
        rule = f"`{name}` must have the shape that the model was fitted to, {self.table_shape}."
        require(cells.shape == self.table_shape, rule, shape=cells.shape)
        return cells

    def _sides_of(self, cells: Cells) -> tuple[PaddedRows, PaddedRows]:
        if self.offsets:
            cells = centered(cells, *(offset.numpy() for offset in self.offsets))
        return two_sides(cells, self.embedding_dim)

    def _rows_to_fit(self, x: Any, sample_weight: tf.SparseTensor | None, duplicates: str) -> tuple[Rows, Rows]:
        if not isinstance(x, tuple | list):
            cells = self._read("x", x, sample_weight, duplicates)
            for offset, value in zip(self.offsets, biases(cells, self.center) if self.offsets else (), strict=True):
                offset.assign(value)
            return self._sides_of(cells)
        rule = "`x` as a pair of data sets needs a model that knows its shape; call build((users, items)) first."
        require(self.built, rule, built=self.built)
        rule = "`center` and sample_weight are for matrices; let the data sets hold what is to be fitted."
        require(self.center == "none" and sample_weight is None, rule, center=self.center)
        users, items = x
        (rows, columns), dim = self.table_shape, self.embedding_dim
        return RowStream(users, (rows, columns), dim, "users"), RowStream(items, (columns, rows), dim, "items")

    def _sides(self, side: Side) -> tuple[tf.Variable, tf.Variable]:
        require(side in ("users", "items"), "`side` must be 'users' or 'items'.", side=side)
        factors = (self.user_factors, self.item_factors)
        return factors if side == "users" else factors[::-1]

    def embed_query(self, query: Query) -> tf.Tensor:
        """Folds histories in: float32 `[B, D]`, zeros for an empty one."""
        self.require_fitted()
        ordered = tf.sort(query["history"], axis=1)
        repeated = ordered == tf.pad(ordered, [[0, 0], [1, 0]], constant_values=-1)[:, :-1]
        columns = tf.where(repeated | (ordered < FIRST_ID), -1, ordered)
        ones = tf.ones_like(columns, tf.float32)
        factors = tf.convert_to_tensor(self.item_factors)
        confidences = self.mean_confidence * ones
        vectors = self.project(columns, ones, confidences, factors, self.item_gramian, self.fitted_items)
        return self._with_one(vectors)

    def _with_one(self, vectors: tf.Tensor) -> tf.Tensor:
        """`[B, D]`, and with biases a 1 more for that of the item."""
        return tf.pad(vectors, [[0, 0], [0, int(self.center == "biases")]], constant_values=1.0)

    def item_vectors(self) -> tf.Tensor:
        """V, float32 `[I, D]`; with biases, `[I, D + 1]`, b_i the last."""
        self.require_fitted()
        factors = tf.convert_to_tensor(self.item_factors)
        return tf.concat([factors, self.offsets[2][:, tf.newaxis]], 1) if self.center == "biases" else factors

    def score_items(self, query: Query) -> tf.Tensor:
        """u·v for every item, float32 `[B, I]`; with biases u·v + b_i."""
        return tf.linalg.matmul(self.embed_query(query), self.item_vectors(), transpose_b=True)

    def fold_in(self, items: Any, weights: Any = None, targets: Any = None) -> tf.Tensor:
        """The exact factors of users never seen: what `fit` would give them with the items as they are.

        Args:
          items: int `[B, L]`, what each has, once each; negative values pad.
          weights: float `[B, L]`, the confidences c ≥ 0; 1 where None.
          targets: float `[B, L]`, a, from which the mean and the biases are taken where the model has them; 1 where
            None, without taking anything off.

        Returns:
          float32 `[B, D]`; zeros for a user without an item.

        Raises:
          ShortlistError: for an unknown or repeated item, and a weight that is negative or not finite.
        """
        columns, ones, confidences, *other = self._new_rows(items, weights)
        a = ones if targets is None else self._centered_rows(columns, targets, confidences)
        return _als_graph.cholesky(self._systems(columns, a, confidences, *other))[0]

    def _centered_rows(self, columns: np.ndarray, targets: Any, weights: np.ndarray) -> np.ndarray:
        """The targets of new users less the mean and the biases, their own included."""
        targets = read_targets(targets, columns)
        if not self.offsets:
            return targets
        mean, _, of_items = (offset.numpy() for offset in self.offsets)
        left = np.where(columns >= 0, targets - mean - of_items[np.maximum(columns, 0)], 0.0)
        own = (weights * left).sum(1, keepdims=True) / (weights.sum(1, keepdims=True) + DAMPING)
        return left - own.astype(np.float32) if self.center == "biases" else left

    def explain(self, items: Any, item: Any, weights: Any = None) -> tf.Tensor:
        """How much each past item adds to the score of another for a user who has just these (Hu et al. 2008, sec. 5).

        Args:
          items: int `[B, L]`, as for `fold_in`.
          item: int `[B]`, whose score is explained.
          weights: as for `fold_in`.

        Returns:
          float32 `[B, L]`, whose sum over a row is the score u·v of `fold_in`; 0 where padded.

        Raises:
          ShortlistError: as `fold_in`.
        """
        rows = self._new_rows(items, weights)
        item = require_rows("item", item, self.table_shape[1])
        return _als_graph.contributions(self._systems(*rows), tf.gather(self.item_factors, item))

    def _new_rows(self, items: Any, weights: Any) -> tuple[tf.Tensor, ...]:
        self.require_fitted()
        columns, confidences = read_new_rows(items, weights, self.table_shape[1])
        ones = tf.ones(columns.shape)
        factors = tf.convert_to_tensor(self.item_factors)
        return columns, ones, confidences, factors, self.item_gramian, self.fitted_items

    def recommend(self, users: Any, k: int = 10, exclude: Any = None, first_id: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
        """The best items for users of the matrix, from their trained factors.

        Args:
          users: int `[B]`, rows of the matrix.
          k: at least 1.
          exclude: int `[B, E]`, items never to return; negative values pad.
          first_id: items below this row are never returned; 2 behind a `Transform`.

        Returns:
          `items` int32 `[B, k]` and `scores` float32 `[B, k]`, best first; see `masked_top_k`.

        Raises:
          ShortlistError: for an unknown user or k below 1.
        """
        self.require_fitted()
        k = require_integer("k", k)
        rows = np.asarray(users)
        last = self.table_shape[0] - 1
        rule = f"`users` must be rows from 0 to {last}; fold a new user in with embed_query."
        inside = rows.size == 0 or bool(rows.min() >= 0 and rows.max() <= last)
        require(inside, rule, users=[int(row) for row in rows if not 0 <= row <= last][:1])
        vectors = self._with_one(tf.gather(self.user_factors, rows))  # [B, D]
        scores = tf.linalg.matmul(vectors, self.item_vectors(), transpose_b=True)
        return masked_top_k(scores, k, exclude, first_id)

    def similar_items(self, items: Any, k: int = 10, first_id: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
        """The items with the largest cosines of the factors, themselves left out.

        Args:
          items: int `[B]`.
          k: at least 1.
          first_id: as for `recommend`.

        Returns:
          As `recommend`, with cosines for scores. An item without factors is nobody's neighbour.

        Raises:
          ShortlistError: for an unknown item or k below 1.
        """
        return self._similar("items", items, self.item_factors, k, first_id)

    def similar_users(self, users: Any, k: int = 10, first_id: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
        """As `similar_items`, of users; those never seen are given as float `[B, D]`, the factors of `fold_in`."""
        return self._similar("users", users, self.user_factors, k, first_id)

    def _similar(
        self, name: str, rows: Any, factors: tf.Variable, k: int, first_id: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        self.require_fitted()
        k, rows, length = require_integer("k", k), np.asarray(rows), tf.norm(factors, axis=1)
        known = rows.ndim == 1
        if known:
            rows = require_rows(name, rows, factors.shape[0])
        vectors = tf.gather(factors, rows) if known else tf.convert_to_tensor(rows, tf.float32)  # [B, D]
        products = tf.linalg.matmul(vectors, factors, transpose_b=True)
        cosine = tf.math.divide_no_nan(products, tf.norm(vectors, axis=1, keepdims=True) * length)
        cosine = tf.where(length > 0, cosine, -np.inf)  # [B, N]
        return masked_top_k(cosine, k, rows[:, np.newaxis] if known else None, first_id)
