"""BiasedMF and CAMF against NumPy: forward, loss, steps; planted effects; what is not known adds nothing."""

from collections import Counter
from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_contract import TrainableContract

from shortlist import ShortlistError
from shortlist.models._base import QUERY_SPEC
from shortlist.models.camf import CAMF, DEVIATIONS, BiasedMF

USERS, ITEMS = 6, 5
CONTEXTS = {"time": 2, "place": 3}
N = 6  # columns: NA, two times, three places
X = {
    "user": np.array([2, 3, 2, 4, 5, 2], np.int32),
    "item": np.array([2, 2, 3, 4, 3, 2], np.int32),
    "context_time": np.array([1, 2, 0, 1, 7, 1], np.int32),  # 7: no condition of it
    "context_place": np.array([3, 0, 1, 2, 3, -1], np.int32),
}
COLUMNS = [(1, 5), (2, 0), (0, 3), (1, 4), (0, 5), (1, 0)]
Y = np.array([4, 2, 5, 3, 1, 4], np.float32)
QUERY = {
    "user": np.array([2, 3, 5], np.int32),
    "history": np.array([[2, 3], [4, 0], [0, 0]], np.int32),
    "history_time": np.zeros((3, 2), np.int64),
    "time": np.zeros(3, np.int64),
    "context_time": np.array([1, 2, 0], np.int32),
    "context_place": np.array([3, 0, 9], np.int32),
}
QUERY_COLUMNS = [(1, 5), (2, 0), (0, 0)]


def made(deviation: str | None = "CUCI", seed: int = 1, **arguments: Any) -> BiasedMF:
    """A model with random weights, adapted to X and Y."""
    sizes = {"num_users": USERS, "num_items": ITEMS, "embedding_dim": 3}
    if deviation:
        model: BiasedMF = CAMF(contexts=CONTEXTS, deviation=deviation, **sizes, **{"rank": 2, **arguments})
    else:
        model = BiasedMF(**sizes, **arguments)
    rng = np.random.default_rng(seed)
    model.adapt(X, Y)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(0, 0.6, weight.shape))
    return model


def weights(model: BiasedMF) -> dict[str, np.ndarray]:
    found = {w.name.split(":")[0].split("/")[-1]: w.numpy().astype(np.float64) for w in model.trainable_variables}
    shapes = {"item_context": (ITEMS, N), "user_context": (USERS, N)}
    found |= {name: found[name].reshape(shape) for name, shape in shapes.items() if name in found}
    for side in ("user", "item"):
        rows = found.pop(f"{side}_rows")
        found |= {f"{side}_table": rows[:, :-1], f"{side}_bias": rows[:, -1]}
    return {**found, "mean": float(model.mean)}


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in arrays.items()}


class TestBiasedMF(TrainableContract):
    refused = (
        ({"num_users": 0}, "`num_users` must be an integer of at least 1. Received: num_users=0."),
        ({"num_items": 2.5}, "`num_items` must be an integer of at least 1. Received: num_items=2.5."),
        ({"embedding_dim": 0}, "`embedding_dim` must be an integer of at least 1. Received: embedding_dim=0."),
        ({"l2_bias": -1}, "`l2_bias` must be a finite number of at least 0. Received: l2_bias=-1."),
        ({"l2_factors": "a"}, "`l2_factors` must be a finite number of at least 0. Received: l2_factors='a'."),
        (
            {"frequency_exponent": -0.5},
            "`frequency_exponent` must be a finite number of at least 0. Received: frequency_exponent=-0.5.",
        ),
    )

    def make(self) -> BiasedMF:
        return made(None)

    def query(self) -> dict[str, np.ndarray]:
        return QUERY

    def spec(self) -> dict[str, tf.TensorSpec]:
        return {**QUERY_SPEC, **{f"context_{name}": tf.TensorSpec([None], tf.int32) for name in CONTEXTS}}

    def loss(self, model: BiasedMF) -> tf.Tensor:
        return model.compute_loss(None, tf.constant(Y), model(tensors(X), training=True))


class TestCAMF(TestBiasedMF):
    refused = (
        *TestBiasedMF.refused,
        (
            {"contexts": {}},
            "`contexts` must give the number of conditions of at least one dimension. Received: contexts={}.",
        ),
        (
            {"contexts": {"time": 0}},
            "`contexts.time` must be an integer of at least 1. Received: contexts.time=0.",
        ),
        (
            {"deviation": "IC"},
            "`deviation` must be one of C, CI, CU, CUCI, low_rank. Received: deviation='IC'.",
        ),
        ({"l2_deviation": -1}, "`l2_deviation` must be a finite number of at least 0. Received: l2_deviation=-1."),
        ({"rank": 0}, "`rank` must be an integer of at least 1. Received: rank=0."),
    )

    def make(self) -> BiasedMF:
        return made("CUCI")


