"""WALS against dense NumPy solutions over every cell, and against optima that are known without it.

Past 400 lines because every rule of one objective is tested in one place.
"""

import contextlib
import functools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_contract import ModelContract

from shortlist import ShortlistError
from shortlist.models._cells import read_cells
from shortlist.models._wals import PaddedRows, read_sides
from shortlist.models.wals import BACKENDS, SOLVERS, WALS


def sparse(observed: np.ndarray, values: np.ndarray | None = None, order: np.ndarray | None = None) -> tf.SparseTensor:
    """The observed cells of a matrix, in the order given; 1 where no values are."""
    indices = np.argwhere(observed)
    indices = indices if order is None else indices[order]
    values = np.ones(observed.shape) if values is None else values
    return tf.SparseTensor(indices, values[tuple(indices.T)].astype(np.float32), observed.shape)


def random_case(seed: int, users: int = 14, items: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """observed, target, weight `[U, I]`; user 3 and item 4 are empty, user 5 has every other item."""
    rng = np.random.default_rng(seed)
    observed = rng.random((users, items)) < 0.4
    observed[5] = True
    observed[3], observed[:, 4] = False, False
    return observed, rng.normal(size=observed.shape), rng.uniform(0.0, 3.0, size=observed.shape)


def trained(observed: np.ndarray, epochs: int = 3, **arguments: Any) -> WALS:
    model = WALS(**{"embedding_dim": 4, "unobserved_weight": 0.3, "l2": 0.05, **arguments})
    model.fit(sparse(observed), epochs=epochs, verbose=0)
    return model


class TestWALS(ModelContract):
    refused = (
        ({"embedding_dim": 0}, "`embedding_dim` must be an integer of at least 1. Received: embedding_dim=0."),
        ({"l2": -0.1}, "`l2` must be a finite number of at least 0. Received: l2=-0.1."),
        ({"seed": -1}, "`seed` must be an integer of at least 0. Received: seed=-1."),
        ({"solver": "lu"}, "`solver` must be one of: cholesky, cg, block. Received: solver='lu'."),
        ({"cg_steps": 0}, "`cg_steps` must be an integer of at least 1. Received: cg_steps=0."),
        ({"block_size": 2.5}, "`block_size` must be an integer of at least 1. Received: block_size=2.5."),
        ({"center": "user"}, "`center` must be one of: none, mean, biases. Received: center='user'."),
        ({"backend": "gpu"}, "`backend` must be one of: auto, numba, tensorflow. Received: backend='gpu'."),
        (
            {"unobserved_weight": float("inf")},
            "`unobserved_weight` must be a finite number of at least 0. Received: unobserved_weight=inf.",
        ),
        (
            {"frequency_exponent": "x"},
            "`frequency_exponent` must be a finite number of at least 0. Received: frequency_exponent='x'.",
        ),
    )

    def make(self) -> WALS:
        observed = np.random.default_rng(0).random((40, 12)) < 0.4
        observed[:, :2] = False
        options = {"solver": "cg", "cg_steps": 2, "block_size": 3, "backend": "numba"}
        return trained(observed, frequency_exponent=0.5, init_stddev=0.2, seed=3, **options)

    def query(self) -> dict[str, np.ndarray]:
        history = np.array([[7, 2, 5, 5], [11, 0, 0, 0], [0, 0, 0, 0], [3, 4, 1, 0]])
        return {"user": np.arange(4), "history": history, "history_time": history, "time": np.arange(4)}


EXACT = {  # solvers that end at the solution of a half-step, however they get there
    "cholesky": {"solver": "cholesky"},
    "cg": {"solver": "cg", "cg_steps": 40},
    "block": {"solver": "block", "block_size": 99},
}


@pytest.mark.parametrize("backend", ["numba", "tensorflow"])
@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize(("w0", "l2", "nu", "dim"), [(0.3, 0.05, 1.0, 3), (1.5, 0.2, 0.0, 21), (0.0, 0.1, 0.5, 5)])
def test_half_step_and_loss_equal_the_dense_solution(
    w0: float, l2: float, nu: float, dim: int, solver: str, backend: str
) -> None:
    observed, target, weight = random_case(0)
    x, c = sparse(observed, target), sparse(observed, weight)
    options = {"init_stddev": 2.0, "seed": 1, "backend": backend, **EXACT[solver]}
    model = WALS(dim, unobserved_weight=w0, l2=l2, frequency_exponent=nu, **options)
    model.fit(x, sample_weight=c, epochs=0, verbose=0)  # the random start
    by_user, by_item = read_sides(x, c, dim)
    dense, constants = (target, weight, observed), (w0, l2, nu)
    users, items = model.user_factors.numpy(), model.item_factors.numpy()
    np.testing.assert_allclose(model.loss(x, c), oracles.wals_loss(*dense, users, items, *constants), rtol=1e-5)

    model.half_step("items", by_item)
    items = oracles.wals_half_step(target.T, weight.T, observed.T, users, *constants)
    np.testing.assert_allclose(model.item_factors, items, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.user_factors, users)

    model.half_step("users", by_user)
    users = oracles.wals_half_step(target, weight, observed, items, *constants)
    np.testing.assert_allclose(model.user_factors, users, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(users[3], np.zeros(dim))
    np.testing.assert_allclose(model.loss(x, c), oracles.wals_loss(*dense, users, items, *constants), rtol=1e-5)


@pytest.mark.parametrize("options", [{"solver": "cg", "cg_steps": 2}, {"solver": "block", "block_size": 5}])
@pytest.mark.parametrize("w0", [0.4, 0.0])
def test_both_backends_take_the_same_steps(options: dict[str, Any], w0: float) -> None:
    rng = np.random.default_rng(1)
    observed = rng.random((30, 150)) < 0.6  # rows of more cells than a kernel gathers at once
    target, weight = rng.normal(size=observed.shape), rng.uniform(0, 3, size=observed.shape)
    x, c = sparse(observed, target), sparse(observed, weight)
    found = []
    for backend in ("numba", "tensorflow"):
        model = WALS(18, w0, l2=0.5, init_stddev=1.0, backend=backend, **options)
        history = model.fit(x, sample_weight=c, epochs=2, verbose=0).history
        users, items = model.user_factors.numpy(), model.item_factors.numpy()
        expected = oracles.wals_loss(target, weight, observed, users, items, w0, 0.5, 1.0)
        np.testing.assert_allclose(history["loss"][-1], expected, rtol=1e-5)
        found.append((users, items))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("options", [{"solver": "cg"}, {"solver": "block", "block_size": 2}])
def test_many_half_steps_of_an_inexact_solver_end_at_the_exact_solution(options: dict[str, Any]) -> None:
    observed, target, weight = random_case(1)
    model = WALS(5, 0.3, l2=0.5, init_stddev=1.0, **options)
    x, c = sparse(observed, target), sparse(observed, weight)
    model.fit(x, sample_weight=c, epochs=0, verbose=0)
    by_user, _ = read_sides(x, c, dim=5)
    expected = oracles.wals_half_step(target, weight, observed, model.item_factors.numpy(), 0.3, 0.5, 1.0)
    model.half_step("users", by_user)
    assert np.abs(model.user_factors.numpy() - expected).max() > 1e-3  # one is not enough: they are other algorithms
    for _ in range(40):
        model.half_step("users", by_user)
    np.testing.assert_allclose(model.user_factors, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_neither_threads_nor_batches_change_a_bit(solver: str) -> None:
    observed, target, weight = random_case(13, users=90, items=70)
    cells = read_cells(sparse(observed, target), sample_weight=sparse(observed, weight))
    found, threads = [], numba.get_num_threads()
    for number, size in ((1, 65_536), (threads, 65_536), (threads, 1), (threads, 700)):
        model = WALS(18, l2=0.1, init_stddev=1.0, solver=solver, block_size=7, backend="numba")
        model.fit(sparse(observed), epochs=0, verbose=0)
        numba.set_num_threads(number)
        try:
            model.half_step("users", PaddedRows(cells, dim=18, batch_cells=size))
        finally:
            numba.set_num_threads(threads)
        found.append(model.user_factors.numpy())
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("solver", EXACT)
def test_cells_that_share_one_target_and_confidence_count_as_any_others(solver: str) -> None:
    observed = random_case(16)[0]
    x = sparse(observed, np.full(observed.shape, 2.0))
    model = WALS(3, 0.3, l2=0.1, init_stddev=1.0, **EXACT[solver])
    history = model.fit(x, sample_weight=x.with_values(1.5 * x.values), epochs=1, verbose=0)
    users, items = model.user_factors.numpy(), model.item_factors.numpy()
    dense = np.full(observed.shape, 2.0), np.full(observed.shape, 3.0), observed
    expected = oracles.wals_half_step(*dense, items, 0.3, 0.1, 1.0)
    np.testing.assert_allclose(users, expected, rtol=1e-4, atol=1e-5)
    expected = oracles.wals_loss(*dense, users, items, 0.3, 0.1, 1.0)
    np.testing.assert_allclose(history.history["loss"], [expected], rtol=1e-5)


def test_start_is_normal_with_the_given_spread_and_seed() -> None:
    users, items = [], []
    for seed in (0, 0, 1):
        model = WALS(embedding_dim=16, init_stddev=0.4, seed=seed)
        model.fit(matrix((0, 0, 1.0), shape=(500, 400)), epochs=0, verbose=0)
        users.append(model.user_factors.numpy())
        items.append(model.item_factors.numpy())
    for factors in (users, items):
        np.testing.assert_array_equal(factors[0], factors[1])
        assert abs(np.corrcoef(factors[0].ravel(), factors[2].ravel())[0, 1]) < 0.05
        np.testing.assert_allclose([factors[0].mean(), factors[0].std()], [0, 0.1], atol=0.005)
    assert abs(np.corrcoef(users[0][:400].ravel(), items[0].ravel())[0, 1]) < 0.05


def test_half_step_of_some_rows_leaves_the_others() -> None:
    observed, target, weight = random_case(2)
    model = WALS(embedding_dim=3, l2=0.1)
    model.fit(sparse(observed, target), epochs=1, verbose=0)
    before = model.user_factors.numpy()
    some = np.array([11, 3, 5])
    cells = read_cells(sparse(observed, target), sample_weight=sparse(observed, weight))
    rows = PaddedRows(cells, dim=3, rows=some)
    model.half_step("users", rows)
    expected = oracles.wals_half_step(target, weight, observed, model.item_factors.numpy(), 0.1, 0.1, 1.0)
    np.testing.assert_allclose(model.user_factors.numpy()[some], expected[some], rtol=1e-4, atol=1e-5)
    others = np.setdiff1d(np.arange(len(observed)), some)
    np.testing.assert_array_equal(model.user_factors.numpy()[others], before[others])


def test_history_holds_the_objective_of_every_epoch() -> None:
    observed, target, weight = random_case(3)
    x, c = sparse(observed, target), sparse(observed, weight)
    model, losses = WALS(embedding_dim=3, l2=0.1), []
    for epoch in range(3):
        history = model.fit(x, sample_weight=c, epochs=epoch + 1, initial_epoch=epoch, verbose=0)
        users, items = model.user_factors.numpy(), model.item_factors.numpy()
        losses += history.history["loss"]
        np.testing.assert_allclose(
            losses[-1], oracles.wals_loss(target, weight, observed, users, items, 0.1, 0.1, 1.0), rtol=1e-5
        )
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_cells_alike_and_no_l2_reaches_the_truncated_svd(solver: str) -> None:
    rng = np.random.default_rng(4)
    block = np.kron(np.eye(3), np.ones((10, 7))) * np.repeat([1.0, 2.0, 3.0], 7)
    matrix = np.where(rng.random(block.shape) < 0.8, block + rng.normal(0, 0.2, block.shape), 0.0)
    model = WALS(embedding_dim=3, unobserved_weight=1.0, l2=0.0, solver=solver, block_size=2)
    model.fit(tf.sparse.from_dense(matrix), epochs=60, verbose=0)
    users, items = model.user_factors.numpy(), model.item_factors.numpy()
    best = (np.linalg.svd(matrix, compute_uv=False)[3:] ** 2).sum()
    np.testing.assert_allclose(((matrix - users @ items.T) ** 2).sum(), best, rtol=1e-4)
    np.testing.assert_allclose(model.loss(tf.sparse.from_dense(matrix)), best, rtol=1e-4)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_ignoring_empty_cells_recovers_a_planted_matrix_from_half_of_it(solver: str) -> None:
    rng = np.random.default_rng(5)
    planted = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 40))
    observed = rng.random(planted.shape) < 0.5
    model = WALS(embedding_dim=2, unobserved_weight=0.0, l2=1e-6, init_stddev=1.0, solver=solver)
    model.fit(sparse(observed, planted), epochs=40, verbose=0)
    guess = model.user_factors.numpy() @ model.item_factors.numpy().T
    np.testing.assert_allclose(guess[~observed], planted[~observed], atol=1e-2)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_exact_steps_never_raise_the_loss(data: st.DataObject) -> None:
    users, items, dim = (data.draw(st.integers(1, high)) for high in (7, 7, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    observed = rng.random((users, items)) < data.draw(st.floats(0, 1))
    observed[rng.integers(users), rng.integers(items)] = True  # one cell at least
    target, weight = rng.normal(size=observed.shape), rng.uniform(0, 4, size=observed.shape)
    constants = tuple(data.draw(st.sampled_from(v)) for v in ([0.0, 0.1, 1.0, 3.0], [0.01, 1.0], [0.0, 0.5, 1.0]))
    exact = data.draw(st.sampled_from([{"solver": "cholesky"}, {"solver": "block", "block_size": 2}]))
    model = WALS(dim, *constants, init_stddev=2.0, backend=data.draw(st.sampled_from(BACKENDS)), **exact)
    x, c = sparse(observed, target), sparse(observed, weight)
    model.fit(x, sample_weight=c, epochs=0, verbose=0)
    by_user, by_item = read_sides(x, c, dim)

    def loss() -> float:
        factors = model.user_factors.numpy(), model.item_factors.numpy()
        return oracles.wals_loss(target, weight, observed, *factors, *constants)

    before = loss()
    for side, rows in [("items", by_item), ("users", by_user)] * 2:
        model.half_step(side, rows)
        after = loss()
        assert after <= before * (1 + 1e-5) + 1e-7
        before = after


def test_checkerboard_recommends_the_own_block() -> None:
    # Even users watch even items, odd ones odd; every user leaves one item of the own block out, and must get it.
    users, items = np.indices((40, 20))
    observed = (users + items) % 2 == 0
    rows = np.arange(40)
    left_out = (rows % 2 + 2 * (rows // 2 % 10)) % 20
    observed[rows, left_out] = False
    seen = np.array([np.flatnonzero(line) for line in observed])  # [U, 9]
    best, scores = trained(observed, epochs=8, embedding_dim=2, l2=0.01).recommend(rows, k=2, exclude=seen)
    np.testing.assert_array_equal(best[:, 0], left_out)
    assert (scores[:, 0] > 0.5).numpy().all()
    assert (scores[:, 1] < 0.1).numpy().all()


@pytest.mark.parametrize("batch_cells", [1, 20, 65_536])
def test_batches_hold_every_cell_once_within_their_size(batch_cells: int) -> None:
    observed, target, weight = random_case(6)
    cells = read_cells(sparse(observed, target), sample_weight=sparse(observed, weight))
    rows = PaddedRows(cells, dim=4, batch_cells=batch_cells)
    found = np.zeros((2, *observed.shape))
    for ids, columns, targets, weights in rows:
        assert len(ids) == 1 or columns.size + 4 * len(ids) <= batch_cells
        row, place = np.nonzero(columns >= 0)
        np.add.at(found, (slice(None), ids[row], columns[row, place]), [targets[row, place], weights[row, place]])
    np.testing.assert_allclose(found, np.where(observed, [target, weight], 0), rtol=1e-6)
    np.testing.assert_array_equal(rows.empty, [3])
    assert len(rows) == len(rows.batches) == {1: 13, 65_536: 1}.get(batch_cells, len(rows))


def test_the_same_data_in_other_words_gives_the_same_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    observed, target, weight = random_case(7)
    x, c = sparse(observed, target), sparse(observed, weight)
    shuffled = np.random.default_rng(1).permutation(observed.sum())
    x2, c2 = sparse(observed, target, shuffled), sparse(observed, weight, shuffled)
    halves = [
        tf.SparseTensor(tf.concat([t.indices] * 2, 0), tf.concat([t.values / 2] * 2, 0), t.shape) for t in (x2, c2)
    ]
    models = []
    for cells, weights in ((x, c), (x2, c2), halves):
        models.append(WALS(embedding_dim=4, l2=0.05))
        models[-1].fit(cells, sample_weight=weights, epochs=2, verbose=0)
    monkeypatch.setattr(PaddedRows, "__init__", functools.partialmethod(PaddedRows.__init__, batch_cells=1))
    models.append(WALS(embedding_dim=4, l2=0.05))
    models[-1].fit(x, sample_weight=c, epochs=2, verbose=0)
    for other in models[1:]:
        np.testing.assert_allclose(other.user_factors, models[0].user_factors, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(other.item_factors, models[0].item_factors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("w0", [0.3, 0.0])
def test_folding_in_a_training_row_gives_its_trained_vector(w0: float) -> None:
    observed = np.random.default_rng(8).random((50, 30)) < 0.3
    observed[:, :2], observed[7] = False, False
    model = trained(observed, epochs=2, unobserved_weight=w0)
    rng = np.random.default_rng(0)
    history = np.zeros((50, 40), np.int32)
    for user, line in enumerate(observed):
        watched = np.flatnonzero(line)
        watched = rng.permutation(np.concatenate([watched, watched[:3]]))  # any order, some twice
        history[user, : len(watched)] = watched
    fold_in = tf.function(model.embed_query, input_signature=[{"history": tf.TensorSpec([None, None], tf.int32)}])
    vectors = fold_in({"history": history})
    np.testing.assert_allclose(vectors, model.user_factors, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(vectors[7], np.zeros(4))
    np.testing.assert_array_equal(fold_in({"history": np.zeros((2, 0), np.int32)}), np.zeros((2, 4)))


def test_fold_in_and_explain_equal_the_dense_solution() -> None:
    observed, _, weight = random_case(14)
    model = WALS(4, 0.3, l2=0.2)
    model.fit(sparse(observed), sample_weight=sparse(observed, weight), epochs=2, verbose=0)
    rows = [5, 3, 0]  # all items, none, some
    items = np.full((3, 12), -1)
    weights = np.full((3, 12), np.nan)  # a pad's weight is not read
    for row, user in enumerate(rows):
        found = np.flatnonzero(observed[user])[::-1]
        items[row, : len(found)], weights[row, : len(found)] = found, weight[user, found]
    vectors = model.fold_in(items, weights)
    np.testing.assert_allclose(vectors, model.user_factors.numpy()[rows], rtol=1e-4, atol=1e-5)

    parts = model.explain(items, [2, 1, 7], weights).numpy()
    v = model.item_factors.numpy().astype(np.float64)
    expected = np.zeros((3, 12))
    for row, (user, item) in enumerate(zip(rows, [2, 1, 7], strict=True)):
        c = np.where(observed[user], weight[user], 0.3)
        system = (v.T * c) @ v + 0.2 * (observed[user].sum() + 0.3 * 9) * np.eye(4)
        for place, past in enumerate(items[row][items[row] >= 0]):
            expected[row, place] = weight[user, past] * v[item] @ np.linalg.inv(system) @ v[past]
    np.testing.assert_allclose(parts, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.sum(1), (vectors.numpy() * v[[2, 1, 7]]).sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("items", "weights", "text"),
    [
        ([[1, 9]], None, "`items` must be from 0 to 8, rows of the table that was fitted. Received: items=[9]."),
        ([[4, 1, 4]], None, "`items` must hold an item once a user; add its weights up. Received: items=[4]."),
        (
            [[4, 1]],
            [[1.0, -2.0]],
            "`weights` must be finite, not negative, and of the shape of items, (1, 2). Received: weights=[-2.0].",
        ),
        (
            [[4, 1]],
            [[1.0]],
            "`weights` must be finite, not negative, and of the shape of items, (1, 2). Received: shape=(1, 1).",
        ),
    ],
)
def test_fold_in_refuses(items: list[list[int]], weights: Any, text: str) -> None:
    with pytest.raises(ShortlistError) as error:
        trained(random_case(9)[0], epochs=1).fold_in(items, weights)
    assert str(error.value) == text


def test_a_query_has_the_mean_confidence_of_the_fitted_cells() -> None:
    observed = np.random.default_rng(17).random((20, 12)) < 0.4
    observed[:, :2] = False
    x = sparse(observed)
    model = WALS(embedding_dim=3, l2=0.05)
    model.fit(x, sample_weight=x.with_values(5.0 * x.values), epochs=2, verbose=0)
    history = np.where(observed, np.arange(12), 0)
    np.testing.assert_allclose(model.embed_query({"history": history}), model.user_factors, rtol=1e-4, atol=1e-5)


def centered_by_hand(observed: np.ndarray, target: np.ndarray, weight: np.ndarray, biases: bool) -> tuple[Any, ...]:
    """mean, biases of users and of items, a cell at a time."""
    users, items = np.zeros(len(target)), np.zeros(target.shape[1])
    total = np.where(observed, weight, 0)
    mean = (total * target).sum() / total.sum()
    for item in range(target.shape[1] if biases else 0):
        items[item] = total[:, item] @ (target[:, item] - mean) / (total[:, item].sum() + 5)
    for user in range(len(target) if biases else 0):
        users[user] = total[user] @ (target[user] - mean - items) / (total[user].sum() + 5)
    return mean, users, items


@pytest.mark.parametrize("center", ["mean", "biases"])
def test_explicit_ratings_are_fitted_above_their_mean_and_biases(center: str) -> None:
    observed, _, weight = random_case(18)
    target = 3.5 + np.random.default_rng(18).normal(size=observed.shape) + np.arange(9) / 9
    mean, of_users, of_items = centered_by_hand(observed, target, weight, center == "biases")
    expected = mean + of_users[:, np.newaxis] + of_items
    x, c = sparse(observed, target), sparse(observed, weight)
    options = {"embedding_dim": 3, "unobserved_weight": 0.0, "l2": 0.1}
    model, plain = WALS(**options, center=center), WALS(**options)
    loss = model.fit(x, sample_weight=c, validation_data=x, epochs=2, verbose=0).history
    plain.fit(sparse(observed, target - expected), sample_weight=c, epochs=2, verbose=0)
    np.testing.assert_allclose(model.user_factors, plain.user_factors, rtol=1e-3, atol=1e-4)

    users, items = np.indices(observed.shape).reshape(2, -1)
    u, v = model.user_factors.numpy(), model.item_factors.numpy()
    whole = expected + u @ v.T
    np.testing.assert_allclose(model.predict((users, items)).reshape(observed.shape), whole, rtol=1e-5, atol=1e-5)
    named = model.evaluate(x, sample_weight=c, verbose=0, return_dict=True)
    error = (weight * (target - whole) ** 2)[observed].sum() / weight[observed].sum()
    np.testing.assert_allclose([named["loss"], named["rmse"]], [loss["loss"][-1], error**0.5], rtol=1e-5)
    assert model.evaluate(x, sample_weight=c, verbose=0) == [named["loss"], named["rmse"]]
    np.testing.assert_allclose(loss["val_loss"][-1], model.loss(x), rtol=1e-6)

    order = np.argsort(-(u[[2]] @ v.T + of_items), axis=1)
    np.testing.assert_array_equal(model.recommend([2], k=9)[0], order)
    query = {"history": np.where(observed[:, 2:], np.arange(2, 9), 0)}
    scores = model.embed_query(query).numpy()[:, :3] @ v.T + of_items
    np.testing.assert_allclose(model.score_items(query), scores, rtol=1e-5, atol=1e-6)

    rows = np.flatnonzero(observed.any(1))
    past = [np.flatnonzero(line) for line in observed[rows]]
    columns = np.array([np.pad(items, (0, 9 - len(items)), constant_values=-1) for items in past])
    weights, targets = (np.take_along_axis(m[rows], np.maximum(columns, 0), 1) for m in (weight, target))
    np.testing.assert_allclose(model.fold_in(columns, weights, targets), u[rows], rtol=1e-3, atol=1e-4)


def test_evaluate_and_predict_without_centering(capsys: pytest.CaptureFixture[str]) -> None:
    observed, target, weight = random_case(19)
    x, c = sparse(observed, target), sparse(observed, weight)
    model = WALS(embedding_dim=3, l2=0.1)
    model.fit(x, sample_weight=c, epochs=2, verbose=0)
    guess = model.user_factors.numpy() @ model.item_factors.numpy().T
    rmse = np.sqrt(np.average((target - guess)[observed] ** 2, weights=weight[observed]))
    np.testing.assert_allclose(model.evaluate(x, sample_weight=c), [model.loss(x, c), rmse], rtol=1e-5)
    assert "rmse" in capsys.readouterr().out
    np.testing.assert_allclose(model.predict(([1, 6], [8, 0])), guess[[1, 6], [8, 0]], rtol=1e-5, atol=1e-6)
    query = {"history": np.array([[3, 5], [2, 0], [8, 7]], np.int32)}
    scores = model.predict(query, batch_size=2, verbose=0)
    np.testing.assert_allclose(scores, model.score_items(query), rtol=1e-5, atol=1e-6)


def test_neighbours_have_the_largest_cosines() -> None:
    model = trained(random_case(20)[0])
    u, v = model.user_factors.numpy(), model.item_factors.numpy()  # user 3 and item 4 have no factors
    unit = [f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-9) for f in (u, v)]
    for ask, table, rows, empty in (
        (model.similar_users, unit[0], [0, 9], 3),
        (model.similar_items, unit[1], [8, 2], 4),
    ):
        expected = oracles.top_k(table[rows] @ table.T, len(table) - 2, [[row, empty] for row in rows], first_id=0)
        found, cosines = ask(rows, k=len(table) - 2)
        np.testing.assert_array_equal(found, expected[0])
        np.testing.assert_allclose(cosines, expected[1], rtol=1e-4, atol=1e-5)
    nearest, cosine = model.similar_users(3 * u[[9]], k=1)  # as a vector, it is nobody in the table
    np.testing.assert_array_equal(nearest, [[9]])
    np.testing.assert_allclose(cosine, [[1.0]], rtol=1e-5)
    few = model.similar_items([8], k=9, first_id=5)[0].numpy()[0]
    assert set(few[:3]) == {5, 6, 7}
    assert not few[3:].any()


def test_recommend_orders_all_items_by_the_trained_factors() -> None:
    model = trained(random_case(9)[0])
    scores = model.user_factors.numpy()[[2, 6]] @ model.item_factors.numpy().T
    items, values = model.recommend([2, 6], k=12, exclude=[[0, 8], [-1, 4]])
    expected = oracles.top_k(scores, 12, [[0, 8], [4]], first_id=0)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_allclose(values, expected[1], rtol=1e-5)
    assert set(model.recommend([2], k=9, first_id=2)[0].numpy()[0]) == {0, *range(2, 9)}


class Recorder(tf.keras.callbacks.Callback):
    def __init__(self, stop_after: int = 99):
        super().__init__()
        self.calls, self.stop_after = [], stop_after

    def on_train_begin(self, logs: Any = None) -> None:
        self.calls.append(("begin", self.params["epochs"], self.params["steps"]))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.calls.append(("batch", batch))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.calls.append(("epoch", epoch, sorted(logs)))
        self.model.stop_training = epoch == self.stop_after

    def on_train_end(self, logs: Any = None) -> None:
        self.calls.append(("end", sorted(logs)))


def test_fit_drives_callbacks_as_keras_does() -> None:
    observed, target, _ = random_case(10)
    held_out, names = sparse(~observed, target), ["loss", "val_loss"]
    recorder, model = Recorder(stop_after=2), WALS(embedding_dim=2)
    history = model.fit(
        sparse(observed, target), epochs=9, initial_epoch=1, verbose=0, callbacks=[recorder], validation_data=held_out
    )
    epoch = [("batch", 0), ("batch", 1)]
    assert recorder.calls == [
        *(("begin", 9, 2), *epoch, ("epoch", 1, names)),
        *(*epoch, ("epoch", 2, names), ("end", names)),
    ]
    assert history.epoch == [1, 2]
    ones = np.ones_like(target)
    factors = model.user_factors.numpy(), model.item_factors.numpy()
    expected = oracles.wals_loss(target, ones, ~observed, *factors, 0.1, 0.003, 1.0)
    np.testing.assert_allclose(history.history["val_loss"][-1], expected, rtol=1e-5)


def test_keras_callbacks_and_the_progress_bar_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    observed = random_case(11)[0]
    callbacks = [
        tf.keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1),
        tf.keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras")),
        tf.keras.callbacks.TensorBoard(tmp_path / "logs"),
    ]
    history = WALS(embedding_dim=2).fit(sparse(observed), epochs=9, callbacks=callbacks)
    assert history.epoch == [0, 1]
    assert {"1.keras", "2.keras", "logs"} == {path.name for path in tmp_path.iterdir()}
    assert list((tmp_path / "logs").rglob("events*"))
    printed = capsys.readouterr().out
    assert "Epoch 2/9" in printed
    assert f"loss: {history.history['loss'][1]:.4f}" in printed


def test_the_best_epoch_can_be_kept(tmp_path: Path) -> None:
    observed, target, _ = random_case(11)
    file = tmp_path / "best.keras"
    callbacks = [
        tf.keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        tf.keras.callbacks.ModelCheckpoint(str(file), "val_loss", save_best_only=True),
    ]
    model, held_out = WALS(embedding_dim=4, l2=0.01, init_stddev=1.0), sparse(~observed, target)
    options = {"epochs": 30, "verbose": 0, "callbacks": callbacks, "validation_data": held_out}
    values = model.fit(sparse(observed, -target), **options).history["val_loss"]
    assert len(values) == np.argmin(values) + 3
    assert min(values) == model.loss(held_out) == tf.keras.models.load_model(file).loss(held_out)


KILLED = """
import os, signal, sys
import numpy as np
import shortlist
import tensorflow as tf
from shortlist.models.wals import WALS

class Kill(tf.keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (1, 1):  # the users of the second epoch
            os.kill(os.getpid(), signal.SIGKILL)

observed = np.load(sys.argv[1])
model = WALS(embedding_dim=4, solver="cg", l2=0.05)
model.fit(tf.sparse.from_dense(observed), epochs=4, verbose=0, callbacks=[Kill()], checkpoint_dir=sys.argv[2])
"""


def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    observed = random_case(21)[0].astype(np.float32)
    np.save(tmp_path / "x.npy", observed)
    files = [str(tmp_path / "x.npy"), str(tmp_path / "states")]
    done = subprocess.run([sys.executable, "-c", KILLED, *files], capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    options = {"embedding_dim": 4, "solver": "cg", "l2": 0.05}
    x = tf.sparse.from_dense(observed)
    whole, resumed = WALS(**options), WALS(**options)
    losses = whole.fit(x, epochs=4, verbose=0).history["loss"]
    history = resumed.fit(x, epochs=4, verbose=0, checkpoint_dir=files[1])
    assert history.epoch == [1, 2, 3]
    assert history.history["loss"] == losses[1:]
    for one, other in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert resumed.fit(x, epochs=4, verbose=0, checkpoint_dir=files[1]).epoch == []  # all is done
    with pytest.raises(ShortlistError) as error:
        WALS(**{**options, "l2": 0.06}).fit(x, epochs=4, verbose=0, checkpoint_dir=files[1])
    assert str(error.value) == (
        "`checkpoint_dir` must be empty, or of a run with the same settings and shape; give each its own. "
        f"Received: checkpoint_dir={files[1]!r}."
    )


@pytest.mark.parametrize("batch", [0, 1])
def test_an_interrupted_half_step_is_done_again(tmp_path: Path, batch: int) -> None:
    class Interrupt(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, number: int, logs: Any = None) -> None:
            if number == batch:
                raise KeyboardInterrupt

    observed, whole = random_case(22)[0], WALS(embedding_dim=3, solver="block", block_size=2)
    whole.fit(sparse(observed), epochs=2, verbose=0)
    for callbacks in ([Interrupt()], []):
        model = WALS(embedding_dim=3, solver="block", block_size=2)
        with contextlib.suppress(KeyboardInterrupt):
            options = {"callbacks": callbacks, "checkpoint_dir": tmp_path / "states", "verbose": 0}
            model.fit(sparse(observed), epochs=2, **options)
    np.testing.assert_array_equal(model.user_factors, whole.user_factors)
    np.testing.assert_array_equal(model.item_factors, whole.item_factors)


def rows_of(observed: np.ndarray, *values: np.ndarray, seed: int, ragged: bool) -> tf.data.Dataset:
    """The rows of a dense matrix in random order, batches of four."""
    order = np.random.default_rng(seed).permutation(len(observed))

    def batches() -> Any:
        for rows in np.split(order, range(4, len(order), 4)):
            found = [np.flatnonzero(observed[row]) for row in rows]
            columns = tf.ragged.constant(found, tf.int64, ragged_rank=1)
            parts = [
                tf.ragged.constant([m[r, c] for r, c in zip(rows, found, strict=True)], tf.float32, 1) for m in values
            ]
            batch = dict(zip(("columns", "targets", "weights"), [columns, *parts], strict=False))
            if not ragged:
                batch = {name: part.to_tensor(-1 if name == "columns" else 7) for name, part in batch.items()}
            yield {"rows": rows, **batch}

    names, ids = ("targets", "weights")[: len(values)], tf.TensorSpec([None], tf.int64)
    spec = tf.RaggedTensorSpec if ragged else tf.TensorSpec
    cells = {"columns": spec([None, None], tf.int64), **{name: spec([None, None], tf.float32) for name in names}}
    return tf.data.Dataset.from_generator(batches, output_signature={"rows": ids, **cells})


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("options", [{}, {"solver": "cg", "backend": "tensorflow"}])
def test_data_sets_of_rows_give_the_factors_of_the_matrix(
    options: dict[str, Any], ragged: bool, tmp_path: Path
) -> None:
    observed, target, weight = random_case(23)
    whole = WALS(embedding_dim=3, l2=0.1, **options)
    losses = whole.fit(sparse(observed, target), sample_weight=sparse(observed, weight), epochs=3, verbose=0).history
    x = (
        rows_of(observed, target, weight, seed=1, ragged=ragged),
        rows_of(observed.T, target.T, weight.T, seed=2, ragged=ragged),
    )
    recorder = Recorder()
    model = WALS(embedding_dim=3, l2=0.1, **options)
    model.build((14, 9))
    history = model.fit(x, epochs=2, verbose=0, callbacks=[recorder], checkpoint_dir=tmp_path)
    assert [call[1] for call in recorder.calls if call[0] == "batch"] == [*range(7)] * 2  # 3 of items, 4 of users
    np.testing.assert_allclose(history.history["loss"], losses["loss"][:2], rtol=1e-5)
    resumed = WALS(embedding_dim=3, l2=0.1, **options)
    resumed.build((14, 9))
    np.testing.assert_allclose(
        resumed.fit(x, epochs=3, verbose=0, checkpoint_dir=tmp_path).history["loss"], losses["loss"][2:], rtol=1e-5
    )
    for one, other in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_data_sets_without_targets_have_ones() -> None:
    observed = random_case(24)[0]
    whole, model = trained(observed, epochs=2), WALS(embedding_dim=4, unobserved_weight=0.3, l2=0.05)
    model.build(observed.shape)
    model.fit([rows_of(m, seed=3, ragged=True) for m in (observed, observed.T)], epochs=2, verbose=0)
    np.testing.assert_allclose(model.user_factors, whole.user_factors, rtol=1e-4, atol=1e-5)


def batches_of(*batches: tuple[list[int], list[list[int]]]) -> tf.data.Dataset:
    signature = {"rows": tf.TensorSpec([None], tf.int64), "columns": tf.TensorSpec([None, None], tf.int64)}
    parts = [{"rows": rows, "columns": columns} for rows, columns in batches]
    return tf.data.Dataset.from_generator(lambda: iter(parts), output_signature=signature)


@pytest.mark.parametrize(
    ("items", "arguments", "text"),
    [
        (
            batches_of(([0, 1], [[1, 2], [0, -1]]), ([1], [[3]])),
            {},
            "`rows` must name a row of the items once in the whole data set, with all of its cells. "
            "Received: rows=[1].",
        ),
        (
            batches_of(([0, 5], [[1, 2], [0, -1]])),
            {},
            "`rows` must be from 0 to 4, rows of the table that was fitted. Received: rows=[5].",
        ),
        (
            batches_of(([0], [[1, 4]])),
            {},
            "`columns` must be from 0 to 3, rows of the table that was fitted. Received: columns=[4].",
        ),
        (batches_of(([0], [[-1]])), {}, "The data set of the items must have at least one cell. Received: cells=0."),
        (
            batches_of(([0], [[1]])),
            {"center": "mean"},
            "`center` and sample_weight are for matrices; let the data sets hold what is to be fitted. "
            "Received: center='mean'.",
        ),
    ],
)
def test_data_sets_are_refused(items: tf.data.Dataset, arguments: dict[str, Any], text: str) -> None:
    model = WALS(embedding_dim=2, **arguments)
    model.build((4, 5))
    with pytest.raises(ShortlistError) as error:
        model.fit((items, items), verbose=0)
    assert str(error.value) == text


def test_data_sets_need_a_model_that_knows_its_shape() -> None:
    data = batches_of(([0], [[1]]))
    with pytest.raises(ShortlistError) as error:
        WALS(embedding_dim=2).fit((data, data), verbose=0)
    assert str(error.value) == (
        "`x` as a pair of data sets needs a model that knows its shape; call build((users, items)) first. "
        "Received: built=False."
    )


def test_going_on_after_a_load_gives_the_undisturbed_factors(tmp_path: Path) -> None:
    observed = random_case(12)[0]
    whole = trained(observed, epochs=4)
    trained(observed, epochs=2).save(tmp_path / "half.keras")
    model = tf.keras.models.load_model(tmp_path / "half.keras")
    model.fit(sparse(observed), epochs=4, initial_epoch=2, verbose=0)
    np.testing.assert_allclose(model.user_factors, whole.user_factors, rtol=1e-6)
    np.testing.assert_allclose(model.item_factors, whole.item_factors, rtol=1e-6)


def matrix(*cells: tuple[int, int, float], shape: tuple[int, int] = (4, 5)) -> tf.SparseTensor:
    return tf.SparseTensor([cell[:2] for cell in cells], [cell[2] for cell in cells], shape)


@pytest.mark.parametrize(
    ("x", "options", "text"),
    [
        (
            matrix((0, 1, 1.0), (2, 3, np.nan)),
            {},
            "`x` must hold finite float32 numbers; drop or correct the cell. Received: nan in row 2, column 3.",
        ),
        (
            tf.SparseTensor([[1, 2]], np.array([1e300]), (4, 5)),
            {},
            "`x` must hold finite float32 numbers; drop or correct the cell. Received: 1e+300 in row 1, column 2.",
        ),
        (
            matrix((0, 1, 1.0), (3, 5, 1.0)),
            {},
            "`x` must have its indices inside its shape [4, 5]; raise dense_shape or correct the ids. "
            "Received: row 3, column 5.",
        ),
        (
            matrix((0, 1, 1.0), (-1, 2, 1.0)),
            {},
            "`x` must have its indices inside its shape [4, 5]; raise dense_shape or correct the ids. "
            "Received: row -1, column 2.",
        ),
        (
            matrix((1, 2, 1.0), (1, 2, 1.0)),
            {"duplicates": "refuse"},
            "`x` must have each cell once; merge them, or pass duplicates='sum'. "
            "Received: row 1, column 2 more than once.",
        ),
        (
            matrix((1, 2, 1.0)),
            {"duplicates": "drop"},
            "`duplicates` must be 'sum' or 'refuse'. Received: duplicates='drop'.",
        ),
        (
            matrix((1, 2, 1.0)),
            {"sample_weight": matrix((1, 2, -0.5))},
            "`sample_weight` must not be negative; give 0 to a cell that is to be ignored. "
            "Received: -0.5 in row 1, column 2.",
        ),
        (
            matrix((1, 2, 1.0), (3, 0, 1.0)),
            {"sample_weight": matrix((1, 2, 1.0), (3, 0, np.nan))},
            "`sample_weight` must hold finite float32 numbers; drop or correct the cell. "
            "Received: nan in row 3, column 0.",
        ),
        (
            matrix((1, 2, 1.0)),
            {"sample_weight": matrix((2, 1, 1.0))},
            "`sample_weight` must have a value for exactly the cells of x. Received: cells=1, cells_of_x=1.",
        ),
        (
            matrix((1, 2, 1.0)),
            {"validation_data": matrix((1, 2, 1.0), shape=(4, 6))},
            "`validation_data` must have the shape that the model was fitted to, (4, 5). Received: shape=(4, 6).",
        ),
        (
            tf.sparse.from_dense(np.zeros((4, 5))),
            {},
            "`x` must have at least one cell; there is nothing to learn. Received: cells=0.",
        ),
        (
            matrix((1, 2, 1.0), shape=(4, 2**31)),
            {},
            "`x` must have fewer than 2^31 rows and columns; number the ids from 0. Received: shape=[4, 2147483648].",
        ),
        (
            np.ones((4, 5)),
            {},
            "`x` must be a tf.SparseTensor [rows, columns]; tf.sparse.from_dense makes one of a matrix. "
            "Received: ndarray of shape (4, 5).",
        ),
    ],
)
def test_fit_refuses(x: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ShortlistError) as error:
        WALS(embedding_dim=2).fit(x, verbose=0, **options)
    assert str(error.value) == text


def test_systems_without_one_solution_name_the_row_and_the_setting() -> None:
    model = WALS(embedding_dim=2, unobserved_weight=0.0, l2=0.0, init_stddev=0.0)  # every item's system is 0
    with pytest.raises(ShortlistError) as error:
        model.fit(matrix((1, 3, 1.0), (2, 2, 1.0)), verbose=0)
    assert str(error.value) == (
        "`l2` must be large enough for one solution a row: the factors of row 2 of the items are not finite. Raise l2 "
        "or unobserved_weight, or lower embedding_dim. Received: l2=0.0, unobserved_weight=0.0."
    )


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda model: model.recommend([0], k=0), "`k` must be an integer of at least 1. Received: k=0."),
        (
            lambda model: model.recommend([0, 14]),
            "`users` must be rows from 0 to 13; fold a new user in with embed_query. Received: users=[14].",
        ),
        (
            lambda model: WALS().recommend([0]),
            "`WALS` must be fitted before it is asked; call fit first. Received: built=False.",
        ),
        (
            lambda model: model.fit(matrix((1, 2, 1.0))),
            "`x` must have the shape that the model was fitted to, (14, 9). Received: shape=(4, 5).",
        ),
        (
            lambda model: model.predict(([0, 1], [3, 9])),
            "`items` must be from 0 to 8, rows of the table that was fitted. Received: items=[9].",
        ),
        (
            lambda model: model.similar_users([-1]),
            "`users` must be from 0 to 13, rows of the table that was fitted. Received: users=[-1].",
        ),
        (lambda model: model.similar_items([1], k=0), "`k` must be an integer of at least 1. Received: k=0."),
        (
            lambda model: model.fold_in([[1, 2]], targets=[[np.inf, 1.0]]),
            "`targets` must be finite and of the shape of items, (1, 2). Received: targets=[inf].",
        ),
        (
            lambda model: model.fold_in([[1, 2]], targets=[[1.0]]),
            "`targets` must be finite and of the shape of items, (1, 2). Received: shape=(1, 1).",
        ),
        (lambda model: model.half_step("rows", []), "`side` must be 'users' or 'items'. Received: side='rows'."),
    ],
)
def test_a_fitted_model_refuses(ask: Any, text: str) -> None:
    with pytest.raises(ShortlistError) as error:
        ask(trained(random_case(13)[0], epochs=1))
    assert str(error.value) == text
