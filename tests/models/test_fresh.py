"""Fresh: ages by hand, and nothing that comes after the request."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from model_contract import ModelContract

from shortlist import ShortlistError
from shortlist.models.fresh import UNKNOWN, Fresh

DAY = 86_400


def fitted(times: list[int], count: list[int] | None = None, **settings: float) -> Fresh:
    model = Fresh(num_items=len(times), **settings)
    model.fit(times, count)
    return model


def at(*times: int) -> dict[str, tf.Tensor]:
    return {"time": tf.constant(times, tf.int64)}


class TestFresh(ModelContract):
    leaves_out = True
    refused = (
        ({"num_items": 0}, "`num_items` must be an integer of at least 1. Received: num_items=0."),
        ({"half_life_days": 0}, "`half_life_days` must be above 0. Received: half_life_days=0."),
        ({"popularity": -1}, "`popularity` must be a finite number of at least 0. Received: popularity=-1."),
    )

    def make(self) -> Fresh:
        return fitted([0, 0, 3 * DAY, DAY, 9 * DAY], [0, 0, 4, 2, 7], half_life_days=3.0, popularity=0.5)

    def query(self) -> dict[str, np.ndarray]:
        history = np.array([[2, 3], [4, 0]])
        return {"user": np.array([2, 3]), "history": history, "history_time": history, "time": np.array([4, 10]) * DAY}


def test_scores_by_hand() -> None:
    # On day 10: item 2 came with it, 3 is 6 days old, two half-lives, 4 comes a second later, of 5 nobody knows.
    model = fitted([0, 0, 10 * DAY, 4 * DAY, 10 * DAY + 1, UNKNOWN], [0, 0, 8, 3, 9, 9], half_life_days=3.0)
    out = -np.inf
    expected = [[out, out, 9**0.5, 2 / 3, out, out], [out] * 6, [out, out, 3 * 0.5, 2 / 4, 10**0.5 / 2, out]]
    np.testing.assert_allclose(model.score_items(at(10 * DAY, 0, 13 * DAY)), expected, rtol=1e-5)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=9), st.integers(0, 500), st.sampled_from([1.0, 900.0]))
def test_without_popularity_the_newest_comes_first(days: list[int], today: int, half_life: float) -> None:
    model = fitted(
        [0, 0, *(day * DAY for day in days)], [9, 9, *range(len(days))], popularity=0.0, half_life_days=half_life
    )
    scores = model.score_items(at(today * DAY)).numpy()[0, 2:]
    came = np.array(days) <= today
    np.testing.assert_array_equal(np.isfinite(scores), came)
    found = np.array(days)[np.argsort(-scores, kind="stable")][: came.sum()]
    np.testing.assert_array_equal(found, sorted(np.array(days)[came])[::-1])


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(ShortlistError) as error:
        fitted([1, 2, 3], [1, 2])
    assert str(error.value) == (
        "`x` must be whole seconds since 1970 and `y` a count, one for each of the 3 items. Received: x=(3,), y=(2,)."
    )
    with pytest.raises(ShortlistError, match=r"^`x` must be whole seconds"):
        fitted([1.5, 2.0])
    with pytest.raises(ShortlistError, match=r"^`y` must be counts of at least 0\. Received: lowest=-1\.0\."):
        fitted([1, 2], [1, -1])
    with pytest.raises(ShortlistError, match=r"^`Fresh` must be fitted before it is asked"):
        Fresh(num_items=3).score_items(at(1))