class TestCAMFLowRank(TestBiasedMF):
    refused = ()

    def make(self) -> BiasedMF:
        return made("low_rank")

    test_same_scores_in_a_fresh_process = None
    test_refuses_bad_arguments = None
    test_example_of_the_docstring_runs = None


every_deviation = pytest.mark.parametrize("deviation", [None, *DEVIATIONS])


@every_deviation
def test_forward_equals_numpy(deviation: str | None) -> None:
    model = made(deviation)
    w = weights(model)
    expected = [oracles.camf_rating(w, *row) for row in zip(X["user"], X["item"], COLUMNS, strict=True)]
    np.testing.assert_allclose(model(tensors(X)), expected, rtol=1e-5, atol=1e-6)
    expected = [
        [oracles.camf_rating(w, user, item, columns) for item in range(ITEMS)]
        for user, columns in zip(QUERY["user"], QUERY_COLUMNS, strict=True)
    ]
    np.testing.assert_allclose(model(tensors(QUERY)), expected, rtol=1e-5, atol=1e-5)


@every_deviation
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_loss_equals_numpy(deviation: str | None, exponent: float) -> None:
    l2 = {"l2_bias": 0.3, "l2_factors": 0.7, **({"l2_deviation": 0.9} if deviation else {})}
    model = made(deviation, frequency_exponent=exponent, **l2)
    counts = {
        "user": Counter(X["user"].tolist()),
        "item": Counter(X["item"].tolist()),
        "context": Counter(c for columns in COLUMNS for c in columns),
        "item_context": Counter((i, c) for i, cs in zip(X["item"].tolist(), COLUMNS, strict=True) for c in cs),
        "user_context": Counter((u, c) for u, cs in zip(X["user"].tolist(), COLUMNS, strict=True) for c in cs),
    }
    rows = list(zip(X["user"].tolist(), X["item"].tolist(), COLUMNS, Y, strict=True))
    expected = oracles.camf_loss(weights(model), rows, 0.3, 0.7, l2.get("l2_deviation", 0), exponent, counts)
    loss = model.compute_loss(None, tf.constant(Y), model(tensors(X), training=True))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    one = model.compute_loss(None, tf.constant(Y), model(tensors(X)), tf.constant([0, 0, 2, 0, 0, 0.0]))
    np.testing.assert_allclose(one, 2 * (Y[2] - oracles.camf_rating(weights(model), *rows[2][:3])) ** 2, rtol=1e-5)


@every_deviation
def test_a_step_changes_the_rows_of_the_batch_and_nothing_else(deviation: str | None) -> None:
    model = made(deviation)
    before = weights(model)
    model.compile(tf.keras.optimizers.Adagrad(0.4))
    batch = {name: values[:2] for name, values in X.items()}
    with tf.GradientTape() as tape:
        loss = model.compute_loss(None, tf.constant(Y[:2]), model(tensors(batch), training=True))
    for gradient in tape.gradient(loss, model.trainable_variables):
        assert isinstance(gradient, tf.IndexedSlices)
    model.train_on_batch(batch, Y[:2])
    cells = [(u, i, c) for u, i, cs in zip(batch["user"], batch["item"], COLUMNS, strict=False) for c in cs if c]
    touched = {
        "user": {2, 3},
        "item": {2},
        "context": {c for _, _, c in cells},
        "item_context": {(i, c) for _, i, c in cells},
        "user_context": {(u, c) for u, _, c in cells},
    }
    for name, value in weights(model).items():
        if name == "mean":
            continue
        part = {"context_table": "context"}.get(name, name.split("_")[0] if name not in touched else name)
        width = 2 if name in ("item_context", "user_context") else 1
        changed = (value != before[name]).reshape(*value.shape[:width], -1).any(axis=-1)
        rows = {tuple(map(int, row)) for row in np.argwhere(changed)}
        assert rows == {row if isinstance(row, tuple) else (int(row),) for row in touched[part]}, name


def fit(model: BiasedMF, x: dict[str, np.ndarray], y: np.ndarray, steps: int = 30) -> BiasedMF:
    model.fit_quickly(x, y, epochs=steps)
    return model


