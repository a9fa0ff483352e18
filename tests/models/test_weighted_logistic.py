"""WeightedLogistic against NumPy, and its odds against the closed form of the expected watch time."""

from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_contract import TrainableContract

from shortlist import ShortlistError
from shortlist.models._bundle import in_halves
from shortlist.models.weighted_logistic import LADDER, WeightedLogistic, best_constant

FITTED = np.random.default_rng(2).integers(-4, 9, (40, 3)) / 4.0  # ties, all exact in float32
FEATURES = np.concatenate([FITTED[:5], [[-9.0, 0.125, 1e6], [9.0, -0.6, -1e6], [0.3, 0.7, 1.1]]])
LABEL = np.array([1, 0, 0, 1, 0, 1, 0, 1])
WEIGHT = np.array([30.0, 1, 1, 2.5, 1, 600, 1, 0.01])
ITEM = np.array([2, 3, 1, 8, 3, 0, 5, 2], np.int32)
WATCHED = np.array([[4, 2, 7, 3, 5], [6, 1, 0, 0, 0]], np.int32)  # of two requests of four candidates
LAST = np.repeat(np.array([[7, 3, 5], [6, 1, 0]], np.int32), 4, axis=0)
EMBEDDED: dict[str, Any] = {"embedding_dim": 2, "num_items": 9, "history_length": 3}


def made(**arguments: Any) -> WeightedLogistic:
    model = WeightedLogistic(**{"num_features": 3, "hidden_units": (5, 4), "num_quantiles": 6, **arguments})
    model.adapt(FITTED[:, : model.num_features])
    rng = np.random.default_rng(3)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    return model


def flat(model: WeightedLogistic) -> dict[str, tf.Tensor]:
    """`FEATURES` as inputs, one candidate a row."""
    x = {"features": tf.constant(FEATURES[:, : model.num_features], tf.float32)}
    return {**x, "item": tf.constant(ITEM), "history": tf.constant(LAST)} if model.embedding_dim else x


def kernels(model: WeightedLogistic, head: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(layer.kernel.numpy(), layer.bias.numpy()) for layer in (*model.hidden, getattr(model, head))]


def cross(model: WeightedLogistic) -> list[tuple[np.ndarray, np.ndarray]]:
    return [tuple(w.numpy() for w in layer.weights) for layer in model.cross]


def expected(model: WeightedLogistic, head: str) -> np.ndarray:
    """The logits of a head by loops."""
    network = FEATURES[:, : model.num_features], FITTED, kernels(model, head), 6, cross(model)
    embedded = (model.table.numpy(), ITEM, LAST) if model.embedding_dim else (None, None, None)
    return oracles.weighted_logits(*network, *embedded, model.use_powers, model.ignored)


def loss(model: WeightedLogistic, weight: np.ndarray | None = WEIGHT) -> tf.Tensor:
    x = flat(model)
    weight = None if weight is None else tf.constant(weight)
    return model.compute_loss(x, tf.constant(LABEL), model(x, training=False), weight)


