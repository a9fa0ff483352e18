"""TwoTower against NumPy: forward, both losses, gradients; and a task that an additive query cannot learn."""

from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf
from model_contract import TrainableContract

from shortlist import ShortlistError
from shortlist.models.two_tower import TwoTower

YEAR = 31_557_600
QUERY = {
    "user": np.array([2, 3, 1, 2], np.int32),
    "history": np.array([[2, 3, 4, 5, 2], [6, 1, 5, 0, 0], [0, 0, 0, 0, 0], [7, 0, 0, 0, 0]], np.int32),
    "history_time": np.array([[1, 2, 3, 4, 5], [1, 2, 3, 0, 0], [0, 0, 0, 0, 0], [9, 0, 0, 0, 0]], np.int64),
    "time": np.array([30 * YEAR, 35 * YEAR, 40 * YEAR, 90 * YEAR], np.int64),
}
LABEL = np.array([4, 7, 4, 3], np.int32)
EVERYTHING = {
    "num_items": 8,
    "num_users": 4,
    "embedding_dim": 3,
    "history_length": 3,
    "hidden_units": (5, 4),
    "temperature": 0.5,
    "time_quantiles": tuple(YEAR * t for t in (30.0, 33.0, 40.0, 50.0)),
    "num_genres": 3,
    "num_years": 4,
}


def made(**arguments: Any) -> TwoTower:
    """A model with random weights, content and label counts."""
    model = TwoTower(**{**EVERYTHING, **arguments})
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(0, 0.6, weight.shape))
    model.set_content(rng.integers(0, 2, (8, 3)).astype(np.float32), rng.integers(0, 4, 8))
    model.set_label_counts(np.array([0, 0, 5, 1, 3, 0, 2, 9]))
    return model


def weights(model: TwoTower) -> dict[str, Any]:
    """The model's weights as float64 arrays by the names that the oracle knows."""
    names = ("candidate_table", "history_table", "user_table", "time_table", "genre_table", "year_table", "genres")
    found = {n: getattr(model, n).numpy().astype(np.float64) for n in names if getattr(model, n, None) is not None}
    if model.years is not None:
        found["years"] = model.years.numpy()
    if model.tower:
        found["tower"] = [(layer.kernel.numpy(), layer.bias.numpy()) for layer in model.tower]
    return {**found, "time_quantiles": np.float32(model.time_quantiles).astype(np.float64)}


def tensors(**other: np.ndarray) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in {**QUERY, **other}.items()}


class TestTwoTower(TrainableContract):
    refused = (
        ({"num_items": 2}, "`num_items` must be an integer of at least 3. Received: num_items=2."),
        ({"num_users": -1}, "`num_users` must be an integer of at least 0. Received: num_users=-1."),
        ({"embedding_dim": 0}, "`embedding_dim` must be an integer of at least 1. Received: embedding_dim=0."),
        ({"history_length": 1.5}, "`history_length` must be an integer of at least 1. Received: history_length=1.5."),
        ({"hidden_units": (8, 0)}, "`hidden_units` must be an integer of at least 1. Received: hidden_units=0."),
        ({"softmax": "mixed"}, "`softmax` must be one of full, in_batch. Received: softmax='mixed'."),
        ({"temperature": 0.0}, "`temperature` must be above 0. Received: temperature=0.0."),
        ({"dropout": 1}, "`dropout` must be in [0, 1). Received: dropout=1."),
        ({"num_genres": -2}, "`num_genres` must be an integer of at least 0. Received: num_genres=-2."),
        ({"num_years": 0.5}, "`num_years` must be an integer of at least 0. Received: num_years=0.5."),
        (
            {"time_quantiles": (5.0,)},
            "`time_quantiles` must be empty or at least two ascending numbers. Received: time_quantiles=(5.0,).",
        ),
        (
            {"time_quantiles": (5.0, 4.0)},
            "`time_quantiles` must be empty or at least two ascending numbers. Received: time_quantiles=(5.0, 4.0).",
        ),
    )

    def make(self) -> TwoTower:
        return made()

    def query(self) -> dict[str, np.ndarray]:
        return QUERY

    def loss(self, model: TwoTower) -> tf.Tensor:
        return model.compute_loss(tensors(label=LABEL), training=True)


