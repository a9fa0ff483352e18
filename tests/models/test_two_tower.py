"""TwoTower against NumPy: both towers; as matrix factorization; and a task that an additive query cannot learn.

Its losses are in test_negatives.py.
"""

from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf
from model_contract import TrainableContract

from shortlist import ShortlistError
from shortlist.models._base import query_spec
from shortlist.models._negatives import SOFTMAX
from shortlist.models.two_tower import TwoTower

YEAR = 31_557_600
NAN = float("nan")
QUERY = {
    "user": np.array([2, 3, 1, 2], np.int32),
    "history": np.array([[2, 3, 4, 5, 2], [6, 1, 5, 0, 0], [0, 0, 0, 0, 0], [7, 0, 0, 0, 0]], np.int32),
    "history_time": np.array([[1, 2, 3, 5, 9], [1, 20, 3, 0, 0], [0, 0, 0, 0, 0], [9, 0, 0, 0, 0]], np.int64),
    "time": np.array([30 * YEAR, 35 * YEAR, 40 * YEAR, 90 * YEAR], np.int64),
    "user_sex": np.array([2, 0, 3, 1], np.int32),
    "context_day": np.array([4, 2, 2, 0], np.int32),
    "user_age": np.array([30, NAN, 41, 8], np.float32),
    "user_income": np.array([NAN, NAN, 5, 2], np.float32),
    "query": np.array([[2, 5, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0], [3, 3, 4, 2]], np.int32),
}
AGE = np.array([0, 50, 7, 300], np.float32)
LABEL = np.array([4, 7, 4, 3], np.int32)
EVERYTHING = {
    "num_items": 8,
    "num_users": 4,
    "embedding_dim": 3,
    "history_length": 2,
    "long_history_length": 4,
    "hidden_units": (5, 4),
    "temperature": 0.5,
    "time_quantiles": tuple(YEAR * t for t in (30.0, 33.0, 40.0, 50.0)),
    "age_quantiles": (0.0, 0.0, 10.0, 100.0),
    "recency_half_life": 4.0,
    "categories": {"user_sex": 4, "context_day": 5},
    "numbers": ("user_age", "user_income"),
    "num_tokens": 6,
    "num_genres": 3,
    "num_years": 4,
    "num_title_tokens": 7,
    "title_length": 2,
    "item_categories": {"language": 4},
}
KINDS = {
    "user_sex": "category",
    "context_day": "category",
    "user_age": "number",
    "user_income": "number",
    "query": "tokens",
}
HISTORY_ALONE = {
    "history_length": 3,
    "long_history_length": 0,
    "num_users": 0,
    "hidden_units": (),
    "temperature": 1.0,
    "time_quantiles": (),
    "age_quantiles": (),
    "recency_half_life": 0.0,
    "categories": (),
    "numbers": (),
    "num_tokens": 0,
}
NO_CONTENT = {"num_genres": 0, "num_years": 0, "num_title_tokens": 0, "item_categories": ()}


def made(**arguments: Any) -> TwoTower:
    """A model with random weights, content and label counts."""
    model = TwoTower(**{**EVERYTHING, **arguments})
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(0, 0.6, weight.shape))
    language = np.array([0, 0, 2, 3, 1, 0, 3, 2])
    model.set_content(
        rng.integers(0, 2, (8, 3)).astype(np.float32),
        rng.integers(0, 4, 8),
        rng.integers(0, 7, (8, 2)),
        {"language": language},
    )
    model.set_label_counts(np.array([0, 0, 5, 1, 3, 0, 2, 9]))
    if model.numbers:
        model.set_numbers(np.array([[20, 1], [NAN, 3], [40, NAN], [60, 9]]))
    return model


