"""What the trainer of the two-tower makes of the data: titles as rows, a depth by size and the note about it, ages."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from shortlist.components._examples import NextItemExamples
from shortlist.components._queries import NO_TIME, EncodedData
from shortlist.trainers.two_tower import Config, depth, depth_note, make_examples, title_rows, title_words


def rows(users: int) -> dict[str, np.ndarray]:
    """Two watches a user at different times, so one example each; and one watch without a time."""
    key = np.append(np.repeat(np.arange(users, dtype=np.int32), 2), users - 1).astype(np.int32)
    return {
        "user_key": key,
        "user": key + 2,
        "item": np.full(len(key), 2, np.int32),
        "timestamp": np.append(np.tile([10, 70], users), NO_TIME),
        "positive": np.ones(len(key), bool),
    }


def test_words_of_titles() -> None:
    titles = np.array(
        ["", "", "Toy Story (1995)", "toy-soldiers", "Élan vital, l'élan (1995)", "玩具 総動員 玩具 🎈"], object
    )
    # In two titles or twice in one: 1995, toy, élan, 玩具; by count, then by letter. All others are row 1.
    assert title_words(titles).to_pylist() == ["1995", "toy", "élan", "玩具"]
    tokens = title_rows(titles, title_words(titles), length=4)
    assert tokens.tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [3, 1, 2, 0],
        [3, 1, 0, 0],
        [4, 1, 1, 4],  # the fifth word is cut off
        [5, 1, 5, 0],
    ]
    assert tokens.dtype == np.int32
    odd = np.array(["", "🎈"], object)
    assert title_words(odd).to_pylist() == []
    assert title_rows(odd, title_words(odd), length=2).tolist() == [[0, 0], [0, 0]]
    assert title_rows(odd, title_words(titles), length=2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(("users", "widths"), [(30, ()), (99, ()), (100, (128,))])
def test_the_depth_goes_by_the_size_of_the_data_and_says_so(
    monkeypatch: pytest.MonkeyPatch, users: int, widths: tuple[int, ...]
) -> None:
    monkeypatch.setattr("shortlist.trainers.two_tower.DEEP", 100)
    examples = NextItemExamples(rows(users), 10, 5)
    assert depth(Config(), examples) == widths
    (note,) = depth_note(Config(), examples)
    told = "hidden layers of 128" if widths else "no hidden layer"
    assert note == (
        f"two_tower has {told}: there are {users} next watches to learn from, and from 100 on it gets some "
        "(hidden_units = auto)."
    )
    assert depth(Config(hidden_units=(7, 3)), examples) == (7, 3)
    assert depth_note(Config(hidden_units=()), examples) == []


def test_examples_are_as_old_as_they_lie_before_the_newest_row() -> None:
    data = cast(EncodedData, SimpleNamespace(request=lambda rows, at: {}))  # requests say nothing besides
    times = np.array([1, 5, 2, 9, NO_TIME])
    examples = make_examples(Config(example_age=True), data, {**rows(2), "timestamp": times})
    got = examples.at(examples.usable)
    assert got["example_age"].tolist() == [4, 0]
    assert got["example_age"].dtype == np.float32
    assert "example_age" not in make_examples(Config(), data, rows(2)).at(np.array([1]))
