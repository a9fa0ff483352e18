"""Similar users against a loop over users and events, and what a title that spreads looks like."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
from model_contract import ModelContract

from shortlist import ShortlistError
from shortlist.models._nested import described
from shortlist.models.ease import EASE
from shortlist.models.similar_users import SimilarUsers
from shortlist.models.wals import WALS

DAY = 86_400
USERS, ITEMS, NOW = 9, 14, 40 * DAY


def base() -> WALS:
    seen = np.random.default_rng(0).random((USERS, ITEMS)) < 0.4
    seen[:2], seen[:, :2] = 0, 0
    model = WALS(embedding_dim=3, seed=2)
    model.fit(tf.sparse.from_dense(seen.astype(np.float32)), epochs=3, verbose=0)
    return model


def histories() -> dict[str, np.ndarray]:
    """Of users 2 to 7 in any order; user 8 is known to nobody."""
    rng = np.random.default_rng(1)
    length = np.array([5, 1, 3, 5, 4, 2])
    history = rng.integers(2, ITEMS, (6, 5)) * (np.arange(5) < length[:, np.newaxis])
    times = np.sort(rng.integers(0, 60 * DAY, (6, 5)), axis=1) * (history > 0)
    return {"user": np.array([5, 2, 3, 7, 4, 6]), "history": history, "history_time": times, "time": np.full(6, NOW)}


def fitted(model: WALS, length: int = 3, **settings: float) -> SimilarUsers:
    found = SimilarUsers(ITEMS, described(model), **{"neighbours": 3, "half_life_days": 9.0, **settings})
    every = histories()
    found.fit([{n: v[:4] for n, v in every.items()}, {n: v[4:] for n, v in every.items()}], model, length)
    return found


def asked(**changes: np.ndarray) -> dict[str, np.ndarray]:
    history = np.array([[2, 5, 7, 5], [11, 0, 0, 0], [0, 0, 0, 0], [3, 1, 4, 0]])
    time = np.array([NOW, 20 * DAY, NOW, 90 * DAY])
    return {"user": np.array([5, 1, 0, 4]), "history": history, "history_time": history, "time": time, **changes}


def tensors(query: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    kind = {"user": tf.int32, "history": tf.int32}
    return {name: tf.constant(value, kind.get(name, tf.int64)) for name, value in query.items()}


class TestSimilarUsers(ModelContract):
    leaves_out = True
    refused = (
        ({"num_items": 0}, "`num_items` must be an integer of at least 1. Received: num_items=0."),
        ({"neighbours": 0}, "`neighbours` must be an integer of at least 1. Received: neighbours=0."),
        ({"half_life_days": 0}, "`half_life_days` must be above 0. Received: half_life_days=0.0."),
        ({"base": "{}"}, "`base` must be what `described` makes of a fitted retriever. Received: base='{}'."),
        ({"base": "x"}, "`base` must be what `described` makes of a fitted retriever. Received: base='x'."),
    )

    def make(self) -> SimilarUsers:
        return fitted(base())

    def query(self) -> dict[str, np.ndarray]:
        return asked()


@pytest.mark.parametrize("length", [1, 3, 9])
@pytest.mark.parametrize("neighbours", [1, 3, 50])
def test_equals_the_loop(length: int, neighbours: int) -> None:
    model, every, query = base(), histories(), asked()
    vectors = np.zeros((USERS, 3))
    vectors[every["user"]] = model.embed_query(tensors(every)).numpy()
    items, times = [[] for _ in range(USERS)], [[] for _ in range(USERS)]
    for user, history, when in zip(every["user"], every["history"], every["history_time"], strict=True):
        count = (history > 0).sum()
        items[user], times[user] = history[:count][-length:], when[:count][-length:]
    psi = model.embed_query(tensors(query)).numpy()
    expected = [
        oracles.similar_user_scores(psi[n], vectors, query["user"][n], items, times, now, ITEMS, neighbours, 9.0)
        for n, now in enumerate(query["time"])
    ]
    scores = fitted(model, length, neighbours=neighbours).score_items(tensors(query))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-7)
    assert np.isneginf(scores[2]).all()  # an empty history is near nobody


def test_without_a_half_life_an_event_counts_the_same_for_ever() -> None:
    model = fitted(base(), half_life_days=None)
    early, late = (model.score_items(tensors(asked(time=np.full(4, time)))) for time in (61 * DAY, 9000 * DAY))
    np.testing.assert_array_equal(early, late)
    assert np.isfinite(early[0].numpy()).any()


def test_nothing_that_happens_later_counts() -> None:
    scores = fitted(base()).score_items(tensors(asked(time=np.zeros(4))))
    assert np.isneginf(scores).all()


def test_a_title_that_spreads_among_the_like_minded_is_proposed_to_them() -> None:
    """Two groups of one taste each; a new title is watched by half of one group on the day of the request."""
    groups = np.arange(2, 22) % 2
    seen = np.zeros((22, 12))
    seen[2:, 2:11] = (np.arange(2, 11) % 2)[np.newaxis] == groups[:, np.newaxis]
    model = WALS(embedding_dim=2)
    model.fit(tf.sparse.from_dense(seen.astype(np.float32)), epochs=5, verbose=0)
    history = np.array([np.flatnonzero(row)[:4] for row in seen[2:]])
    times = np.tile(np.arange(4) * DAY, (20, 1))
    viral = (np.arange(20) < 10) & (groups == 0)
    history[viral, 3], times[viral, 3] = 11, 300 * DAY
    found = SimilarUsers(12, described(model), neighbours=8, half_life_days=30.0)
    now = np.full(20, 300 * DAY + 1)
    found.fit([{"user": np.arange(2, 22), "history": history, "history_time": times, "time": now}], model)
    query = {"user": np.array([1, 1]), "history": history[[1, 0], :2], "history_time": times[:2, :2], "time": now[:2]}
    other, same = found.score_items(tensors(query)).numpy()
    assert same.argmax() == 11
    assert np.isneginf(other[11])


def test_nearest_users() -> None:
    model, every = fitted(base()), histories()
    users, cosine = model.similar_users([5, 2], 7)
    vectors = model.vectors.numpy()
    for row, user in enumerate((5, 2)):
        others = [u for u in every["user"] if u != user]
        expected = sorted(others, key=lambda u: -vectors[u] @ vectors[user])
        np.testing.assert_array_equal(users[row], [*expected, 0, 0])
        np.testing.assert_allclose(cosine[row, :5], vectors[expected] @ vectors[user], rtol=1e-5)


def test_what_cannot_be_fitted() -> None:
    model, every = base(), histories()
    found = SimilarUsers(ITEMS, described(model))
    with pytest.raises(ShortlistError, match=r"^`y` must be the model that was described\. Received: y='EASE'"):
        found.fit([every], EASE(num_items=ITEMS))
    with pytest.raises(ShortlistError, match=r"^`x` must have every user once\. Received: users=12\."):
        found.fit([every, every], model)
    ease = EASE(num_items=ITEMS)
    ease.fit(tf.sparse.from_dense(np.eye(ITEMS)))
    with pytest.raises(ShortlistError, match=r"^`base` must have query and item vectors\. Received: base='EASE'\."):
        SimilarUsers(ITEMS, described(ease))