class TestTwoTowerFull(TestTwoTower):
    """The same with the softmax over the catalogue, one item table, vectors of length 1, no hidden layer."""

    refused = ()

    def make(self) -> TwoTower:
        return made(softmax="full", shared_item_table=True, normalize=True, hidden_units=())

    test_same_scores_in_a_fresh_process = None
    test_refuses_bad_arguments = None
    test_example_of_the_docstring_runs = None


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"hidden_units": ()},
        {"normalize": True, "num_years": 0},
        {"shared_item_table": True, "hidden_units": (), "normalize": True, "num_genres": 0},
        {"num_users": 0, "time_quantiles": (), "num_genres": 0, "num_years": 0, "history_length": 50},
    ],
)
def test_forward_equals_numpy(arguments: dict[str, Any]) -> None:
    model = made(**arguments)
    w, normalize = weights(model), arguments.get("normalize", False)
    psi = oracles.two_tower_queries(w, QUERY, model.history_length, 0.5, normalize)
    items = oracles.two_tower_items(w, normalize)
    np.testing.assert_allclose(model.embed_query(tensors()), psi, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.item_vectors(), items, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(tensors()), psi @ items.T, rtol=1e-4, atol=1e-5)


def test_only_the_last_items_count_and_unknown_ones_do_not() -> None:
    model = made(num_users=0, time_quantiles=(), hidden_units=(), temperature=1.0)
    table = model.history_table.numpy()
    psi = model.embed_query(tensors()).numpy()
    np.testing.assert_allclose(psi[0], (table[4] + table[5] + table[2]) / 3, rtol=1e-5)
    np.testing.assert_allclose(psi[1], (table[6] + table[5]) / 2, rtol=1e-5)
    np.testing.assert_array_equal(psi[2], [0, 0, 0])


def test_full_softmax_loss_equals_numpy() -> None:
    model = made(softmax="full")
    w = weights(model)
    logits = oracles.two_tower_queries(w, QUERY, 3, 0.5) @ oracles.two_tower_items(w).T
    logits[:, :2] = -np.inf  # padding and "out of vocabulary" are no answers
    loss = model.compute_loss(tensors(label=LABEL))
    np.testing.assert_allclose(loss, oracles.softmax_loss(logits, LABEL), rtol=1e-5)


def test_in_batch_loss_equals_numpy_with_log_q_and_without_accidental_hits() -> None:
    model = made()
    model.set_label_counts(np.array([0, 0, 5e7, 1, 30, 0, 2, 9e6]))  # item 3 is a label once in 59 million
    w = weights(model)
    psi, items = oracles.two_tower_queries(w, QUERY, 3, 0.5), oracles.two_tower_items(w)
    log_q = np.log(np.array([0.5, 0.5, 5e7, 1, 30, 0.5, 2, 9e6]) / 59_000_033)
    logits = oracles.in_batch_logits(psi, items, LABEL, log_q)
    assert np.isneginf(logits).sum() == 2  # label 4 stands in the batch twice
    loss = model.compute_loss(tensors(label=LABEL))
    np.testing.assert_allclose(loss, oracles.softmax_loss(logits, range(4)), rtol=1e-5)


def test_log_q_is_the_log_of_the_share_and_finite_for_what_is_never_a_label() -> None:
    model = made()
    model.set_label_counts([0, 0, 6, 2, 0, 0, 0, 0])
    np.testing.assert_allclose(np.exp(model.log_q), np.array([0.5, 0.5, 6, 2, 0.5, 0.5, 0.5, 0.5]) / 8, rtol=1e-6)


