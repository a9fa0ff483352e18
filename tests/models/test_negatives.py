"""The losses over sampled negatives: logits, loss and one step against NumPy, what is drawn, and what they are for."""

from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.models._negatives import IN_BATCH, MASKED, SOFTMAX, CatalogueSoftmax, StreamingFrequency
from shortlist.models.two_tower import TwoTower

ITEMS, DIM, NEGATIVES, RATE = 9, 3, 4, 0.1
COUNTS = np.array([0, 0, 5e7, 1, 30, 0, 2, 9e6, 4])  # item 3 is a label once in 59 million
HISTORY = np.array([2, 3, 2, 7], np.int32)
LABEL = np.array([4, 7, 4, 3], np.int32)
SAMPLED = np.array([3, 8, 8, 4], np.int32)
WEIGHT = np.array([1, 2, 0.5, 0], np.float32)


def made(softmax: str, log_q: str = "counts", **arguments: Any) -> TwoTower:
    """Two tables alone, so that ψ is a row of one and v of the other; what is drawn is `SAMPLED`."""
    settings = {"hard_share": 0.5, "hard_warmup": 0, "hard_refresh": 2, **arguments}
    model = TwoTower(ITEMS, embedding_dim=DIM, softmax=softmax, negatives=NEGATIVES, log_q=log_q, **settings)
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))
    model.set_label_counts(np.maximum(COUNTS, [0, 0, 1, 1, 1, 1, 1, 1, 1]))
    model.loss_layer.draw = lambda shape: tf.constant(SAMPLED[: shape[-1]])
    model.compile(tf.keras.optimizers.SGD(RATE))
    return model


def batch() -> dict[str, tf.Tensor]:
    arrays = {"history": HISTORY[:, np.newaxis], "label": LABEL, "weight": WEIGHT}
    return {name: tf.constant(value) for name, value in arrays.items()}


def hardest(psi: np.ndarray, vectors: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-(psi @ vectors[2:].T), axis=1)[:, :count] + 2


