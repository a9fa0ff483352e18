"""(history, next item) examples against a loop over the rows, and how often each is drawn."""

from collections import Counter
from time import process_time

import numpy as np
import oracles
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import example_lines as lines

from shortlist.components._examples import NextItemExamples

KEYS = 3
rows = st.lists(
    st.tuples(st.integers(0, KEYS - 1), st.integers(1, 6), st.integers(0, 4), st.booleans() | st.just(True)),
    max_size=25,
)


def encoded(drawn: list[tuple[int, int, int, bool]]) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The rows as dicts without what is out of vocabulary, and as the arrays of an encoded split."""
    drawn = sorted(drawn, key=lambda r: (r[0], r[2]))
    key, item, time, positive = np.array(drawn, np.int64).reshape(-1, 4).T
    table = {
        "user_key": key.astype(np.int32),
        "user": (key + 2).astype(np.int32),
        "item": item.astype(np.int32),
        "timestamp": time,
        "positive": positive.astype(bool),
    }
    names = ("user", "item", "timestamp", "positive")
    return [dict(zip(names, (r[0] + 2, *r[1:]), strict=True)) for r in drawn if r[1] >= 2], table


@settings(max_examples=150, deadline=None)
@given(rows, st.integers(1, 4), st.integers(1, 3))
def test_examples_and_their_frequencies_equal_the_loop(drawn: list, length: int, per_user: int) -> None:
    plain, table = encoded(drawn)
    examples = NextItemExamples(table, length, per_user)
    batch = examples.at(examples.usable)
    assert list(batch) == ["user", "history", "history_time", "time", "label"]
    assert batch["history"].shape == batch["history_time"].shape == (len(batch["user"]), length)
    expected = oracles.next_item_examples(plain, length)
    assert lines(batch) == expected
    for _, _, times, time, _ in expected:
        assert max(times) < time

    own = Counter(user for user, *_ in expected)
    assert len(examples) == per_user * len(own)
    counts = np.zeros(9)
    for user, *_, label in expected:
        counts[label] += per_user / own[user]
    np.testing.assert_allclose(examples.label_counts(9), counts)

    epoch = examples.epoch(np.random.default_rng(0))
    assert {name: values.dtype for name, values in epoch.items()} == {name: v.dtype for name, v in batch.items()}
    assert set(lines(epoch)) <= set(expected)
    assert Counter(epoch["user"].tolist()) == dict.fromkeys(own, per_user)


def test_every_example_of_a_user_is_as_likely_and_an_epoch_repeats_with_its_seed() -> None:
    drawn = [(0, item, time, True) for time, item in enumerate((2, 3, 4, 5))] + [(1, 6, 0, True), (1, 2, 1, True)]
    _, table = encoded(drawn)
    examples = NextItemExamples(table, 2, 600)
    epoch, again, other = (examples.epoch(np.random.default_rng(seed)) for seed in (1, 1, 2))
    for name, values in epoch.items():
        np.testing.assert_array_equal(again[name], values)
    assert (other["label"] != epoch["label"]).any()
    drawn_labels = np.bincount(epoch["label"], minlength=7)
    # 600 of the one label of user 1; three labels of user 0, 200 each, standard deviation 11.5.
    assert drawn_labels[[0, 1, 6]].tolist() == [0, 0, 0]
    assert drawn_labels[2] == 600
    np.testing.assert_allclose(drawn_labels[3:6], 200, atol=46)
    np.testing.assert_array_equal(examples.label_counts(7), [0, 0, 600, 200, 200, 200, 0])
    blocks = epoch["user"].reshape(4, -1)
    assert ((blocks == 2).mean(axis=1) > 0.3).all(), "users come mixed"
    rng = np.random.default_rng(1)
    assert (examples.epoch(rng)["label"] != examples.epoch(rng)["label"]).any(), "epochs differ"


def test_further_columns_are_those_of_the_label() -> None:
    drawn = [(0, 2, 0, True), (0, 3, 1, False), (0, 4, 2, True), (1, 5, 0, True), (1, 6, 3, True), (1, 1, 4, True)]
    _, table = encoded(drawn)
    words = np.arange(12).reshape(6, 2)
    further = {"context_day": np.arange(6, dtype=np.int32), "query": words}
    batch = (examples := NextItemExamples(table, 2, 1, further)).at(examples.usable)
    assert batch["label"].tolist() == [4, 6]
    assert batch["context_day"].tolist() == [2, 4]
    assert batch["query"].tolist() == [[4, 5], [8, 9]]


def test_a_million_rows_make_an_epoch_within_ten_seconds() -> None:
    rng = np.random.default_rng(0)
    key = np.sort(rng.integers(0, 20_000, 1_000_000, np.int32))
    key[:100_000] = 0  # one user with 100,000 events
    table = {
        "user_key": key,
        "user": key + 2,
        "item": rng.integers(2, 50_000, 1_000_000, np.int32),
        "timestamp": np.arange(1_000_000) // 2,
        "positive": np.ones(1_000_000, bool),
    }
    started = process_time()
    examples = NextItemExamples(table, 10, 50)
    epoch = examples.epoch(np.random.default_rng(0))
    assert process_time() - started < 10
    assert len(epoch["label"]) == 50 * len(np.unique(key)) > 800_000
    assert (epoch["history_time"].max(axis=1) < epoch["time"]).all()
