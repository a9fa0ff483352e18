"""ContentBased against NumPy, and items that nobody watched yet."""

from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_contract import ModelContract, TrainableContract

from shortlist import ShortlistError
from shortlist.models.content_based import ContentBased

HISTORY = np.array([[2, 3, 4, 5, 2], [6, 1, 5, 0, 0], [0, 0, 0, 0, 0], [7, 0, 0, 0, 0], [1, 1, 0, 0, 0]], np.int32)
TIMES = np.zeros(HISTORY.shape, np.int64)
QUERY = {"user": np.arange(5), "history": HISTORY, "history_time": TIMES, "time": np.arange(5)}
LABEL = np.array([4, 7, 4, 3, 6], np.int32)
IDS = ["", "", *"abcdef"]
NETWORK = {"hash_buckets": 5, "embedding_dim": 3, "hidden_units": (6, 4), "history_length": 3, "item_dropout": 0.0}


def content() -> np.ndarray:
    x = np.random.default_rng(1).random((8, 4)) * (np.random.default_rng(2).random((8, 4)) < 0.6)
    x[:2] = 0
    x[5] = 0  # an item of which nothing is known
    return x


def made(**arguments: Any) -> ContentBased:
    """A model with random weights; item 7 was never a label."""
    model = ContentBased(**{"num_items": 8, "num_features": 4, **NETWORK, **arguments})
    model.set_content(content(), IDS)
    if model.form == "network":
        model.set_trained([3, 4, 4, 6])
    rng = np.random.default_rng(3)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(0, 0.6, weight.shape))
    return model


def weights(model: ContentBased) -> dict[str, Any]:
    names = ("content", "bucket", "id_table", "content_table", "own", "trained")
    found = {n: getattr(model, n).numpy() for n in names if getattr(model, n, None) is not None}
    if model.form == "network":
        found["tower"] = [(layer.kernel.numpy(), layer.bias.numpy()) for layer in model.tower]
    return found


def tensors(**other: Any) -> dict[str, tf.Tensor]:
    return {"history": tf.constant(HISTORY), **{name: tf.constant(value) for name, value in other.items()}}


class TestContentBased(TrainableContract):
    refused = (
        ({"num_items": 2}, "`num_items` must be an integer of at least 3. Received: num_items=2."),
        ({"num_features": 0}, "`num_features` must be an integer of at least 1. Received: num_features=0."),
        ({"form": "both"}, "`form` must be one of network, profile. Received: form='both'."),
        ({"history_length": 0}, "`history_length` must be an integer of at least 1. Received: history_length=0."),
        ({"hash_buckets": -1}, "`hash_buckets` must be an integer of at least 0. Received: hash_buckets=-1."),
        ({"embedding_dim": 0}, "`embedding_dim` must be an integer of at least 1. Received: embedding_dim=0."),
        ({"hidden_units": (4, 0)}, "`hidden_units` must be an integer of at least 1. Received: hidden_units=0."),
        ({"hidden_units": ()}, "`hidden_units` must be at least one width. Received: hidden_units=()."),
        ({"dropout": 1}, "`dropout` must be in [0, 1). Received: dropout=1."),
        ({"item_dropout": -0.1}, "`item_dropout` must be in [0, 1). Received: item_dropout=-0.1."),
    )

    def make(self) -> ContentBased:
        return made()

    def query(self) -> dict[str, np.ndarray]:
        return QUERY

    def loss(self, model: ContentBased) -> tf.Tensor:
        model.set_trained(np.arange(2, 8))
        return model.compute_loss(tensors(label=LABEL), training=True)


class TestProfile(ModelContract):
    refused = ()

    def make(self) -> ContentBased:
        return made(form="profile")

    def query(self) -> dict[str, np.ndarray]:
        return QUERY

    test_refuses_bad_arguments = None
    test_example_of_the_docstring_runs = None


