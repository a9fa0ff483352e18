"""Hybrid: its formula and loss against loops, and what it learns of bases that know different things."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
from model_contract import TrainableContract

from shortlist import ShortlistError
from shortlist.models._nested import described
from shortlist.models.ease import EASE
from shortlist.models.hybrid import Hybrid
from shortlist.models.popularity import Popularity
from shortlist.models.table import Table
from shortlist.models.wals import WALS

ITEMS = 12
COUNTS = np.array([0, 0, 3, 1, 0, 2, 5, 0, 4, 1, 1, 2])


def bases() -> list[tf.keras.Model]:
    seen = np.random.default_rng(0).random((15, ITEMS)) < 0.4
    seen[:2], seen[:, :2] = 0, 0
    matrix = tf.sparse.from_dense(seen.astype(np.float32))
    factors, linear, table = WALS(embedding_dim=3, seed=2), EASE(ITEMS, l2=2.0), Table(ITEMS)
    factors.fit(matrix, epochs=3, verbose=0)
    linear.fit(matrix)
    table.fit([2, 5, 9], [0.5, 2.0, 1.0])
    return [factors, linear, table]


def made(parts: list[tf.keras.Model], num_items: int = ITEMS, **settings: object) -> Hybrid:
    tf.keras.utils.set_random_seed(3)
    model = Hybrid(num_items, [described(part) for part in parts], **settings)
    model.set_bases(parts)
    return model


def asked() -> dict[str, np.ndarray]:
    history = np.array([[2, 5, 7, 5], [11, 0, 0, 0], [0, 0, 0, 0], [3, 1, 4, 0]])
    return {"user": np.array([5, 1, 0, 4]), "history": history, "history_time": history, "time": np.arange(4)}


def tensors(query: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    kind = {"history_time": tf.int64, "time": tf.int64}
    return {name: tf.constant(value, kind.get(name, tf.int32)) for name, value in query.items()}


def batch() -> dict[str, tf.Tensor]:
    targets = np.array([[3, 9, 0], [2, 0, 0], [8, 6, 4], [10, 11, 0]])
    exclude = np.array([[2, 5, 7], [11, 0, 0], [0, 0, 0], [3, 4, 0]])
    return tensors({**asked(), "targets": targets, "exclude": exclude})


class TestHybrid(TrainableContract):
    refused = (
        ({"num_items": 2}, "`num_items` must be an integer of at least 3. Received: num_items=2."),
        ({"bases": []}, "`bases` must be at least one retriever. Received: bases=()."),
        ({"embedding_dim": -1}, "`embedding_dim` must be an integer of at least 0. Received: embedding_dim=-1."),
        ({"hidden_units": (4, 0)}, "`hidden_units` must be an integer of at least 1. Received: hidden_units=0."),
        ({"dropout": 1}, "`dropout` must be in [0, 1). Received: dropout=1."),
    )

    def make(self) -> Hybrid:
        model = made(bases(), embedding_dim=4, hidden_units=(5,))
        model.set_item_counts(COUNTS)
        return model

    def query(self) -> dict[str, np.ndarray]:
        return asked()

    def loss(self, model: Hybrid) -> tf.Tensor:
        return model.compute_loss(batch())


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-15)


def test_scores_and_loss_equal_the_loops() -> None:
    parts, rng = bases(), np.random.default_rng(1)
    model = made(parts, embedding_dim=4, hidden_units=(5,))
    model.set_item_counts(COUNTS)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    query, labels = tensors(asked()), {name: batch()[name].numpy() for name in ("targets", "exclude")}
    scores = np.stack([part.score_items(query).numpy() for part in parts], axis=1)  # [B, M, I]
    logs = np.log1p(COUNTS)
    count = np.stack([(logs - logs[2:].mean()) / logs[2:].std(), COUNTS == 0], axis=1)
    by_item = count @ model.by_count.numpy()
    hidden, last = model.tower
    psi, theta = (unit(x.numpy()) for x in (parts[0].embed_query(query), parts[0].item_vectors()))
    phi = np.maximum(psi @ hidden.kernel.numpy() + hidden.bias.numpy(), 0) @ last.kernel.numpy() + last.bias.numpy()
    theta = theta @ model.project.kernel.numpy()
    expected, losses = [], []
    for n, known in enumerate((4, 1, 0, 2)):
        by_query = 1 + np.array([1, np.log1p(known) / 5, known == 0]) @ model.by_length.numpy()
        own = oracles.hybrid_scores(scores[n], by_query, by_item[:, :-1], by_item[:, -1], phi[n], theta)
        targets, exclude = (labels[name][n][labels[name][n] > 0] for name in ("targets", "exclude"))
        expected.append(own)
        losses.append(oracles.mean_softmax_loss(own, targets, exclude))
    np.testing.assert_allclose(model.score_items(query), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.compute_loss(batch()), np.mean(losses), rtol=1e-5)


def test_it_begins_as_the_sum_of_its_bases() -> None:
    parts, query = bases(), tensors(asked())
    every, one, rest = (made(some).score_items(query).numpy() for some in (parts, parts[1:2], parts[::2]))
    np.testing.assert_allclose(every, one + rest, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one[0, 2:].argsort(), parts[1].score_items(query).numpy()[0, 2:].argsort())


def test_bases_are_frozen_and_others_are_refused() -> None:
    parts = bases()
    model = made(parts)
    before = [weight.numpy() for part in model.models for weight in part.weights]
    model.compile(tf.keras.optimizers.Adam(0.1))
    model.fit(tf.data.Dataset.from_tensors(batch()).repeat(3), verbose=0)
    for old, new in zip(before, (w for part in model.models for w in part.weights), strict=True):
        np.testing.assert_array_equal(old, new)
    assert np.any(model.by_length)
    with pytest.raises(ShortlistError, match=r"^`models` must be the model that was described\."):
        model.set_bases(parts[::-1])
    with pytest.raises(ShortlistError, match=r"^`models` must be those that `bases` describes\."):
        model.set_bases(parts[:1])
    with pytest.raises(ShortlistError, match=r"^`counts` must be one number for each of the 12 items\."):
        model.set_item_counts(COUNTS[:5])


USERS, MANY, K = 400, 82, 5


def table_of(scores: np.ndarray) -> Table:
    """Scores `[U, I - 2]` of users 2, 3, …; of anybody else all the same."""
    user, item = np.indices(scores.shape)
    of_all = np.arange(2, MANY)
    part = Table(MANY)
    part.fit(
        np.append(item.ravel() + 2, of_all),
        np.append(scores.ravel(), np.zeros(len(of_all))),
        np.append(user.ravel() + 2, np.zeros(len(of_all), int)),
    )
    return part


def test_it_takes_from_each_base_what_that_one_knows() -> None:
    """Of four bases one knows who likes which old item, one who likes which new one, one nothing, and one what
    strangers watch. Measured on users that it was not trained on, new items and strangers apart."""
    rng = np.random.default_rng(0)
    taste, noise = rng.normal(size=(USERS, MANY - 2)), rng.normal(size=(3, USERS, MANY - 2))
    new, stranger = np.arange(MANY - 2) % 2 == 1, np.arange(USERS) % 4 == 3
    parts = [table_of(scores) for scores in (np.where(new, noise[0], taste), np.where(new, taste, noise[1]), noise[2])]
    taste[stranger] = common = rng.normal(size=MANY - 2)
    popular = Popularity(MANY)
    popular.fit(np.repeat(np.arange(2, MANY), np.exp(2 + common).astype(int)))
    parts.append(popular)

    history = np.where(stranger, 0, 2)[:, np.newaxis]
    data = {"user": np.where(stranger, 1, np.arange(USERS) + 2), "history": history, "history_time": history}
    data |= {"time": np.zeros(USERS), "exclude": np.zeros((USERS, 1))}
    data["targets"] = np.argsort(-(3 * taste + rng.gumbel(size=taste.shape)), axis=1)[:, :6] + 2
    train = np.arange(USERS) < 300
    model = made(parts, MANY)
    model.set_item_counts(np.concatenate([[0, 0], np.where(new, 0, 20)]))
    model.compile(tf.keras.optimizers.Adam(0.05))
    batches = tf.data.Dataset.from_tensor_slices(tensors({n: v[train] for n, v in data.items()})).batch(50)
    model.fit(batches, epochs=30, verbose=0)

    test = {name: value[~train] for name, value in data.items()}
    scores = {part: part.score_items(tensors(test)).numpy()[:, 2:] for part in (*parts, model)}

    def recall(part: tf.keras.Model, users: np.ndarray, items: np.ndarray) -> float:
        """Of the targets of some users among some items, in a list of these items alone."""
        best = np.argsort(-np.where(items, scores[part], -np.inf), axis=1)[users[~train], :K]
        target = test["targets"][users[~train]] - 2
        hits = (target[:, :, np.newaxis] == best[:, np.newaxis]).any(axis=2)
        return float(hits[items[target]].mean())

    everything = np.ones(MANY - 2, bool)
    for users, items, margin in (
        (~stranger, everything, 0.2),
        (~stranger, ~new, -0.03),
        (~stranger, new, -0.03),
        (stranger, everything, -0.03),
    ):
        best = max(recall(part, users, items) for part in parts)
        assert recall(model, users, items) > best + margin
        assert best > 0.3