class TestWeightedLogistic(TrainableContract):
    refused = (
        ({"num_features": -1}, "`num_features` must be an integer of at least 0. Received: num_features=-1."),
        ({"num_features": 2.5}, "`num_features` must be an integer of at least 0. Received: num_features=2.5."),
        ({"num_quantiles": 1}, "`num_quantiles` must be an integer of at least 2. Received: num_quantiles=1."),
        ({"hidden_units": (4, 0)}, "`hidden_units` must be an integer of at least 1. Received: hidden_units=0."),
        ({"l2": -1e-3}, "`l2` must be a finite number of at least 0. Received: l2=-0.001."),
        ({"dropout": 1.0}, "`dropout` must be in [0, 1). Received: dropout=1.0."),
        ({"cross_layers": -1}, "`cross_layers` must be an integer of at least 0. Received: cross_layers=-1."),
        ({"embedding_dim": -1}, "`embedding_dim` must be an integer of at least 0. Received: embedding_dim=-1."),
        ({"num_items": 1}, "`num_items` must be an integer of at least 2. Received: num_items=1."),
        (
            {"embedding_dim": 0, "num_items": -1},
            "`num_items` must be an integer of at least 0. Received: num_items=-1.",
        ),
        ({"history_length": 0}, "`history_length` must be an integer of at least 1. Received: history_length=0."),
        ({"ignored": (0, 3)}, "`ignored` must be places of the 3 features. Received: ignored=(0, 3)."),
        ({"ignored": [-1]}, "`ignored` must be places of the 3 features. Received: ignored=(-1,)."),
    )

    def make(self) -> WeightedLogistic:
        model = made(l2=0.01, dropout=0.3, cross_layers=1, ignored=(1,), **EMBEDDED)
        model.offset.assign([0.5, -0.25])
        return model

    def query(self) -> dict[str, np.ndarray]:
        return {"features": FEATURES.reshape(2, 4, 3), "items": ITEM.reshape(2, 4), "history": WATCHED}

    def spec(self) -> dict[str, tf.TensorSpec]:
        return {
            "features": tf.TensorSpec([None, None, 3], tf.float32),
            "items": tf.TensorSpec([None, None], tf.int32),
            "history": tf.TensorSpec([None, None], tf.int32),
        }

    def scores(self, model: WeightedLogistic, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        return model.score(inputs["features"], inputs["items"], inputs["history"])["expected"]

    def pad(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        wider = {name: tf.pad(inputs[name], [[0, 0], [0, 3]]) for name in ("items", "history")}
        return {"features": tf.pad(inputs["features"], [[0, 0], [0, 3], [0, 0]]), **wider}

    def loss(self, model: WeightedLogistic) -> tf.Tensor:
        return loss(model)

    def test_call_gives_the_scores(self, model: WeightedLogistic, inputs: dict[str, tf.Tensor]) -> None:
        """Requests of several candidates with one history each are the rows one by one, with its last items."""
        logits = model(flat(model))
        answer = {name: value.numpy().ravel() for name, value in model.score(**inputs).items()}
        np.testing.assert_allclose(np.log(answer["odds"]), logits["logit"], rtol=1e-6, atol=1e-6)
        watch = 1 / (1 + np.exp(-logits["watch_logit"]))
        np.testing.assert_allclose(answer["watch"], watch, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(answer["expected"], answer["odds"] * (1 - answer["watch"]), rtol=1e-6)


NETWORKS = [
    {},
    {"hidden_units": ()},
    {"use_powers": False},
    {"ignored": (0, 2)},
    {"ignored": (0, 1, 2), **EMBEDDED},
    {"num_features": 0, **EMBEDDED},
    {"cross_layers": 2},
    {"cross_layers": 1, "hidden_units": (), "ignored": (2,), "use_powers": False, **EMBEDDED},
    EMBEDDED,
]


@pytest.mark.parametrize("arguments", NETWORKS, ids=str)
def test_logits_and_odds_equal_numpy(arguments: dict[str, Any]) -> None:
    model = made(**arguments)
    x = flat(model)
    pairs = {name: tf.reshape(value, [4, 2, *value.shape[1:]]) for name, value in x.items()}
    for head in ("logit", "watch_logit"):
        z = expected(model, head)
        assert np.ptp(z) > 0.01
        np.testing.assert_allclose(model(x)[head], z, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(model(pairs)[head], z.reshape(4, 2), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.odds(pairs), np.exp(expected(model, "logit")).reshape(4, 2), rtol=1e-3)
    np.testing.assert_array_equal(model.odds(pairs), tf.exp(model(pairs)["logit"]))


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_features": 0},
        {"num_features": 0, "hidden_units": ()},
        {"ignored": (0, 1, 2)},
        {"cross_layers": 1, **EMBEDDED},
    ],
    ids=str,
)
def test_a_graph_gives_the_same_as_eager_code(arguments: dict[str, Any]) -> None:
    """Without a number too: TensorFlow's graphs lose a constant that is added to a product over no columns."""
    model = made(**arguments)
    x = flat(model)
    specs = {name: tf.TensorSpec([None] * value.shape.rank, value.dtype) for name, value in x.items()}
    specs["features"] = tf.TensorSpec([None, model.num_features])
    eager, graph = model(x), tf.function(model, input_signature=[specs])(x)
    for head in ("logit", "watch_logit"):
        assert np.abs(eager[head]).min() > 1e-3
        np.testing.assert_allclose(graph[head], eager[head], rtol=1e-6, atol=1e-6)


def test_what_is_ignored_or_reserved_changes_nothing() -> None:
    model = made(ignored=(1,), **EMBEDDED)
    x = flat(model)
    before = model(x)["logit"].numpy()
    x["features"] = tf.constant(FEATURES * [1, 7, 1] + [0, 3, 0], tf.float32)
    np.testing.assert_array_equal(model(x)["logit"], before)
    model.table.assign(tf.concat([tf.fill([2, 2], 99.0), model.table[2:]], axis=0))
    np.testing.assert_array_equal(model(x)["logit"], before)
    np.testing.assert_array_equal(model({**x, "item": tf.where(ITEM < 2, 1 - ITEM, ITEM)})["logit"], before)


def test_one_table_is_shared_by_the_impression_and_the_history() -> None:
    model = made(**EMBEDDED)
    tables = [w for w in model.trainable_variables if w.shape == (9, 2)]
    assert tables == [model.table]
    x = {"features": tf.zeros([1, 3]), "item": tf.constant([4]), "history": tf.constant([[5, 6, 0]])}
    before = model(x)["logit"].numpy()
    for row in (4, 5, 6):
        model.table.scatter_nd_add([[row]], [[1.0, -1.0]])
        after = model(x)["logit"].numpy()
        assert np.abs(after - before).max() > 1e-3
        before = after


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"cross_layers": 1, **EMBEDDED}], ids=["numbers", "all"])
def test_loss_equals_numpy_with_weights_and_l2(exact: bool, arguments: dict[str, Any]) -> None:
    model = made(l2=0.02, exact=exact, **arguments)
    z, watch = (expected(model, head) for head in ("logit", "watch_logit"))
    of_network = [*cross(model), *kernels(model, "logit"), *kernels(model, "watch_logit")[-1:]]
    penalty = sum((kernel**2).sum() for kernel, _ in of_network)
    if model.embedding_dim:
        penalty += np.mean([(model.table[i].numpy() ** 2).sum() * (i >= 2) for i in ITEM])
    ones = np.ones(8)
    other = oracles.weighted_loss(watch, LABEL, ones) + 0.02 * penalty
    np.testing.assert_allclose(loss(model), oracles.weighted_loss(z, LABEL, WEIGHT, exact) + other, rtol=1e-4)
    np.testing.assert_allclose(loss(model, None), oracles.weighted_loss(z, LABEL, ones, exact) + other, rtol=1e-4)
    assert np.abs(other - 0.02 * penalty) > 0.1