def weights(model: TwoTower) -> dict[str, Any]:
    """The model's weights as float64 arrays by the names that the oracle knows."""
    names = ("candidate_table", "history_table", "user_table", "time_table", "age_table", "number_table", "token_table")
    found = {n: getattr(model, n).numpy().astype(np.float64) for n in names if getattr(model, n) is not None}
    found["trained"] = np.array([0, 0, 1, 1, 1, 0, 1, 1])
    if model.content is not None:
        content = ("genres", "genre_table", "years", "year_table", "titles", "title_table")
        found |= {n: getattr(model.content, n).numpy() for n in content if hasattr(model.content, n)}
        tables = model.content.column_tables
        found["columns"] = [(model.content.columns[n].numpy(), t.numpy()) for n, t in tables.items()]
    found["categories"] = {n: t.numpy().astype(np.float64) for n, t in model.category_tables.items()}
    if model.numbers:
        bounds = model.quantiles.boundaries.numpy().astype(np.float64)
        found["numbers"] = dict(zip(model.numbers, bounds, strict=True))
    if model.tower:
        found["tower"] = [(layer.kernel.numpy(), layer.bias.numpy()) for layer in model.tower]
    quantiles = {
        name: np.float32(getattr(model, name)).astype(np.float64) for name in ("time_quantiles", "age_quantiles")
    }
    return {**found, **quantiles}


def tensors(**other: np.ndarray) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in {**QUERY, **other}.items()}


class TestTwoTower(TrainableContract):
    refused = (
        ({"num_items": 2}, "`num_items` must be an integer of at least 3. Received: num_items=2."),
        ({"num_users": -1}, "`num_users` must be an integer of at least 0. Received: num_users=-1."),
        ({"embedding_dim": 0}, "`embedding_dim` must be an integer of at least 1. Received: embedding_dim=0."),
        ({"history_length": 1.5}, "`history_length` must be an integer of at least 1. Received: history_length=1.5."),
        (
            {"long_history_length": 2},
            "`long_history_length` must be 0 or above `history_length`. "
            "Received: long_history_length=2, history_length=2.",
        ),
        ({"hidden_units": (8, 0)}, "`hidden_units` must be an integer of at least 1. Received: hidden_units=0."),
        (
            {"softmax": "adaptive"},
            "`softmax` must be one of full, in_batch, uniform, popularity, mixed, hard, positives_only. "
            "Received: softmax='adaptive'.",
        ),
        ({"log_q": "exact"}, "`log_q` must be one of counts, streaming, none. Received: log_q='exact'."),
        ({"negatives": 0}, "`negatives` must be an integer of at least 1. Received: negatives=0."),
        (
            {"popularity_power": -1.0},
            "`popularity_power` must be a finite number of at least 0. Received: popularity_power=-1.0.",
        ),
        ({"hard_share": 1.5}, "`hard_share` must be in [0, 1]. Received: hard_share=1.5."),
        ({"hard_warmup": -1}, "`hard_warmup` must be an integer of at least 0. Received: hard_warmup=-1."),
        ({"hard_refresh": 0}, "`hard_refresh` must be an integer of at least 1. Received: hard_refresh=0."),
        (
            {"recency_half_life": -2},
            "`recency_half_life` must be a finite number of at least 0. Received: recency_half_life=-2.",
        ),
        (
            {"categories": {"user_sex": 0}},
            "`categories.user_sex` must be an integer of at least 1. Received: categories.user_sex=0.",
        ),
        ({"num_tokens": -1}, "`num_tokens` must be an integer of at least 0. Received: num_tokens=-1."),
        ({"id_dropout": 1.0}, "`id_dropout` must be in [0, 1). Received: id_dropout=1.0."),
        ({"title_length": 0}, "`title_length` must be an integer of at least 1. Received: title_length=0."),
        (
            {"age_quantiles": (1.0,)},
            "`age_quantiles` must be empty or at least two ascending numbers. Received: age_quantiles=(1.0,).",
        ),
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

    def spec(self) -> dict[str, tf.TensorSpec]:
        return query_spec(KINDS)

    def pad(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {**super().pad(inputs), "query": tf.pad(inputs["query"], [[0, 0], [0, 2]])}

    def loss(self, model: TwoTower) -> tf.Tensor:
        return model.compute_loss(tensors(label=LABEL, example_age=AGE), training=True)


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
        {"hidden_units": (), "long_history_length": 4, "history_length": 3, "recency_half_life": 0.0},
        {"normalize": True, "num_years": 0, "recency_half_life": 0.0, "numbers": ()},
        {"shared_item_table": True, "hidden_units": (), "normalize": True, "num_genres": 0, "categories": ()},
        {**HISTORY_ALONE, **NO_CONTENT, "history_length": 50, "temperature": 0.5},
    ],
)
def test_forward_equals_numpy(arguments: dict[str, Any]) -> None:
    model = made(**arguments)
    w, normalize = weights(model), arguments.get("normalize", False)
    more = (model.history_length, 0.5, normalize, model.recency_half_life, model.long_history_length)
    psi, items = oracles.two_tower_queries(w, QUERY, *more), oracles.two_tower_items(w, normalize)
    np.testing.assert_allclose(model.embed_query(tensors()), psi, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.item_vectors(), items, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(tensors()), psi @ items.T, rtol=1e-4, atol=1e-5)
    aged = oracles.two_tower_queries(w, {**QUERY, "example_age": AGE}, *more)
    np.testing.assert_allclose(model.embed_query(tensors(example_age=AGE)), aged, rtol=1e-4, atol=1e-5)


