"""Popularity: counts against a loop over the events, and no event at or after the request."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_contract import ModelContract

from shortlist import ShortlistError
from shortlist.models.popularity import Popularity

DAY = 86_400


def at(*times: int) -> dict[str, tf.Tensor]:
    return {"time": tf.constant(times, tf.int64)}


class TestPopularity(ModelContract):
    refused = (
        ({"num_items": 0}, "`num_items` must be an integer of at least 1. Received: num_items=0."),
        ({"num_items": 2.5}, "`num_items` must be an integer of at least 1. Received: num_items=2.5."),
        ({"resolution_days": -1}, "`resolution_days` must be an integer of at least 1. Received: resolution_days=-1."),
        ({"window_days": 9}, "`window_days` must be an integer of at least 10. Received: window_days=9."),
    )

    def make(self) -> Popularity:
        model = Popularity(num_items=5, window_days=40, resolution_days=10)
        model.fit([2, 3, 3, 4, 4, 4], np.array([3, 5, 25, 38, 61, 64]) * DAY)
        return model

    def query(self) -> dict[str, np.ndarray]:
        return {
            "user": np.array([2, 3, 4]),
            "history": np.array([[2, 3], [4, 0], [0, 0]]),
            "history_time": np.array([[9, 9], [9, 0], [0, 0]]),
            "time": np.array([40, 70, 1]) * DAY,
        }

    def test_counts_of_the_window_by_hand(self) -> None:
        # Periods of 10 days. Day 45 looks back to day 5, rounded down to 0, and forward to day 40: items 2, 3, 3, 4.
        # Day 69 sees days 20 to 59: the events of days 25 and 38. Day 70 sees 30 to 69: those of days 38, 61 and 64.
        scores = self.make().score_items(at(45 * DAY, 69 * DAY, 70 * DAY))
        np.testing.assert_array_equal(scores, [[0, 0, 1, 2, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 3]])

    def test_the_start_of_the_window_rounds_down_on_its_own(self) -> None:
        model = Popularity(num_items=1, window_days=25, resolution_days=10)
        model.fit([0, 0, 0], np.array([12, 35, 80]) * DAY)
        # Day 44 looks back to day 19, so to day 10, and sees the events of days 12 and 35; day 49 to 24, so to 20.
        np.testing.assert_array_equal(model.score_items(at(44 * DAY, 49 * DAY)), [[2], [1]])

    def test_a_request_long_after_the_data_is_answered_as_at_its_end(self) -> None:
        scores = self.make().score_items(at(70 * DAY, 20_000 * DAY))
        np.testing.assert_array_equal(scores[0], scores[1])

    def test_before_the_first_period_nothing_counts(self) -> None:
        np.testing.assert_array_equal(self.make().score_items(at(-1, 9 * DAY)), np.zeros((2, 5)))


def test_without_a_window_all_events_count_at_any_time() -> None:
    model = Popularity(num_items=4)
    model.fit(np.array([3, 1, 3]))
    np.testing.assert_array_equal(model.score_items(at(-5, 10**12)), [[0, 1, 0, 2], [0, 1, 0, 2]])


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_equals_the_count_of_the_events_and_never_sees_the_future(data: st.DataObject) -> None:
    resolution = data.draw(st.integers(1, 10))
    window = data.draw(st.integers(resolution, 40))
    events = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60 * DAY)), min_size=1, max_size=30))
    items, times = np.array(events).T
    # Boundaries of periods, and the events' own times, are where a mistake would show.
    now = data.draw(
        st.one_of(st.integers(-DAY, 90 * DAY), st.sampled_from(times.tolist()), st.integers(0, 90).map(DAY.__mul__))
    )
    model = Popularity(num_items=6, window_days=window, resolution_days=resolution)
    model.fit(items, times)
    scores = model.score_items(at(now)).numpy()[0]
    np.testing.assert_array_equal(
        scores, oracles.popularity_counts(items, times, 6, now, window * DAY, resolution * DAY)
    )
    assert (scores <= np.bincount(items[times < now], minlength=6)).all()


@pytest.mark.parametrize(
    ("model", "events", "text"),
    [
        (
            Popularity(3),
            [3],
            "`x` must be item rows from 0 to 2; raise num_items or correct the ids. Received: lowest=3, highest=3.",
        ),
        (
            Popularity(3),
            [-1, 2],
            "`x` must be item rows from 0 to 2; raise num_items or correct the ids. Received: lowest=-1, highest=2.",
        ),
        (Popularity(3), [], "`x` must be item rows [N], at least one. Received: shape=(0,)."),
        (Popularity(3), [0.5], "`x` must be integer item rows. Received: dtype='float64'."),
    ],
)
def test_refuses_bad_items(model: Popularity, events: list[int], text: str) -> None:
    with pytest.raises(ShortlistError) as error:
        model.fit(events)
    assert str(error.value) == text


def test_refuses_bad_times() -> None:
    model = Popularity(1000, window_days=365)
    with pytest.raises(ShortlistError, match=r"^`y` must be integer seconds since 1970, one an event"):
        model.fit([1, 2])
    with pytest.raises(ShortlistError, match=r"^`y` must be integer seconds since 1970, one an event"):
        model.fit([1, 2], [5])
    with pytest.raises(
        ShortlistError, match=r"give seconds, not milliseconds, or raise resolution_days. Received: periods="
    ):
        model.fit([1, 2], np.array([0, 1_700_000_000_000]))


def test_refuses_to_answer_before_fit() -> None:
    text = "`Popularity` must be fitted before it is asked; call fit first. Received: built=False."
    for ask in (Popularity(3).score_items, Popularity(3)):
        with pytest.raises(ShortlistError) as error:
            ask(at(0))
        assert str(error.value) == text