@pytest.mark.parametrize(
    "arguments",
    [{}, {"hash_buckets": 0, "hidden_units": (4,)}, {"history_length": 50}, {"form": "profile"}],
)
@pytest.mark.parametrize("weight", [None, [[5, 1, 2, -1, 4], [3, 9, -1, -1, -1], [-1] * 5, [-1] * 5, [1] * 5]])
def test_forward_equals_numpy(arguments: dict[str, Any], weight: Any) -> None:
    model = made(**arguments)
    told = {} if weight is None else {"history_weight": np.array(weight, np.float32)}
    expected = oracles.content_scores(weights(model), {"history": HISTORY, **told}, model.history_length)
    np.testing.assert_allclose(model.score_items(tensors(**told)), expected, rtol=1e-4, atol=1e-5)


def test_ids_are_hashed_and_reserved_rows_have_a_bucket_of_their_own() -> None:
    buckets = made().bucket.numpy()
    np.testing.assert_array_equal(buckets[2:], 1 + tf.strings.to_hash_bucket_fast(IDS[2:], 5).numpy())
    assert buckets[:2].tolist() == [0, 0]


def test_loss_equals_numpy_and_runs_over_the_trained_items() -> None:
    model = made()
    label = np.array([4, 3, 4, 3, 6], np.int32)
    logits = oracles.content_scores(weights(model), {"history": HISTORY}, 3)
    logits[:, [0, 1, 2, 5, 7]] = -np.inf
    np.testing.assert_allclose(model.compute_loss(tensors(label=label)), oracles.softmax_loss(logits, label), rtol=1e-5)


def test_an_item_that_was_never_a_label_is_scored_by_its_content_alone() -> None:
    model = made()
    before = model.score_items(tensors()).numpy()
    model.own.assign(model.own + 1.0)
    changed = np.abs(model.score_items(tensors()).numpy() - before).max(axis=0) > 1e-6
    assert np.flatnonzero(changed).tolist() == [3, 4, 6]


def test_item_dropout_takes_the_own_part_in_training_only() -> None:
    model = made(item_dropout=0.5)
    kept, without = model.item_vectors().numpy(), (content() @ model.content_table.numpy())
    tf.random.set_seed(0)
    draws = np.stack([model.item_vectors(training=True).numpy() for _ in range(300)])  # [300, I, D]
    for item in (3, 4, 6):
        whole = np.isclose(draws[:, item], kept[item], atol=1e-6).all(axis=1)
        bare = np.isclose(draws[:, item], without[item], atol=1e-6).all(axis=1)
        assert np.all(whole ^ bare)
        assert whole.mean() == pytest.approx(0.5, abs=0.12)  # 4 standard deviations of a share of 300


def test_dropout_leaves_out_watched_items_in_training_only() -> None:
    model = made(dropout=0.5, form="profile")
    query = {"history": tf.tile([[2, 3]], [400, 1])}
    x = content()
    kinds = [np.zeros(4), x[2], x[3], x[2] + x[3]]
    kinds = [k / np.linalg.norm(k) if k.any() else k for k in kinds]
    np.testing.assert_allclose(model.embed_query(query), np.tile(kinds[3], (400, 1)), rtol=1e-5)
    tf.random.set_seed(0)
    drawn = model.embed_query(query, training=True).numpy()
    shares = [np.isclose(drawn, kind, atol=1e-5).all(axis=1).mean() for kind in kinds]
    np.testing.assert_allclose(shares, [0.25] * 4, atol=0.09)
    assert sum(shares) == pytest.approx(1)


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 7), max_size=6), min_size=1, max_size=4), st.integers(1, 4))
def test_a_profile_is_a_cosine_for_any_history(histories: list[list[int]], length: int) -> None:
    rows = [[i for i in history if i] for history in histories]
    history = np.array([row + [0] * (6 - len(row)) for row in rows], np.int32)
    model = made(form="profile", history_length=length)
    scores = model.score_items({"history": tf.constant(history)}).numpy()
    expected = oracles.content_scores({"content": content()}, {"history": history}, length)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.abs(scores).max() <= 1 + 1e-5