def test_only_the_last_items_count_and_unknown_ones_do_not() -> None:
    model = made(**HISTORY_ALONE)
    table = model.history_table.numpy()
    psi = model.embed_query(tensors()).numpy()
    np.testing.assert_allclose(psi[0], (table[4] + table[5] + table[2]) / 3, rtol=1e-5)
    np.testing.assert_allclose(psi[1], (table[6] + table[5]) / 2, rtol=1e-5)
    np.testing.assert_array_equal(psi[2], [0, 0, 0])


def test_histories_far_longer_and_far_shorter_than_what_is_looked_at() -> None:
    watched = np.random.default_rng(0).integers(2, 8, (1, 100_000), np.int32)
    model = made(**HISTORY_ALONE)
    expected = model.history_table.numpy()[watched[0, -3:]].mean(axis=0)
    np.testing.assert_allclose(model.embed_query({"history": tf.constant(watched)})[0], expected, rtol=1e-5)
    model = made(**{**HISTORY_ALONE, "history_length": 1000, "long_history_length": 2000})
    expected = 2 * model.history_table.numpy()[[4, 6]].mean(axis=0)  # both means are over all that there is
    np.testing.assert_allclose(model.embed_query({"history": tf.constant([[4, 6]])})[0], expected, rtol=1e-5)


def test_a_watch_counts_half_after_each_half_life_however_old_the_newest_is() -> None:
    model = made(**{**HISTORY_ALONE, "recency_half_life": 10.0})
    table = model.history_table.numpy()
    query = {"history": tf.constant([[2, 3, 4]]), "history_time": tf.constant([[5, 15, 25]], tf.int64)}
    expected = (table[2] / 4 + table[3] / 2 + table[4]) / 1.75
    np.testing.assert_allclose(model.embed_query(query)[0], expected, rtol=1e-5)
    later = {**query, "history_time": query["history_time"] + 10**9}
    np.testing.assert_allclose(model.embed_query(later)[0], expected, rtol=1e-5)


def test_missing_values_add_nothing() -> None:
    inputs = {"categories": {"user_sex": 4}, "numbers": ("user_age", "user_income"), "num_tokens": 6}
    model = made(**{**HISTORY_ALONE, **inputs})
    query = tensors(user_sex=np.array([0, 1, 0, 1], np.int32), query=np.array([[0], [1], [1], [0]], np.int32))
    nothing = model.embed_query({**query, "user_age": tf.fill([4], NAN), "user_income": tf.fill([4], NAN)})
    table = model.history_table.numpy()
    means = [table[[4, 5, 2]].mean(axis=0), table[[6, 5]].mean(axis=0), np.zeros(3), table[7]]
    np.testing.assert_allclose(nothing, means, rtol=1e-5)


def test_an_item_that_was_never_a_label_is_its_content() -> None:
    model = made()
    np.testing.assert_allclose(model.embed_items([5, 6])[0], model.content(tf.constant([5]))[0], rtol=1e-6)
    assert not np.allclose(model.embed_items([6]), model.content(tf.constant([6])))