def test_fit_reports_the_weighted_loss_of_an_epoch() -> None:
    model = made(l2=0.02, **EMBEDDED)
    model.compile(tf.keras.optimizers.SGD(0.0))
    x = {name: value.numpy() for name, value in flat(model).items()}
    history = model.fit(x, LABEL, sample_weight=WEIGHT, batch_size=3, epochs=2, verbose=0).history
    np.testing.assert_allclose(history["loss"], [loss(model)] * 2, rtol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_without_features_the_trained_odds_are_the_watch_time_over_the_negatives(exact: bool) -> None:
    """The identity: log(Σ T / negatives), with `exact` log(Σ T / N), and log(positives / negatives) of a watch."""
    rng = np.random.default_rng(5)
    label = (rng.random(200) < 0.25).astype(np.float32)
    weight = np.where(label > 0, rng.exponential(4.0, 200), 1).astype(np.float32)
    time, positives = weight[label > 0].sum(dtype=np.float64), label.sum()
    model = WeightedLogistic(num_features=0, hidden_units=(), exact=exact)
    model.adapt(np.zeros((200, 0)))
    x = {"features": tf.zeros([200, 0])}
    np.testing.assert_array_equal(model(x)["logit"], np.zeros(200))
    # The curvature of a head's loss is at most a quarter of its mean weight.
    model.compile(tf.keras.optimizers.SGD(4 / (time / 200 + 1)))
    model.fit(tf.data.Dataset.from_tensors((x, label, weight)).repeat(200), verbose=0)
    expected_time = np.log(time / (200 if exact else 200 - positives))
    np.testing.assert_allclose(model(x)["logit"], np.full(200, expected_time), atol=1e-4)
    np.testing.assert_allclose(model(x)["watch_logit"], np.full(200, np.log(positives / (200 - positives))), atol=1e-4)
    answer = model.score(tf.zeros([1, 1, 0]), tf.zeros([1, 1], tf.int32), tf.zeros([1, 0], tf.int32))
    np.testing.assert_allclose(answer["expected"], [[time / 200]], rtol=1e-3)  # E[T] = odds (1 − P), or the odds


@pytest.mark.parametrize("exact", [False, True])
def test_start_is_the_best_constant(exact: bool) -> None:
    """Positives of 10, 20 and 90 seconds among nine rows."""
    model = WeightedLogistic(num_features=2, exact=exact)
    model.start_from_base_rate(np.array([1, 0, 1, 0, 1, 0, 0, 0, 0]), np.array([10.0, 1, 20, 1, 90, 1, 1, 1, 1]))
    np.testing.assert_allclose(model.logit.bias, [np.log(120 / (9 if exact else 6))], rtol=1e-6)
    np.testing.assert_allclose(model.watch_logit.bias, [np.log(3 / 6)], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 60), st.floats(-8, 8), st.floats(0.1, 3), st.booleans())
