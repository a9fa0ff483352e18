"""WeightedLogistic against NumPy, and its odds against the closed form of the expected watch time."""

from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf
from model_contract import TrainableContract

from shortlist import ShortlistError
from shortlist.models.weighted_logistic import WeightedLogistic

FITTED = np.random.default_rng(2).integers(-4, 9, (40, 3)) / 4.0  # ties, all exact in float32
FEATURES = np.concatenate([FITTED[:5], [[-9.0, 0.125, 1e6], [9.0, -0.6, -1e6], [0.3, 0.7, 1.1]]])
LABEL = np.array([1, 0, 0, 1, 0, 1, 0, 1])
WEIGHT = np.array([30.0, 1, 1, 2.5, 1, 600, 1, 0])


def made(**arguments: Any) -> WeightedLogistic:
    model = WeightedLogistic(**{"num_features": 3, "hidden_units": (5, 4), "num_quantiles": 6, **arguments})
    model.adapt(FITTED)
    rng = np.random.default_rng(3)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return model


def kernels(model: WeightedLogistic) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(layer.kernel.numpy(), layer.bias.numpy()) for layer in (*model.hidden, model.logit)]


def loss(model: WeightedLogistic, weight: np.ndarray | None = WEIGHT) -> tf.Tensor:
    x = tf.constant(FEATURES, tf.float32)
    weight = None if weight is None else tf.constant(weight)
    return model.compute_loss(x, tf.constant(LABEL), model(x, training=False), weight)


class TestWeightedLogistic(TrainableContract):
    refused = (
        ({"num_features": 0}, "`num_features` must be an integer of at least 1. Received: num_features=0."),
        ({"num_quantiles": 1}, "`num_quantiles` must be an integer of at least 2. Received: num_quantiles=1."),
        ({"hidden_units": (4, 0)}, "`hidden_units` must be an integer of at least 1. Received: hidden_units=0."),
        ({"l2": -1e-3}, "`l2` must be a finite number of at least 0. Received: l2=-0.001."),
        ({"dropout": 1.0}, "`dropout` must be in [0, 1). Received: dropout=1.0."),
    )

    def make(self) -> WeightedLogistic:
        return made(l2=0.01, dropout=0.3)

    def query(self) -> np.ndarray:
        return FEATURES.reshape(2, 4, 3)  # two requests of four candidates

    def spec(self) -> tf.TensorSpec:
        return tf.TensorSpec([None, None, 3], tf.float32)

    def scores(self, model: WeightedLogistic, inputs: tf.Tensor) -> tf.Tensor:
        return model(inputs)

    def pad(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.pad(inputs, [[0, 0], [0, 3], [0, 0]])

    def loss(self, model: WeightedLogistic) -> tf.Tensor:
        return loss(model)


@pytest.mark.parametrize("hidden_units", [(5, 4), ()])
def test_logits_and_odds_equal_numpy(hidden_units: tuple[int, ...]) -> None:
    model = made(hidden_units=hidden_units)
    expected = oracles.weighted_logits(FEATURES, FITTED, kernels(model), 6)
    x = tf.constant(FEATURES.reshape(4, 2, 3), tf.float32)
    np.testing.assert_allclose(model(x), expected.reshape(4, 2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.odds(x), np.exp(expected).reshape(4, 2), rtol=1e-4)


def test_loss_equals_numpy_with_weights_and_l2() -> None:
    model = made(l2=0.02)
    z = oracles.weighted_logits(FEATURES, FITTED, kernels(model), 6)
    share = 1 / (1 + np.exp(-z))
    cross_entropy = -(LABEL * np.log(share) + (1 - LABEL) * np.log(1 - share))
    penalty = 0.02 * sum((kernel**2).sum() for kernel, _ in kernels(model))
    np.testing.assert_allclose(loss(model), (WEIGHT * cross_entropy).mean() + penalty, rtol=1e-4)
    np.testing.assert_allclose(loss(model, None), cross_entropy.mean() + penalty, rtol=1e-4)


def test_fit_reports_the_weighted_loss_of_an_epoch() -> None:
    model = made(l2=0.02)
    model.compile(tf.keras.optimizers.SGD(0.0))
    history = model.fit(FEATURES, LABEL, sample_weight=WEIGHT, batch_size=3, epochs=2, verbose=0).history
    np.testing.assert_allclose(history["loss"], [loss(model)] * 2, rtol=1e-5)


def test_with_constant_features_the_odds_are_the_watch_time_over_the_negatives() -> None:
    """Three positives of 10, 20 and 90 seconds among nine rows: the minimum of the loss is at odds of 120 / 6."""
    model = WeightedLogistic(num_features=2, hidden_units=())
    x, y = tf.fill([9, 2], 7.0), tf.constant([1, 1, 1] + [0] * 6)
    weight = tf.constant([10.0, 20, 90] + [1] * 6)
    model.adapt(x.numpy())
    # The curvature of the loss is at most ¼ · mean weight · (|x|² + 1), x = [½, ¼, √½, 0] twice.
    model.compile(tf.keras.optimizers.SGD(1 / (0.25 * (126 / 9) * (2 * (1 / 4 + 1 / 16 + 1 / 2) + 1))))
    model.fit(tf.data.Dataset.from_tensors((x, y, weight)).repeat(300), verbose=0)
    np.testing.assert_allclose(model(x), np.full(9, np.log(120 / 6)), atol=1e-3)


def test_standardization_of_many_rows_is_exact() -> None:
    features = np.full((300_000, 2), 1000.1, np.float32)
    features[:, 1] = np.arange(300_000) % 2
    model = WeightedLogistic(num_features=2, num_quantiles=3)
    model.adapt(features)
    np.testing.assert_allclose(model.center, [1000.1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(model.scale, [1e-6, 0.5], rtol=1e-6)


def test_dropout_works_in_training_only() -> None:
    model, x = made(dropout=0.9), tf.constant(FEATURES, tf.float32)
    np.testing.assert_array_equal(model(x), model(x))
    tf.random.set_seed(0)
    assert np.abs(model(x, training=True) - model(x)).max() > 0.1


@pytest.mark.parametrize("shape", [(4, 2), (3,), (0, 3)])
def test_refuses_features_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShortlistError) as error:
        made().adapt(np.zeros(shape))
    assert str(error.value) == f"`features` must be [N, 3], N at least 1. Received: shape={shape}."
