"""PostFilter by hand and against a loop; on planted data it finds who watches what when; saved, served, refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from model_contract import ModelContract

from shortlist import ShortlistError
from shortlist.models._base import query_spec
from shortlist.models._nested import described
from shortlist.models._post_filter import PostFilter
from shortlist.models.popularity import Popularity
from shortlist.models.post_filter import PostFiltered

CONTEXTS = {"day": 2, "place": 3}
ATTRIBUTES = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]], float)


def watched(seed: int = 0, rows: int = 60) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = {"user": (0, 5), "item": (2, 6), "context_day": (0, 3), "context_place": (0, 4)}
    return {name: rng.integers(*limits, rows) for name, limits in drawn.items()}


def made(**arguments: Any) -> PostFilter:
    layer = PostFilter(**{"num_users": 6, "num_items": 6, "num_attributes": 3, "contexts": CONTEXTS, **arguments})
    layer.adapt(watched(), ATTRIBUTES)
    return layer


def share_by_loop(user: int, conditions: dict[str, int], attribute: int, m: float) -> float:
    """The geometric mean over the known dimensions of P(a | u, c)."""
    x = watched()
    has = ATTRIBUTES[x["item"], attribute]
    known = {name: c for name, c in conditions.items() if 1 <= c <= CONTEXTS[name]}
    product = 1.0
    for name, condition in known.items():
        all_there = x[f"context_{name}"] == condition
        own = all_there & (x["user"] == user)
        everybody = (has[all_there].sum() + m * has.mean()) / (all_there.sum() + m)
        product *= (has[own].sum() + m * everybody) / (own.sum() + m)
    return product ** (1 / len(known)) if known else 1.0


@pytest.mark.parametrize("smoothing", [0.5, 10.0])
def test_shares_are_those_of_a_loop(smoothing: float) -> None:
    cases = [(0, 1, 3), (1, 2, 0), (4, 0, 2), (5, 1, 1), (2, 0, 0), (3, 9, -1)]  # user 5 watched nothing
    user, day, place = map(tf.constant, zip(*cases, strict=True))
    found = made(smoothing=smoothing).shares({"user": user, "context_day": day, "context_place": place})
    expected = [[share_by_loop(u, {"day": d, "place": p}, a, smoothing) for a in range(3)] for u, d, p in cases]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.ptp(expected) > 0.2


def one(mode: str, **arguments: Any) -> PostFilter:
    """Everybody watches item 3 on the first day, and item 2 on the second."""
    layer = PostFilter(2, 6, 3, {"day": 2}, mode, **arguments)
    seen = {"user": np.zeros(8, int), "item": np.array([3] * 4 + [2] * 4), "context_day": np.array([1] * 4 + [2] * 4)}
    layer.adapt(seen, ATTRIBUTES)
    return layer


def test_weights_by_hand() -> None:
    """Before: P = ½ each; on the first day (0 + 2·½)/(4 + 2) = 1/6 and 5/6 of everybody, 2/36 and 34/36 of user 0."""
    layer = one("weight", smoothing=2.0)
    query = {"user": tf.constant([0, 1, 0]), "context_day": tf.constant([1, 1, 0])}
    items = tf.constant([[2, 3, 4, 5, 0]] * 3)
    scores = tf.constant([[1.0, 0.5, 1.0, 1.0, 7.0]] * 3)
    np.testing.assert_allclose(layer.fit(query, items)[0, :4], [2 / 36, 34 / 36, 1 / 36, 0.5], rtol=1e-5)
    np.testing.assert_allclose(layer.fit(query, items)[1, :4], [1 / 6, 5 / 6, 1 / 12, 0.5], rtol=1e-5)
    found, weighted = layer(query, items, scores)
    np.testing.assert_array_equal(found, [[5, 3, 2, 4, 0], [5, 3, 2, 4, 0], [2, 4, 5, 3, 0]])
    np.testing.assert_allclose(weighted[0], [0.5, 17 / 36, 1 / 18, 1 / 36, -np.inf], rtol=1e-5)
    np.testing.assert_allclose(weighted[2], [1, 1, 1, 0.5, -np.inf])


def test_negative_scores_are_lifted_before_they_are_weighted() -> None:
    layer = one("weight", smoothing=2.0)
    query = {"user": tf.constant([1]), "context_day": tf.constant([1])}
    items, scores = layer(query, tf.constant([[2, 3, 5]]), tf.constant([[-1.0, -2.0, -5.0]]))
    np.testing.assert_array_equal(items, [[3, 2, 5]])
    np.testing.assert_allclose(scores, [[3 * 5 / 6, 4 / 6, 0]], rtol=1e-5)


def test_filter_cuts_what_does_not_fit_and_keeps_the_order() -> None:
    layer = one("filter", smoothing=2.0, threshold=0.5)
    query = {"user": tf.constant([0, 0, 0]), "context_day": tf.constant([1, 2, 0])}
    items, scores = layer(query, tf.constant([[2, 3, 5]] * 3), tf.constant([[0.3, 0.2, 0.1]] * 3))
    np.testing.assert_array_equal(items, [[3, 5, 0], [2, 5, 0], [2, 3, 5]])
    np.testing.assert_allclose(scores, [[0.2, 0.1, -np.inf], [0.3, 0.1, -np.inf], [0.3, 0.2, 0.1]])


def test_on_planted_data_the_context_decides_what_is_watched() -> None:
    """Half of the users watch films of the first kind on day 1, the others on day 2; scores know nothing of days."""
    rng = np.random.default_rng(0)
    users, items, rows = 40, 62, 2000
    attributes = np.zeros((items, 2))
    attributes[2:, 0], attributes[2:, 1] = np.arange(60) % 2, 1 - np.arange(60) % 2
    user, day = rng.integers(0, users, rows), rng.integers(1, 3, rows)
    kind = np.where(rng.random(rows) < 0.9, (user + day) % 2, rng.integers(0, 2, rows))
    item = 2 + 2 * rng.integers(0, 30, rows) + (kind == 0)
    layer = PostFilter(users, items, 2, {"day": 2})
    layer.adapt({n: v[:1600] for n, v in (("user", user), ("item", item), ("context_day", day))}, attributes)
    scores = tf.constant(rng.random((400, items)), tf.float32)
    query = {"user": tf.constant(user[1600:]), "context_day": tf.constant(day[1600:])}
    shortlist = tf.tile(tf.range(items)[tf.newaxis], [400, 1])
    ranked, _ = layer(query, shortlist, scores)
    hit = (ranked.numpy()[:, :10] == item[1600:, np.newaxis]).any(axis=1)
    plain = (np.argsort(-scores.numpy()[:, 2:], axis=1)[:, :10] + 2 == item[1600:, np.newaxis]).any(axis=1)
    difference = hit.astype(float) - plain
    assert difference.mean() - 1.96 * difference.std() / 20 > 0.05
    kept = PostFilter.from_config({**layer.get_config(), "mode": "filter", "threshold": 0.5})
    kept.adapt({n: v[:1600] for n, v in (("user", user), ("item", item), ("context_day", day))}, attributes)
    cut, _ = kept(query, shortlist, scores)
    assert (cut.numpy() > 0).sum(axis=1).mean() == pytest.approx(30, abs=3)


def test_saved_and_served_it_answers_the_same(tmp_path: Path) -> None:
    layer = made()
    query = {"user": tf.constant([0, 5]), "context_day": tf.constant([1, 0]), "context_place": tf.constant([2, 0])}
    items, scores = tf.constant([[2, 3, 4]] * 2), tf.constant([[1.0, 2.0, 3.0]] * 2)
    expected = [x.numpy() for x in layer(query, items, scores)]
    assert expected[0][0].tolist() != expected[0][1].tolist()

    config, build = layer.get_config(), layer.get_build_config()
    again = PostFilter.from_config(config)
    again.build_from_config(build)
    again.set_weights(layer.get_weights())
    module = tf.Module()
    module.layer = layer
    spec = {name: tf.TensorSpec([None], tf.int32) for name in query}
    lists = [tf.TensorSpec([None, None], kind) for kind in (tf.int32, tf.float32)]
    module.rank = tf.function(lambda q, i, s: layer(q, i, s), input_signature=[spec, *lists])
    tf.saved_model.save(module, str(tmp_path / "served"))
    served = tf.saved_model.load(str(tmp_path / "served"))
    for found in (again(query, items, scores), served.rank(query, items, scores)):
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_array_equal(x, y)


def test_nothing_known_in_training_changes_nothing() -> None:
    layer = PostFilter(2, 6, 3, {"day": 2})
    layer.adapt({"user": np.array([0]), "item": np.array([2]), "context_day": np.array([0])}, ATTRIBUTES)
    query = {"user": tf.constant([0]), "context_day": tf.constant([1])}
    np.testing.assert_allclose(layer.shares(query), [[1, 0, 0]], atol=1e-6)  # of everybody, whatever the day
    items, _ = layer({"user": tf.constant([0])}, tf.constant([[3, 2]]), tf.constant([[2.0, 1.0]]))
    np.testing.assert_array_equal(items, [[3, 2]])


def test_what_is_refused() -> None:
    for bad, message in (
        ({"mode": "cut"}, "`mode` must be one of weight, filter. Received: mode='cut'."),
        ({"smoothing": 0}, "`smoothing` must be above 0. Received: smoothing=0."),
        ({"threshold": 2}, "`threshold` must be in [0, 1]. Received: threshold=2."),
        ({"num_items": 0}, "`num_items` must be an integer of at least 1. Received: num_items=0."),
        ({"contexts": {"day": 0}}, "`contexts.day` must be an integer of at least 1. Received: contexts.day=0."),
    ):
        with pytest.raises(ShortlistError) as error:
            PostFilter(**{"num_users": 1, "num_items": 1, "num_attributes": 1, "contexts": {"day": 1}, **bad})
        assert str(error.value) == message
    layer = PostFilter(1, 6, 3, {"day": 1})
    with pytest.raises(ShortlistError) as error:
        layer.shares({"user": tf.constant([0])})
    assert str(error.value) == "`PostFilter` must be adapted before it is called. Received: adapted=False."
    nobody = {"user": np.zeros(0, int), "item": np.zeros(0, int)}
    with pytest.raises(ShortlistError, match=r"^`inputs` must hold at least one positive\. Received: positives=0\.$"):
        layer.adapt(nobody, ATTRIBUTES)
    with pytest.raises(ShortlistError, match=r"^`attributes` must be \[6, 3\]\. Received: shape=\(2, 3\)\.$"):
        layer.adapt(watched(), ATTRIBUTES[:2])


# --- as a retriever ---------------------------------------------------------------------------------------------------

BASE = np.array([0, 0, 5.0, 4, 3, 2])  # how often each item is watched


def retriever(**arguments: Any) -> PostFiltered:
    base = Popularity(num_items=6)
    base.fit(np.repeat(np.arange(6), BASE.astype(int)))
    sizes = {"num_users": 6, "num_items": 6, "num_attributes": 3, "contexts": CONTEXTS, "base": described(base)}
    model = PostFiltered(**{**sizes, "candidates": 3, "smoothing": 2.0, **arguments})
    model.adapt(base, watched(), ATTRIBUTES)
    return model


def asked() -> dict[str, np.ndarray]:
    history = np.array([[0, 0], [3, 0], [2, 5], [0, 0]])
    conditions = {"context_day": np.array([1, 2, 0, 9]), "context_place": np.array([3, 0, 1, 0])}
    return {
        "user": np.array([0, 4, 2, 3]),
        "history": history,
        "history_time": history,
        "time": np.zeros(4),
    } | conditions


class TestPostFiltered(ModelContract):
    leaves_out = True
    refused = (
        ({"candidates": 0}, "`candidates` must be an integer of at least 1. Received: candidates=0."),
        ({"mode": "both"}, "`mode` must be one of weight, filter. Received: mode='both'."),
        ({"base": "{}"}, "`base` must be what `described` makes of a fitted retriever. Received: base='{}'."),
    )

    def make(self) -> PostFiltered:
        return retriever()

    def query(self) -> dict[str, np.ndarray]:
        return asked()

    def spec(self) -> dict[str, tf.TensorSpec]:
        return query_spec({f"context_{name}": "category" for name in CONTEXTS})


@pytest.mark.parametrize("candidates", [1, 3, 50])
@pytest.mark.parametrize("mode", ["weight", "filter"])
def test_it_is_the_others_shortlist_by_its_fit(mode: str, candidates: int) -> None:
    model = retriever(mode=mode, candidates=candidates, threshold=0.3)
    query = {name: tf.constant(value, tf.int32) for name, value in asked().items()}
    expected = np.full((4, 6), -np.inf)
    for n in range(4):
        one = {name: value[n : n + 1] for name, value in query.items()}
        best = sorted(set(range(2, 6)) - set(asked()["history"][n].tolist()), key=lambda i: -BASE[i])[:candidates]
        fit = model.layer.fit(one, tf.constant([best]))[0].numpy()
        known = n < 3  # the last has conditions that there aren't
        for item, own in zip(best, fit, strict=True):
            if mode == "weight":
                expected[n, item] = BASE[item] * (own if known else 1)
            elif own >= 0.3:
                expected[n, item] = BASE[item]
    np.testing.assert_allclose(model.score_items(query), expected, rtol=1e-5)
    assert mode == "filter" or len(np.unique(expected[np.isfinite(expected)])) > 3