def test_best_constant_balances_what_is_for_and_against(
    seed: int, count: int, shift: float, spread: float, exact: bool
) -> None:
    rng = np.random.default_rng(seed)
    label = (rng.random(count) < 0.3).astype(np.float64)
    label[:2] = 1, 0
    z, in_favour = rng.normal(shift, spread, count), label * (0.1 + rng.exponential(600, count))
    against = np.ones(count) if exact else 1 - label
    b = best_constant(z, in_favour, against)
    np.testing.assert_allclose(b, oracles.balancing_constant(z, in_favour, against), atol=1e-6)


@pytest.mark.parametrize("exact", [False, True])
def test_calibrated_the_odds_add_up(exact: bool) -> None:
    """Σ_pos T (1 − σ) = Σ_neg σ for the first head, positives among the negatives with `exact`; T = 1 for the other."""
    model = made(exact=exact, **EMBEDDED)
    x = flat(model)
    before = {name: value.numpy() for name, value in model(x).items()}
    trained = [w.numpy() for w in model.trainable_variables]
    for batch_size in (8192, 3):
        model.calibrate({name: value.numpy() for name, value in x.items()}, LABEL, WEIGHT, batch_size)
        after = {name: value.numpy() for name, value in model(x).items()}
        for head, weight, both in (("logit", WEIGHT, exact), ("watch_logit", np.ones(8), False)):
            share = 1 / (1 + np.exp(-after[head].astype(np.float64)))
            against = np.where(LABEL > 0, both, 1)
            np.testing.assert_allclose((LABEL * weight * (1 - share)).sum(), (against * share).sum(), rtol=1e-4)
            b = oracles.balancing_constant(before[head].astype(np.float64), LABEL * weight, against)
            np.testing.assert_allclose(after[head] - before[head], np.full(8, b), atol=1e-5)
            assert abs(b) > 0.01
    for weight, value in zip(model.trainable_variables, trained, strict=True):
        np.testing.assert_array_equal(weight, value)
    without = model(x, training=True)  # no dropout here: training goes on where it was
    for head, value in before.items():
        np.testing.assert_array_equal(without[head], value)