@every_deviation
def test_compiled_steps_are_those_of_keras(deviation: str | None) -> None:
    rng = np.random.default_rng(0)
    limits = {"user": (2, 6), "item": (2, 5), "context_time": (0, 3), "context_place": (-1, 5)}
    x = {name: rng.integers(*bounds, 50).astype(np.int32) for name, bounds in limits.items()}
    y = rng.integers(1, 6, 50).astype(np.float32)
    quick, keras = made(deviation), made(deviation)
    before = [weight.numpy() for weight in quick.trainable_variables]
    quick.fit_quickly(x, y, epochs=3, batch_size=16, learning_rate=0.2, seed=7)
    keras.adapt(x, y)
    keras.compile(tf.keras.optimizers.Adagrad(0.2), run_eagerly=True)
    order = np.random.default_rng(7)
    for _ in range(3):
        rows = order.permutation(50)
        for part in np.split(rows, [16, 32, 48]):
            keras.train_on_batch({name: values[part] for name, values in x.items()}, y[part])
    for found, expected, start in zip(quick.trainable_variables, keras.trainable_variables, before, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5, err_msg=found.name)
        assert not np.allclose(found, start), found.name


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_what_is_not_known_adds_exactly_nothing_after_training(deviation: str) -> None:
    model = CAMF(USERS, ITEMS, CONTEXTS, deviation)
    fit(model, X, Y)
    pairs = {"user": tf.constant([2, 3]), "item": tf.constant([2, 3])}
    plain = model(pairs).numpy()
    for time, place in ((0, 0), (3, 4), (-1, 99)):
        context = {"context_time": tf.constant([time] * 2), "context_place": tf.constant([place] * 2)}
        np.testing.assert_array_equal(model({**pairs, **context}), plain)
    known = {"context_time": tf.constant([1, 2]), "context_place": tf.constant([3, 1])}
    assert np.abs(model({**pairs, **known}).numpy() - plain).min() > 1e-3


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_a_condition_that_training_never_had_adds_exactly_nothing(deviation: str) -> None:
    x = {**X, "context_place": np.array([3, 0, 1, 0, 3, 1], np.int32)}
    model = fit(CAMF(USERS, ITEMS, CONTEXTS, deviation), x, Y)
    terms = model.explain([2, 4], [2, 4], {"place": 2})
    assert all(np.all(values == 0) for name, values in terms.items() if name.endswith("place"))
    assert any(np.any(values != 0) for name, values in model.explain(2, 2, {"place": 3}).items() if "place" in name)


@every_deviation
def test_explain_adds_up(deviation: str | None) -> None:
    model = made(deviation)
    terms = model.explain(X["user"], X["item"], {name: X[f"context_{name}"] for name in CONTEXTS if deviation})
    np.testing.assert_allclose(tf.add_n(list(terms.values())), model(tensors(X)), rtol=1e-5, atol=1e-6)
    parts = {None: [], "C": ["context"], "CI": ["item_context"], "CU": ["user_context"]}
    both = ["item_context", "user_context"]
    named = {**parts, "CUCI": both, "low_rank": ["context", *both]}[deviation]
    assert list(terms) == ["mean", "user", "item", "factors", *(f"{p}_{d}" for p in named for d in CONTEXTS)]


def test_explain_by_hand() -> None:
    model = CAMF(3, 3, {"companion": 2}, "CI", embedding_dim=1)
    model.mean.assign(3.5)
    model.item_bias.assign([0, 0, 0.25])
    model.item_context.assign([0, 0, 0] * 2 + [0, 0.5, -1.0])  # item 2: with the first condition + 0.5
    model.user_table.assign([[0], [0], [2]])
    model.item_table.assign([[0], [0], [0.5]])
    terms = {name: value.numpy().item() for name, value in model.explain(2, 2, {"companion": 2}).items()}
    assert terms == {"mean": 3.5, "user": 0, "item": 0.25, "factors": 1, "item_context_companion": -1}


def test_evaluate_gives_rmse_and_mae_that_are_not_clipped_and_prediction_clips_by_argument() -> None:
    model = BiasedMF(3, 3, embedding_dim=1)
    model.mean.assign(4.0)
    model.user_bias.assign([0, 0, 3.0])
    model.item_table.assign(tf.zeros([3, 1]))
    model.compile(tf.keras.optimizers.Adagrad(0.1))
    x = {"user": np.array([2, 0]), "item": np.array([0, 0])}
    found = model.evaluate(x, np.array([5.0, 4.0], np.float32), verbose=0, return_dict=True)
    assert found == {"loss": 2.0, "rmse": pytest.approx(2**0.5), "mae": 1.0}  # errors 2 and 0
    np.testing.assert_array_equal(model.predict_rating(tensors(x)), [7, 4])
    np.testing.assert_array_equal(model.predict_rating(tensors(x), clip=(1, 5)), [5, 4])


def test_rows_without_a_rating_predict_what_is_known() -> None:
    model = fit(made("CUCI"), X, Y)
    unknown = {"user": tf.constant([1, 2, 1]), "item": tf.constant([2, 1, 1])}
    fresh = CAMF(USERS, ITEMS, CONTEXTS, "CUCI")
    fit(fresh, X, Y)
    mean, b_u, b_i = float(fresh.mean), fresh.user_bias.numpy(), fresh.item_bias.numpy()
    np.testing.assert_allclose(fresh(unknown), [mean + b_i[2], mean + b_u[2], mean], rtol=1e-6)
    assert mean == pytest.approx(19 / 6)
    assert not np.allclose(model(unknown), fresh(unknown))  # the first kept random biases where nothing was rated