def expected(softmax: str, psi: np.ndarray, vectors: np.ndarray, log_q: str, hard: np.ndarray | None) -> tuple:
    counts = np.maximum(COUNTS, [0, 0, 1, 1, 1, 1, 1, 1, 1])
    q = np.zeros(ITEMS) if log_q == "none" else oracles.log_q(softmax, counts, 4, NEGATIVES, 0.75)
    shared = {"in_batch": 0, "hard": NEGATIVES // 2}.get(softmax, NEGATIVES)
    return oracles.sampled_logits(softmax, psi, vectors, LABEL, q, SAMPLED[:shared], hard)


def grouped(row: list[float], items: list[int], alone: int) -> list[float]:
    """The logits of the different items in the order in which they come; the last `alone` ones as they are."""
    shared, found = len(items) - alone, {}
    for item, logit in zip(items[:shared], row[:shared], strict=True):
        found.setdefault(int(item), []).append(logit)
    return [float(np.logaddexp.reduce(values)) for values in found.values()] + row[shared:]


@pytest.mark.parametrize("log_q", ["counts", "none"])
@pytest.mark.parametrize("softmax", SOFTMAX)
def test_logits_loss_and_a_step_equal_numpy(softmax: str, log_q: str) -> None:
    model = made(softmax, log_q)
    users, vectors = (t.numpy().astype(np.float64) for t in (model.history_table, model.candidate_table))
    psi = users[HISTORY]
    hard = hardest(psi, vectors, NEGATIVES // 2) if softmax == "hard" else None
    logits, items, own = expected(softmax, psi, vectors, log_q, hard)
    masked = sum(np.isneginf(row).sum() for row in logits)
    # Label 4 twice in the batch, and the labels 4, 4 and 3 among what was drawn; of `hard` half is not drawn.
    assert masked >= {"in_batch": 2, "uniform": 3, "popularity": 3, "mixed": 5, "hard": 3}.get(softmax, 0)

    model.loss_layer.hard_refresh = 100
    found, place = model.loss_layer.logits(tf.constant(psi, tf.float32), tf.constant(LABEL), model.embed_items)
    shown = logits
    if softmax in IN_BATCH:  # 4, 7 and 3 are the labels' columns, whatever else is drawn
        alone = NEGATIVES // 2 if softmax == "hard" else 0
        shown, own = [grouped(*one, alone) for one in zip(logits, items, strict=True)], [0, 1, 0, 2]
    np.testing.assert_array_equal(place, own)
    right = np.array([row[column] for row, column in zip(shown, own, strict=True)])
    offset = right - found.numpy()[np.arange(4), own]
    np.testing.assert_allclose(offset, np.full(4, offset[0]), atol=1e-4)  # Q is known up to a constant
    np.testing.assert_allclose(found, np.maximum(np.array(shown) - offset[0], MASKED), rtol=1e-4, atol=1e-4)

    if softmax == "hard":
        model.loss_layer.step.assign(0)
    logits, items, own = expected(softmax, psi, vectors, log_q, hard)
    loss, by_psi, by_vector = oracles.softmax_step(psi, vectors, logits, items, own, WEIGHT)
    np.testing.assert_allclose(model.train_step(batch())["loss"], loss, rtol=1e-4)
    np.add.at(users, HISTORY, -RATE * by_psi)
    np.testing.assert_allclose(model.history_table, users, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.candidate_table, vectors - RATE * by_vector, rtol=1e-4, atol=1e-5)


def test_weights_of_one_change_nothing() -> None:
    model = made("mixed")
    one, without = {**batch(), "weight": tf.ones(4)}, {k: v for k, v in batch().items() if k != "weight"}
    np.testing.assert_array_equal(model.compute_loss(one), model.compute_loss(without))


def test_hard_negatives_wait_for_the_warm_up_and_come_from_an_index_that_is_refreshed() -> None:
    model = made("hard", hard_warmup=1, hard_refresh=2)
    layer, psi = model.loss_layer, tf.constant(np.random.default_rng(2).normal(size=(4, DIM)), tf.float32)
    layer.draw = lambda shape: tf.fill(shape, 5)
    tables = [np.random.default_rng(n).normal(size=(ITEMS, DIM)).astype(np.float32) for n in range(4)]
    found = []
    for table in tables:
        model.candidate_table.assign(table)
        found.append(layer.hardest(psi, model.embed_items).numpy())
    np.testing.assert_array_equal(found[0], np.full((4, 2), 5))
    np.testing.assert_array_equal(found[1], hardest(psi.numpy(), tables[1], 2))  # made at step 1
    np.testing.assert_array_equal(found[2], hardest(psi.numpy(), tables[1], 2))  # one step old
    np.testing.assert_array_equal(found[3], hardest(psi.numpy(), tables[3], 2))  # made anew at step 3


def test_hard_negatives_of_a_small_catalogue_are_all_of_it() -> None:
    layer = CatalogueSoftmax(4, DIM, "hard", negatives=100, hard_share=0.5, hard_warmup=0)
    found = layer.hardest(tf.ones([2, DIM]), lambda items, training: tf.ones([tf.size(items), DIM]))
    np.testing.assert_array_equal(found, [[2, 3], [2, 3]])


def test_what_is_drawn() -> None:
    """10,000 draws: the standard deviation of a share is at most .005."""
    tf.random.set_seed(0)
    uniform = CatalogueSoftmax(6, 2, "uniform")
    share = np.bincount(uniform.draw([10_000]), minlength=6) / 10_000
    np.testing.assert_allclose(share, [0, 0, 0.25, 0.25, 0.25, 0.25], atol=0.02)
    popular = CatalogueSoftmax(6, 2, "popularity", popularity_power=0.5)
    popular.set_counts([3, 7, 16, 1, 25, 9])  # the reserved rows are never drawn, whatever their counts
    share = np.bincount(popular.draw([10_000]), minlength=6) / 10_000
    np.testing.assert_allclose(share, np.array([0, 0, 4, 1, 5, 3]) / 13, atol=0.02)
    popular.set_counts(np.array([0, 0, 1, 0, 0, 0]) * 1e12)
    assert set(popular.draw([1000]).numpy()) == {2}


def test_refuses_counts_of_another_catalogue() -> None:
    with pytest.raises(ShortlistError) as error:
        CatalogueSoftmax(8, 2).set_counts(np.ones(7))
    assert str(error.value) == "`counts` must be one number for each of the 8 items. Received: shape=(7,)."


# --- the streaming estimate -----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(2, 12), min_size=1, max_size=6), min_size=1, max_size=6), st.integers(1, 5))
def test_streaming_frequencies_equal_the_loop(batches: list[list[int]], buckets: int) -> None:
    layer = StreamingFrequency(buckets, hashes=3, rate=0.3, first_gap=7.0)
    for items in batches:
        layer.update(tf.constant(items))
    places = {i: column for i, column in enumerate(layer.places(tf.range(13)).numpy().T.tolist())}
    for column in places.values():
        assert [place // buckets for place in column] == [0, 1, 2]
    gaps = oracles.streaming_gaps(batches, places, 0.3, 7.0)
    expected = [-np.log(max(gaps.get(place, 7.0) for place in places[i])) for i in range(13)]
    np.testing.assert_allclose(layer(tf.range(13)), expected, rtol=1e-5, atol=1e-6)


def test_streaming_frequencies_come_near_the_true_ones() -> None:
    """Items 2 to 21 are in a batch with the probability i / 25; one hash function of 32 buckets mixes some up."""
    rng, chance = np.random.default_rng(0), np.arange(2, 22) / 25
    layers = [StreamingFrequency(32, hashes, rate=0.03, first_gap=10.0) for hashes in (1, 5)]
    update = tf.function(lambda items: [layer.update(items) for layer in layers], reduce_retracing=True)
    for _ in range(800):
        update(tf.constant(2 + np.flatnonzero(rng.random(20) < chance)))
    one, several = (np.abs(layer(tf.range(2, 22)).numpy() - np.log(chance)) for layer in layers)
    assert one.max() > 0.5
    assert several.max() < 0.5
    assert several.mean() < 0.15


def test_streaming_logits_use_the_estimate_of_this_batch_and_only_training_counts() -> None:
    model = made("in_batch", "streaming")
    layer = model.loss_layer.streaming
    before = layer.gap.numpy()
    model.compute_loss(batch())
    np.testing.assert_array_equal(layer.gap, before)
    loss = model.compute_loss(batch(), training=True)
    assert layer.step == 1
    vectors = model.candidate_table.numpy().astype(np.float64)
    psi = model.history_table.numpy().astype(np.float64)[HISTORY]
    q = np.zeros(ITEMS)
    q[[3, 4, 7]] = -np.log(0.95 * 100 + 0.05 * 1)  # first gap 100, rate .05, one step since step 0
    logits = oracles.sampled_logits("in_batch", psi, vectors, LABEL, q)
    np.testing.assert_allclose(loss, oracles.softmax_step(psi, vectors, *logits, WEIGHT)[0], rtol=1e-5)


def test_refuses_a_bad_rate() -> None:
    with pytest.raises(ShortlistError) as error:
        StreamingFrequency(rate=0.0)
    assert str(error.value) == "`rate` must be in (0, 1]. Received: rate=0.0."


@pytest.mark.parametrize("layer", [StreamingFrequency(8, 2, 0.5, 3.0)])
def test_layers_survive_their_config(layer: StreamingFrequency) -> None:
    again = type(layer).from_config(layer.get_config())
    assert (again.buckets, again.hashes, again.rate, again.first_gap) == (8, 2, 0.5, 3.0)


def test_without_negatives_groups_that_nobody_mixes_fold_and_negatives_cure_it() -> None:
    """Eight groups of ten items and twenty users each, in two dimensions: who watches one group gets no other."""
    groups, items, users, each = 8, 10, 20, 6
    rng = np.random.default_rng(0)
    group = np.arange(groups * users) % groups
    watched = rng.permuted(np.tile(np.arange(items), (len(group), 1)), axis=1)[:, :each] + group[:, np.newaxis] * items
    watched = (watched + 2).astype(np.int32)
    shares = {}
    for softmax in ("positives_only", "in_batch", "full"):
        tf.keras.utils.set_random_seed(0)
        model = TwoTower(groups * items + 2, embedding_dim=2, history_length=each, softmax=softmax)
        model.compile(tf.keras.optimizers.Adagrad(0.1))
        batch = {"history": watched[:, :-1], "label": watched[:, -1]}
        model.fit(tf.data.Dataset.from_tensors(batch).repeat(300), verbose=0)
        scores = model.score_items({"history": tf.constant(watched)}).numpy()[:, 2:]
        best = np.argsort(-scores, axis=1)[:, :5] // items
        shares[softmax] = (best != group[:, np.newaxis]).mean()
    assert shares["positives_only"] > 0.4  # 0.875 by chance
    assert shares["in_batch"] < 0.1
    assert shares["full"] < 0.1