def test_id_dropout_leaves_the_content_alone_in_training() -> None:
    model = made(id_dropout=0.25)
    whole, content = model.embed_items([6])[0].numpy(), model.content(tf.constant([6]))[0].numpy()
    tf.random.set_seed(0)
    drawn = model.embed_items(tf.fill([400], 6), training=True).numpy()
    kinds = [np.isclose(drawn, kind, atol=1e-6).all(axis=1).mean() for kind in (content, whole)]
    np.testing.assert_allclose(kinds, [0.25, 0.75], atol=0.09)  # 4 standard deviations of a share of 400
    assert sum(kinds) == pytest.approx(1)


def test_log_q_is_the_log_of_the_share_and_finite_for_what_is_never_a_label() -> None:
    model = made()
    model.set_label_counts([0, 0, 6, 2, 0, 0, 0, 0])
    expected = np.array([0.5, 0.5, 6, 2, 0.5, 0.5, 0.5, 0.5]) / 8
    np.testing.assert_allclose(np.exp(model.loss_layer.log_share), expected, rtol=1e-6)


@pytest.mark.parametrize("softmax", SOFTMAX)
def test_odd_batches_have_a_finite_loss_and_finite_gradients(softmax: str) -> None:
    """No history, unknown items only, one item over and over, and a catalogue of one item."""
    for items, label in ((8, [4, 4, 4]), (3, [2, 2, 2]), (8, [7, 3, 4])):
        model = TwoTower(num_items=items, embedding_dim=2, softmax=softmax, negatives=4, hard_share=0.5, hard_warmup=0)
        batch = {"history": tf.constant([[0], [1], [2]]), "time": tf.zeros(3, tf.int64), "label": tf.constant(label)}
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch, training=True)
        gradients = tape.gradient(loss, model.trainable_variables)
        assert np.isfinite(loss)
        assert all(np.isfinite(tf.convert_to_tensor(g)).all() for g in gradients)
        if (items == 3 and softmax != "positives_only") or (softmax == "in_batch" and len(set(label)) == 1):
            np.testing.assert_allclose(loss, 0, atol=1e-6)  # nothing to tell the label from
        else:
            assert loss > 0.1


def test_a_user_id_alone_with_the_full_softmax_is_matrix_factorization() -> None:
    model = TwoTower(num_items=6, num_users=5, embedding_dim=3, softmax="full")
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(5, 3)), rng.normal(size=(6, 3))
    model.user_table.assign(p)
    model.candidate_table.assign(q)
    users, labels, weight = np.array([2, 3, 2, 4]), np.array([3, 2, 5, 4]), np.array([1, 2, 0.5, 1])
    inputs = {
        "user": tf.constant(users),
        "history": tf.zeros([4, 1], tf.int32),
        "history_time": tf.zeros([4, 1], tf.int64),
        "time": tf.zeros([4], tf.int64),
        "label": tf.constant(labels),
        "weight": tf.constant(weight, tf.float32),
    }
    with tf.GradientTape() as tape:
        loss = model.compute_loss(inputs, training=True)
    found = tape.gradient(loss, [model.user_table, model.candidate_table, model.history_table])
    logits = oracles.sampled_logits("full", p[users], q, labels, np.zeros(6))
    expected, by_user, by_item = oracles.softmax_step(p[users], q, *logits, weight)
    by_row = np.zeros_like(p)
    np.add.at(by_row, users, by_user)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(tf.convert_to_tensor(found[0]), by_row, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(tf.convert_to_tensor(found[1]), by_item, rtol=1e-4, atol=1e-6)
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
    model = made(**HISTORY_ALONE, dropout=0.5)
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
        made().set_content(titles=np.zeros((8, 3), int))
    assert str(error.value) == "`titles` must be [I, T] rows below 7 for 8 items, T = 2. Received: shape=(8, 3)."
    with pytest.raises(ShortlistError) as error:
        made().set_content(categories={"language": np.full(8, -1)})
    text = "`language` must be a row below 4 for each of the 8 items. Received: lowest=-1, highest=-1."
    assert str(error.value) == text
    with pytest.raises(ShortlistError) as error:
        made().set_content(categories={"channel": np.zeros(8, int)})
    assert str(error.value) == "`categories` must hold every column of the model. Received: missing='language'."
    with pytest.raises(ShortlistError) as error:
        made().set_label_counts(np.ones(7))
    assert str(error.value) == "`counts` must be one number for each of the 8 items. Received: shape=(7,)."