def test_refuses_what_is_no_rating() -> None:
    model = made()
    for bad in (np.array([1.0, np.nan]), np.array([])):
        with pytest.raises(
            ShortlistError, match=r"^`ratings` must be finite numbers, at least one\. Received: ratings="
        ):
            model.adapt({name: values[: len(bad)] for name, values in X.items()}, bad)


def planted(effect: str, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Every user rates every item in every context: the inputs, the ratings, and the centred effect `[U, I, 6]`."""
    users, items = 8, 7
    rng = np.random.default_rng(seed)
    grid = [axis.ravel() for axis in np.meshgrid(*map(np.arange, (users, items, 3, 2)), indexing="ij")]
    user, item, time, place = grid
    by_item, by_user = rng.normal(0, 0.7, (items, 5)), rng.normal(0, 0.7, (users, 5))
    overall = np.tile(rng.normal(0, 0.7, 5), (users, items, 1))
    table = {"C": overall, "CI": overall * 0 + by_item, "CU": overall * 0 + by_user[:, np.newaxis]}
    table["CUCI"] = table["CI"] + table["CU"]
    deviation = table[effect][user, item, time] + table[effect][user, item, 3 + place]
    rating = 3.5 + rng.normal(0, 0.5, users)[user] + rng.normal(0, 0.5, items)[item] + deviation
    rating += rng.normal(0, 0.05, len(rating))
    x = {"user": user, "item": item, "context_time": time + 1, "context_place": place + 1}
    cells = deviation.reshape(users, items, 6)
    return {n: v.astype(np.int32) for n, v in x.items()}, rating, cells - cells.mean(axis=2, keepdims=True)


@pytest.fixture(scope="module")
def recovery() -> dict[tuple[str, str], np.ndarray]:
    """By planted effect and variant: the RMSE of the centred sum of deviations, one for each of 20 seeds."""
    pairs = [("C", "C"), ("CI", "CI"), ("CU", "CU"), ("CUCI", "CUCI"), ("CI", "C"), ("CU", "CI"), ("CI", "CU")]
    found = {}
    for variant in dict.fromkeys(variant for _, variant in pairs):
        l2 = {"l2_bias": 0.01, "l2_factors": 2.0, "l2_deviation": 0.02, "frequency_exponent": 0.0}
        model = CAMF(8, 7, {"time": 3, "place": 2}, variant, embedding_dim=2, **l2)
        start = model.get_weights()
        for effect in (effect for effect, own in pairs if own == variant):
            errors = []
            for seed in range(20):
                model.set_weights(start)
                x, y, expected = planted(effect, seed)
                model.fit_quickly(x, y, epochs=120)
                context = {name: x[f"context_{name}"] for name in ("time", "place")}
                terms = model.explain(x["user"], x["item"], context)
                total = sum(value.numpy() for name, value in terms.items() if "context" in name).reshape(expected.shape)
                errors.append(np.sqrt(np.mean((total - total.mean(axis=2, keepdims=True) - expected) ** 2)))
            found[effect, variant] = np.array(errors)
    return found


@pytest.mark.parametrize("effect", ["C", "CI", "CU", "CUCI"])
def test_the_matching_variant_recovers_what_was_planted(recovery: Any, effect: str) -> None:
    assert recovery[effect, effect].max() < 0.05


@pytest.mark.parametrize(("effect", "variant"), [("CI", "C"), ("CU", "CI"), ("CI", "CU")])
def test_a_variant_that_cannot_express_it_does_worse(recovery: Any, effect: str, variant: str) -> None:
    worse = recovery[effect, variant] - recovery[effect, effect]
    assert worse.mean() - 2.1 * worse.std(ddof=1) / 20**0.5 > 0.2


@settings(max_examples=8)
@given(st.data())
def test_a_dimension_that_is_never_known_and_the_order_of_dimensions_change_nothing(data: st.DataObject) -> None:
    deviation = data.draw(st.sampled_from(DEVIATIONS))
    order = data.draw(st.permutations(["time", "place", "mood"]))
    seed = data.draw(st.integers(0, 5))
    x = {**X, "context_mood": np.zeros(6, np.int32)}
    answers = []
    for names in (["time", "place"], order):
        tf.keras.utils.set_random_seed(seed)
        sizes = {name: {**CONTEXTS, "mood": 4}[name] for name in names}
        model = fit(CAMF(USERS, ITEMS, sizes, deviation, embedding_dim=3), x, Y, steps=3)
        answers.append(model(tensors(x)).numpy())
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-5, atol=1e-5)
    assert np.ptp(answers[0]) > 0.1