def test_one_item_in_the_catalogue() -> None:
    for form in ("network", "profile"):
        model = ContentBased(num_items=3, num_features=1, form=form)
        model.set_content(np.array([[0], [0], [2]]))
        scores = model.score_items({"history": tf.constant([[2], [0]])})
        assert scores.shape == (2, 3)
        assert np.isfinite(scores).all()
    model = ContentBased(num_items=3, num_features=1)
    model.set_content(np.array([[0], [0], [2]]))
    model.set_trained([2])
    loss = model.compute_loss({"history": tf.constant([[2], [2]]), "label": tf.constant([2, 2])})
    assert float(loss) == pytest.approx(0, abs=1e-6)


def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Content, histories and labels of a taste that two attributes make together, as no genre alone does.

    Item i has genre i mod 4 and language (i // 4) mod 3; users watch one pair. The last tenth of the items is cold.
    """
    items, features = 120, 7
    x = np.zeros((items + 2, features))
    n = np.arange(items)
    x[2 + n, n % 4], x[2 + n, 4 + n // 4 % 3] = 1, 1
    pair = n % 12
    cold = n >= 108
    rng = np.random.default_rng(0)
    history = np.array([2 + rng.choice(n[(pair == user % 12) & ~cold], 6, replace=False) for user in range(240)])
    return x, history[:, :5], history[:, 5], cold


def test_cold_items_are_found_by_their_content() -> None:
    """Recall@5 among all items of the cold ones of a user's pair: 3 × random, and above neighbours by genre alone."""
    x, history, label, cold = planted()
    batch = {"history": history.astype(np.int32), "label": label.astype(np.int32)}
    right = (np.flatnonzero(cold) % 12)[np.newaxis] == (np.arange(240) % 12)[:, np.newaxis]  # [U, cold]
    assert (right.sum(axis=1) == 1).all()

    def recall(model: ContentBased) -> float:
        """Of the one cold item that suits a user; what was watched is out."""
        scores = model.score_items({"history": tf.constant(batch["history"])}).numpy()
        scores[:, :2] = -np.inf
        np.put_along_axis(scores, history, -np.inf, axis=1)
        np.put_along_axis(scores, label[:, np.newaxis], -np.inf, axis=1)
        noise = np.random.default_rng(1).random(scores.shape) * 1e-4  # equal scores have no order
        place = np.argsort(np.argsort(-scores - noise, axis=1), axis=1)[:, 2:][:, cold]
        return float((place[right] < 5).mean())

    chance = 5 / (120 - 6)
    by_genre = ContentBased(122, 7, form="profile")
    by_genre.set_content(np.where(np.arange(7) < 4, x, 0))
    profile = ContentBased(122, 7, form="profile")
    profile.set_content(x)
    tf.keras.utils.set_random_seed(0)
    network = ContentBased(122, 7, hidden_units=(16,), item_dropout=0.9)
    network.set_content(x)
    network.set_trained(label)
    network.compile(tf.keras.optimizers.Adam(0.02))
    network.fit(tf.data.Dataset.from_tensors(batch).repeat(150), verbose=0)
    for model in (profile, network):
        assert recall(model) > 3 * chance
        assert recall(model) > recall(by_genre) + 0.1


def test_refuses_content_of_another_catalogue() -> None:
    model = made()
    rule = "`content` must be finite numbers [I, F] for 8 items and 4 features."
    for wrong, received in ((np.zeros((7, 4)), "shape=(7, 4)"), (np.full((8, 4), np.nan), "not_finite=32")):
        with pytest.raises(ShortlistError) as error:
            model.set_content(wrong, IDS)
        assert str(error.value) == f"{rule} Received: {received}."
    with pytest.raises(ShortlistError) as error:
        model.set_content(content())
    assert str(error.value) == (
        "`ids` must be one string for each of the 8 items, as there are `hash_buckets`. Received: shape=(0,)."
    )


def test_a_profile_is_not_trained() -> None:
    model = made(form="profile")
    assert model.trainable_variables == []
    with pytest.raises(ShortlistError) as error:
        model.compute_loss(tensors(label=LABEL))
    assert str(error.value) == "`form` must be network to be trained. Received: form='profile'."