def test_a_user_id_alone_with_the_full_softmax_is_matrix_factorization() -> None:
    model = TwoTower(num_items=6, num_users=5, embedding_dim=3, softmax="full")
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(5, 3)), rng.normal(size=(6, 3))
    model.user_table.assign(p)
    model.candidate_table.assign(q)
    users, labels = np.array([2, 3, 2, 4]), np.array([3, 2, 5, 4])
    inputs = {
        "user": tf.constant(users),
        "history": tf.zeros([4, 1], tf.int32),
        "history_time": tf.zeros([4, 1], tf.int64),
        "time": tf.zeros([4], tf.int64),
        "label": tf.constant(labels),
    }
    with tf.GradientTape() as tape:
        loss = model.compute_loss(inputs, training=True)
    found = tape.gradient(loss, [model.user_table, model.candidate_table, model.history_table])

    logits = p @ q.T
    expected_p, expected_q, expected_loss = np.zeros_like(p), np.zeros_like(q), 0.0
    for user, label in zip(users, labels, strict=True):
        share = np.exp(logits[user, 2:]) / np.exp(logits[user, 2:]).sum()
        error = np.concatenate([[0, 0], share])
        error[label] -= 1
        expected_p[user] += error @ q
        expected_q += np.outer(error, p[user])
        expected_loss -= np.log(share[label - 2])
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(tf.convert_to_tensor(found[0]), expected_p, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(tf.convert_to_tensor(found[1]), expected_q, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(tf.convert_to_tensor(found[2]), np.zeros((6, 3)))


def test_a_hidden_layer_learns_the_next_item_that_no_sum_of_the_watched_ones_gives() -> None:
    """The next item is 6 after (2, 4) and (3, 5), and 7 after (2, 5) and (3, 4): an exclusive or."""
    history = np.array([[2, 4], [3, 5], [2, 5], [3, 4]], np.int32)
    label = np.array([6, 6, 7, 7], np.int32)
    times = np.zeros((4, 2), np.int64)
    batch = {"user": label, "history": history, "history_time": times, "time": times[:, 0], "label": label}
    data = tf.data.Dataset.from_tensors(batch)
    losses = {}
    for hidden in ((), (16,)):
        tf.keras.utils.set_random_seed(0)
        model = TwoTower(num_items=8, embedding_dim=4, hidden_units=hidden, softmax="full")
        model.compile(tf.keras.optimizers.Adagrad(0.3))
        losses[hidden] = model.fit(data.repeat(300), verbose=0).history["loss"][-1]
        best = tf.argmax(model.score_items({name: tf.constant(value) for name, value in batch.items()}), axis=1)
    assert losses[()] >= 4 * np.log(2) - 1e-4  # nothing additive does better than to guess
    assert losses[16,] < 0.1
    np.testing.assert_array_equal(best, label)


def test_dropout_leaves_out_watched_items_in_training_only() -> None:
    model = made(dropout=0.5, hidden_units=(), num_users=0, time_quantiles=(), temperature=1.0)
    table, query = model.history_table.numpy(), {"history": tf.fill([400, 2], 3) + tf.constant([[0, 1]])}
    both, alone = (table[3] + table[4]) / 2, (table[3], table[4])
    np.testing.assert_allclose(model.embed_query(query), np.tile(both, (400, 1)), rtol=1e-5)
    tf.random.set_seed(0)
    drawn = model.embed_query(query, training=True).numpy()
    kinds = [np.isclose(drawn, kind, atol=1e-6).all(axis=1).mean() for kind in (both, *alone, np.zeros(3))]
    np.testing.assert_allclose(kinds, [0.25] * 4, atol=0.09)  # 4 standard deviations of a share of 400
    assert sum(kinds) == pytest.approx(1)


def test_refuses_content_of_another_catalogue() -> None:
    with pytest.raises(ShortlistError) as error:
        made().set_content(genres=np.zeros((7, 3)))
    assert str(error.value) == "`genres` must be [I, G] for 8 items and 3 genres. Received: shape=(7, 3)."
    with pytest.raises(ShortlistError) as error:
        made().set_content(np.zeros((8, 3)), np.array([1, 2, 3, 4] * 2))
    text = "`years` must be a bucket from 0 to 3 for each of the 8 items. Received: lowest=1, highest=4."
    assert str(error.value) == text
    with pytest.raises(ShortlistError) as error:
        made().set_label_counts(np.ones(7))
    assert str(error.value) == "`counts` must be one number for each of the 8 items. Received: shape=(7,)."