@pytest.mark.parametrize("exact", [False, True])
def test_score_gives_the_expected_watch_time(exact: bool) -> None:
    model = made(exact=exact, **EMBEDDED)
    x = tf.constant(FEATURES.reshape(2, 4, 3), tf.float32)
    answer = {k: v.numpy() for k, v in model.score(x, tf.constant(ITEM.reshape(2, 4)), tf.constant(WATCHED)).items()}
    odds, watch = (expected(model, head).reshape(2, 4) for head in ("logit", "watch_logit"))
    odds, watch = np.exp(odds), 1 / (1 + np.exp(-watch))
    np.testing.assert_allclose(answer["odds"], odds, rtol=1e-3)
    np.testing.assert_allclose(answer["watch"], watch, rtol=1e-3)
    np.testing.assert_allclose(answer["expected"], odds if exact else odds * (1 - watch), rtol=1e-3)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7])
def test_a_request_is_its_candidates_one_by_one(length: int) -> None:
    rng = np.random.default_rng(length)
    model = made(cross_layers=1, **EMBEDDED)
    features = tf.constant(rng.normal(size=(3, 5, 3)), tf.float32)
    items, history = rng.integers(0, 9, (3, 5)), rng.integers(1, 9, (3, length))
    history[0, length // 2 :] = 0
    last = np.zeros((3, 3), np.int32)
    for row, watched in enumerate(history):
        kept = [i for i in watched if i != 0][-3:]
        last[row, : len(kept)] = kept
    rows = {"features": tf.reshape(features, [15, 3]), "item": items.ravel(), "history": np.repeat(last, 5, axis=0)}
    one_by_one = model({name: tf.constant(value) for name, value in rows.items()})
    answer = model.score(features, tf.constant(items, tf.int32), tf.constant(history, tf.int32))
    z = one_by_one["logit"].numpy().reshape(3, 5)
    np.testing.assert_allclose(np.log(answer["odds"]), z, rtol=1e-6, atol=1e-6)
    watch = tf.sigmoid(one_by_one["watch_logit"]).numpy().reshape(3, 5)
    np.testing.assert_allclose(answer["watch"], watch, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_halves_of_the_candidates_are_scored_as_all_of_them(size: int) -> None:
    rng = np.random.default_rng(size)
    model = made(**EMBEDDED)
    features = tf.constant(rng.normal(size=(3, size, 3)), tf.float32)
    items, history = (tf.constant(rng.integers(0, 9, (3, width)), tf.int32) for width in (size, 4))
    found = in_halves(model.score, features, items, history)
    assert set(found) == {"odds", "watch", "expected"}
    for name, whole in model.score(features, items, history).items():
        np.testing.assert_allclose(found[name], whole, rtol=1e-6)


def test_the_ladder_is_that_of_the_paper() -> None:
    assert LADDER == {
        "0": (),
        "256": (256,),
        "512": (512,),
        "1024": (1024,),
        "512-256": (512, 256),
        "1024-512": (1024, 512),
        "1024-512-256": (1024, 512, 256),
    }
    deepest = WeightedLogistic(num_features=2, hidden_units=LADDER["1024-512-256"])
    assert [layer.kernel.shape for layer in deepest.hidden] == [(8, 1024), (1024, 512), (512, 256)]
    assert WeightedLogistic(num_features=2, hidden_units=LADDER["0"]).logit.kernel.shape == (8, 1)


def test_standardization_of_many_rows_is_exact() -> None:
    features = np.full((300_000, 2), 1000.1, np.float32)
    features[:, 1] = np.arange(300_000) % 2
    model = WeightedLogistic(num_features=2, num_quantiles=3)
    model.adapt(features)
    np.testing.assert_allclose(model.center, [1000.1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(model.scale, [1e-6, 0.5], rtol=1e-6)


def test_dropout_works_in_training_only() -> None:
    model = made(dropout=0.9)
    x = flat(model)
    np.testing.assert_array_equal(model(x)["logit"], model(x)["logit"])
    tf.random.set_seed(0)
    assert np.abs(model(x, training=True)["logit"] - model(x)["logit"]).max() > 0.1


@pytest.mark.parametrize("shape", [(4, 2), (3,), (0, 3)])
def test_refuses_features_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShortlistError) as error:
        made().adapt(np.zeros(shape))
    assert str(error.value) == f"`features` must be [N, 3], N at least 1. Received: shape={shape}."
