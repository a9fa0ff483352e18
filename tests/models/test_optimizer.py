"""TableAdagrad takes Adagrad's own steps; AdamWithTables takes Adam's for what is dense and Adagrad's for the rows of a
table, in a training that can be taken up again."""

from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf

from shortlist.models._optimizer import AdamWithTables, TableAdagrad, once, whole
from shortlist.models.weighted_logistic import WeightedLogistic

ROWS, DIM = 7, 3
STEPS = 6


def sparse(indices: list[int], values: np.ndarray) -> tf.IndexedSlices:
    shape = tf.constant([ROWS, DIM], tf.int64)
    return tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(indices), shape)


def batches(seed: int) -> list[tuple[list[int], np.ndarray]]:
    """Rows with duplicates, 0 and 6 never among them, and a gradient each."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, STEPS)
    return [(rng.integers(1, 6, n).tolist(), rng.normal(size=(n, DIM)).astype(np.float32)) for n in sizes]


@pytest.mark.parametrize("graph", [False, True])
def test_dense_variables_step_exactly_as_with_adam(graph: bool) -> None:
    """A table beside them changes nothing."""
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape).astype(np.float32) for shape in ((4, 5), (5,))]
    gradients = [[rng.normal(size=w.shape).astype(np.float32) for w in start] for _ in range(STEPS)]
    arguments: dict[str, Any] = {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-5}
    schedule = tf.keras.optimizers.schedules.CosineDecay(0.1, 10)
    weights = {}
    for optimizer in (tf.keras.optimizers.Adam(schedule, **arguments), AdamWithTables(schedule, 0.3, **arguments)):
        dense = [tf.Variable(value) for value in start]
        table = [tf.Variable(tf.ones([ROWS, DIM]))] if isinstance(optimizer, AdamWithTables) else []
        optimizer.build(dense + table)
        apply = tf.function(optimizer.apply_gradients) if graph else optimizer.apply_gradients
        for step, (indices, values) in zip(gradients, batches(0), strict=True):
            more = [(sparse(indices, values), table[0])] if table else []
            apply([*zip([tf.constant(g) for g in step], dense, strict=True), *more])
        weights[type(optimizer)] = [w.numpy() for w in dense]
    for adam, ours, first in zip(weights[tf.keras.optimizers.Adam], weights[AdamWithTables], start, strict=True):
        np.testing.assert_array_equal(ours, adam)
        assert np.abs(ours - first).min() > 0


def test_what_replicas_send_each_other_adds_up_to_the_gradient() -> None:
    indices, values = [1, 3, 3, 5, 1], np.random.default_rng(4).normal(size=(5, DIM)).astype(np.float32)
    expected = np.zeros((ROWS, DIM))
    np.add.at(expected, indices, values)
    few, large = once(sparse(indices, values)), tf.Variable(tf.ones([2 * ROWS, DIM]))
    assert sorted(few.indices.numpy()) == [1, 3, 5]
    np.testing.assert_allclose(tf.convert_to_tensor(sparse(few.indices.numpy().tolist(), few.values)), expected, 1e-6)
    assert whole(few, large) is few
    every = whole(sparse(indices, values), tf.Variable(tf.ones([ROWS, DIM])))
    np.testing.assert_allclose(every, expected, 1e-6)
    assert whole(every, large) is once(every) is every


@pytest.mark.parametrize("graph", [False, True])
def test_table_adagrad_steps_as_adagrad(graph: bool) -> None:
    """On a table, with rows that come twice, and on a dense variable beside it."""
    start = np.random.default_rng(2).normal(size=(ROWS, DIM)).astype(np.float32)
    found = {}
    for kind in (tf.keras.optimizers.Adagrad, TableAdagrad):
        optimizer = kind(0.3, initial_accumulator_value=0.2, epsilon=1e-3)
        weights = [tf.Variable(start), tf.Variable(start[0])]
        optimizer.build(weights)
        apply = tf.function(optimizer.apply_gradients, reduce_retracing=True) if graph else optimizer.apply_gradients
        for indices, values in batches(1):
            apply([(sparse(indices, values), weights[0]), (tf.constant(values[0]), weights[1])])
        found[kind] = [weight.numpy() for weight in [*weights, *optimizer.variables]]
    for ours, keras in zip(found[TableAdagrad], found[tf.keras.optimizers.Adagrad], strict=True):
        np.testing.assert_allclose(ours, keras, rtol=1e-6, atol=1e-7)
    assert (found[TableAdagrad][0][[0, 6]] == start[[0, 6]]).all()
    assert (found[TableAdagrad][0][1:6] != start[1:6]).any()


@pytest.mark.parametrize("graph", [False, True])
def test_a_table_steps_by_adagrad_on_the_rows_of_the_batch(graph: bool) -> None:
    start = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32)
    table = tf.Variable(start)
    optimizer = AdamWithTables(learning_rate=123.0, table_learning_rate=0.3)  # the rate of Adam is not that of a table
    optimizer.build([table])
    apply = tf.function(optimizer.apply_gradients, reduce_retracing=True) if graph else optimizer.apply_gradients
    expected, squares = start.astype(np.float64), np.zeros((ROWS, DIM))
    for indices, values in batches(1):
        before = table.numpy()
        apply([(sparse(indices, values), table)])
        oracles.adagrad_rows(expected, squares, indices, values, 0.3, 1e-7)
        np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-6)
        untouched = [row for row in range(ROWS) if row not in indices]
        np.testing.assert_array_equal(table.numpy()[untouched], before[untouched])
    np.testing.assert_array_equal(table.numpy()[[0, 6]], start[[0, 6]])
    assert any(len(set(indices)) < len(indices) for indices, _ in batches(1))


def test_first_step_by_hand() -> None:
    """Row 1 is told 3 and then 1, in sum 4: its first step is the rate against the sign, its second 4 / √(16 + 9)."""
    table = tf.Variable(tf.zeros([ROWS, DIM]))
    optimizer = AdamWithTables(table_learning_rate=0.5)
    optimizer.apply_gradients([(sparse([1, 1], np.array([[3, 3, -3], [1, 1, -1]])), table)])
    np.testing.assert_allclose(table[1], [-0.5, -0.5, 0.5], rtol=1e-6)
    optimizer.apply_gradients([(sparse([1], np.array([[3, 3, -3]])), table)])
    np.testing.assert_allclose(table[1], np.array([-0.5, -0.5, 0.5]) * (1 + 3 / 5), rtol=1e-6)


def test_with_a_schedule_the_rate_of_the_table_falls_in_proportion() -> None:
    """Of cosine decay over 8 steps: (1 + cos(π t / 8)) / 2, whatever it starts at; after the end nothing moves."""
    schedule = tf.keras.optimizers.schedules.CosineDecay(0.004, 8)
    table = tf.Variable(np.random.default_rng(2).normal(size=(ROWS, DIM)).astype(np.float32))
    optimizer = AdamWithTables(schedule, table_learning_rate=0.3)
    expected, squares = table.numpy().astype(np.float64), np.zeros((ROWS, DIM))
    rng = np.random.default_rng(3)
    for step in range(10):
        values, before = rng.normal(size=(2, DIM)), table.numpy()
        optimizer.apply_gradients([(sparse([2, 5], values), table)])
        rate = 0.3 * (1 + np.cos(np.pi * min(step, 8) / 8)) / 2
        oracles.adagrad_rows(expected, squares, [2, 5], values, rate, 1e-7)
        np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-6)
        assert np.array_equal(table, before) == (step >= 8)


def test_config_keeps_both_rates() -> None:
    schedule = tf.keras.optimizers.schedules.CosineDecay(0.004, 8)
    for rate in (0.01, schedule):
        optimizer = AdamWithTables(rate, table_learning_rate=0.3, beta_1=0.8)
        again = AdamWithTables.from_config(optimizer.get_config())
        assert again.get_config() == optimizer.get_config()
        assert (again.table_learning_rate, again.beta_1) == (0.3, 0.8)
    assert again._learning_rate(4).numpy() == pytest.approx(0.002)


def test_a_loaded_model_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    items = rng.integers(0, 9, 64).astype(np.int32)
    x = {"features": rng.normal(size=(64, 2)).astype(np.float32), "item": items}
    x["history"] = rng.integers(0, 9, (64, 3)).astype(np.int32)
    y, weight = rng.integers(0, 2, 64).astype(np.float32), rng.integers(1, 9, 64).astype(np.float32)
    shape: dict[str, Any] = {"embedding_dim": 4, "num_items": 12, "history_length": 3, "cross_layers": 1, "l2": 0.01}
    model = WeightedLogistic(2, (5,), **shape)
    model.adapt(x["features"])
    schedule = tf.keras.optimizers.schedules.CosineDecay(0.05, 40)
    model.compile(AdamWithTables(schedule, table_learning_rate=0.2))

    untouched = model.table[9:].numpy()

    def fit(which: WeightedLogistic) -> list[np.ndarray]:
        which.fit(x, y, sample_weight=weight, batch_size=16, epochs=2, shuffle=False, verbose=0)
        return which.get_weights()

    fit(model)
    model.save(tmp_path / "model.keras")
    stopped = model.get_weights()
    loaded, forgetful = (tf.keras.models.load_model(tmp_path / "model.keras") for _ in range(2))
    assert type(loaded.optimizer) is AdamWithTables
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert loaded.optimizer.iterations == 8
    forgetful.compile(AdamWithTables(schedule, table_learning_rate=0.2))
    expected, got, without = fit(model), fit(loaded), fit(forgetful)
    for variable, own, other, start, new in zip(model.weights, expected, got, stopped, without, strict=True):
        np.testing.assert_array_equal(other, own, err_msg=variable.name)
        if variable.trainable:
            assert not np.array_equal(own, start), variable.name
            assert not np.array_equal(own, new), f"{variable.name} goes on without the optimizer's state"
    np.testing.assert_array_equal(model.table[9:], untouched)
