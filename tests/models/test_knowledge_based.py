"""KnowledgeBased against a loop that relaxes one constraint after the other."""

from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_contract import ModelContract

from shortlist import ShortlistError
from shortlist.models.knowledge_based import Constraints, KnowledgeBased

ATTRIBUTES = {"genres": ["Comedy", "Drama", "War"], "language": ["en", "fr"]}
ORDER = ["range:length", "range:year", "like:language", "like:genres", "refuse:language", "refuse:genres"]
HAS = np.array(
    [[0] * 5, [0] * 5, [1, 0, 0, 1, 0], [1, 1, 0, 0, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0] * 5, [1, 0, 1, 0, 1]]
)
NUMBER = np.array([[0, 0], [0, 0], [1990, 90], [2000, np.nan], [1950, 120], [np.nan, 100], [2010, 80], [1980, 95]])
COUNT = np.array([0, 9, 5, 3, 5, 8, 1, 2])


def made(**arguments: Any) -> KnowledgeBased:
    given = {"num_items": 8, "attributes": ATTRIBUTES, "numbers": ("year", "length"), "history_length": 4, "likes": 2}
    model = KnowledgeBased(**{**given, **arguments})
    model.set_items(HAS, NUMBER, COUNT)
    return model


def names(model: KnowledgeBased, answer: Any) -> list[list[str]]:
    return [[text.decode() for text in row] for row in model.explain(answer.relaxed).numpy()]


class TestKnowledgeBased(ModelContract):
    refused = (
        ({"num_items": 2}, "`num_items` must be an integer of at least 3. Received: num_items=2."),
        (
            {"attributes": {"genres": []}},
            "`attributes` must name at least one column, and at least one attribute of each. "
            "Received: attributes={'genres': []}.",
        ),
        (
            {"numbers": [f"n{n}" for n in range(13)]},
            "`attributes` and `numbers` must make at most 16 constraints: two a column, one a number. Received: "
            f"attributes=['genres', 'language'], numbers={tuple(f'n{n}' for n in range(13))}.",
        ),
        (
            {"relaxation": ["like:genre"]},
            f"`relaxation` must name constraints once each, of {', '.join(ORDER)}. Received: "
            "relaxation=['like:genre'].",
        ),
        (
            {"relaxation": ["like:genres"] * 2},
            f"`relaxation` must name constraints once each, of {', '.join(ORDER)}. Received: "
            "relaxation=['like:genres', 'like:genres'].",
        ),
        ({"history_length": 0}, "`history_length` must be an integer of at least 1. Received: history_length=0."),
        ({"likes": 0}, "`likes` must be an integer of at least 1. Received: likes=0."),
        ({"refuse_after": 0}, "`refuse_after` must be above 0. Received: refuse_after=0."),
        ({"middle": 1.5}, "`middle` must be in (0, 1]. Received: middle=1.5."),
    )

    def make(self) -> KnowledgeBased:
        return made()

    def query(self) -> dict[str, np.ndarray]:
        history = np.array([[2, 3, 2, 7, 5], [6, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [4, 5, 0, 0, 0]])
        return {"user": np.arange(5), "history": history, "history_time": 0 * history, "time": np.arange(5)}


def test_the_order_is_ranges_then_likes_then_refusals_or_as_declared() -> None:
    assert list(made().order) == ORDER
    assert made(relaxation=["refuse:genres", "range:year"]).order[:2] == ("refuse:genres", "range:year")


def test_answers_and_what_was_relaxed_by_hand() -> None:
    model = made()
    asked = model.constraints(like={"genres": ["Comedy"]}, refuse={"genres": ["War"]}, between={"year": (1995, None)})
    answer = model.recommend(asked, k=6)
    # 3 holds all; 2 is too old; 6 is no comedy; 7 is a comedy of war, and too old; 5 and 4 break everything.
    assert answer.items.numpy().tolist() == [[3, 2, 6, 7, 5, 4]]
    every = "range:year, like:genres, refuse:genres"
    expected = ["", "range:year", "like:genres", "range:year, refuse:genres", every, every]
    assert names(model, answer) == [expected]
    scores = answer.scores.numpy()[0]
    assert np.all(np.diff(scores) < 0)
    assert np.floor(scores).tolist() == [0, -2, -8, -34, -42, -42]  # 2 for the year, 8 for the like, 32 for the refusal


def test_the_declared_order_decides_what_goes_first() -> None:
    asked = {"like": {"genres": ["Comedy"]}, "refuse": {"language": ["fr"]}}
    second = {}
    for relaxation in (["refuse:language", "like:genres"], ["like:genres", "refuse:language"]):
        model = made(relaxation=relaxation)
        answer = model.recommend(model.constraints(**asked), k=3)
        assert answer.items.numpy()[0, 0] == 2  # the only comedy that isn't French
        second[relaxation[0]] = answer.items.numpy()[0, 1:].tolist(), names(model, answer)[0][1:]
    assert second["refuse:language"] == ([3, 7], ["refuse:language"] * 2)
    assert second["like:genres"] == ([5, 4], ["like:genres"] * 2)


def test_what_is_not_in_the_order_is_never_relaxed() -> None:
    model = made(relaxation=["range:year"])
    asked = model.constraints(like={"genres": ["War"]}, between={"year": (None, 1960)})
    answer = model.recommend(asked, k=5)
    assert answer.items.numpy().tolist() == [[4, 5, 7, 0, 0]]  # 5's year is unknown, 7's too late; no other has War
    assert names(model, answer) == [["", "range:year", "range:year", "", ""]]
    assert np.isneginf(answer.scores.numpy()[0, 3:]).all()


def test_constraints_that_exclude_everything_are_all_relaxed() -> None:
    model = made()
    nothing = model.constraints(
        {"language": ["fr"]}, {"genres": ["Comedy", "Drama", "War"]}, {"year": (3000, None), "length": (50, 40)}
    )
    answer = model.recommend(nothing, k=8, exclude=tf.constant([[6]]))
    assert sorted(answer.items.numpy()[0].tolist()) == [0, 0, 0, 2, 3, 4, 5, 7]
    assert all("range:year" in text for text in names(model, answer)[0][:5])
    hard = made(relaxation=[])
    assert hard.recommend(nothing, k=2).items.numpy().tolist() == [[0, 0]]


def test_nothing_asked_gives_the_popular_ones() -> None:
    answer = made().recommend(made().constraints(), k=6)
    assert answer.items.numpy().tolist() == [[5, 2, 4, 3, 7, 6]]  # 2 and 4 are equally popular: the lower row
    assert not answer.relaxed.numpy().any()
    assert ((answer.scores.numpy() >= 0) & (answer.scores.numpy() < 1)).all()


def test_names_that_the_model_does_not_have_are_refused() -> None:
    for arguments, text in (
        ({"like": {"genres": ["Horror"]}}, "`like` must name attributes by their column; there are Comedy, Drama, War. "
         "Received: like={'genres': 'Horror'}."),
        ({"refuse": {"genre": ["War"]}}, "`refuse` must name attributes by their column; there are genres, language. "
         "Received: refuse={'genre': 'War'}."),
        ({"between": {"price": (0, 1)}}, "`between` must name columns of numbers, of year, length. "
         "Received: between='price'."),
    ):  # fmt: skip
        with pytest.raises(ShortlistError) as error:
            made().constraints(**arguments)
        assert str(error.value) == text


def test_items_of_another_catalogue_are_refused() -> None:
    for bad, text in (
        ((HAS[:, :4], NUMBER, COUNT), "`has` must be of shape [8, 5], one row an item. Received: shape=(8, 4)."),
        ((HAS, NUMBER[:7], COUNT), "`number` must be of shape [8, 2], one row an item. Received: shape=(7, 2)."),
        ((HAS, NUMBER, -COUNT), "`count` must be at least 0. Received: lowest=-9.0."),
    ):
        with pytest.raises(ShortlistError) as error:
            made().set_items(*bad)
        assert str(error.value) == text


@settings(max_examples=60)
@given(st.data())
def test_any_constraints_are_relaxed_as_by_the_loop(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    items = data.draw(st.integers(1, 12)) + 2
    has = rng.random((items, 5)) < 0.4
    number = np.where(rng.random((items, 2)) < 0.2, np.nan, rng.integers(0, 5, (items, 2)))
    count = rng.integers(0, 4, items)
    relaxation = data.draw(st.lists(st.sampled_from(ORDER), unique=True) | st.none())
    model = KnowledgeBased(items, ATTRIBUTES, ("year", "length"), relaxation)
    model.set_items(has, number, count)
    wanted = rng.integers(-1, 2, (3, 5)).astype(np.int8)
    between = np.where(rng.random((3, 2, 2)) < 0.4, np.nan, rng.integers(0, 5, (3, 2, 2))).astype(np.float32)
    k = data.draw(st.integers(1, items + 2))
    answer = model.recommend(Constraints(tf.constant(wanted), tf.constant(between)), k)
    attributes = [(column, value) for column, values in ATTRIBUTES.items() for value in values]
    for row in range(3):
        said = {column: {} for column in ATTRIBUTES}
        for (column, value), sign in zip(attributes, wanted[row], strict=True):
            said[column][value] = sign
        ends = dict(zip(("year", "length"), between[row], strict=True))
        broken = []
        for i in range(items):
            own: dict[str, Any] = {
                c: {v for n, (d, v) in enumerate(attributes) if d == c and has[i, n]} for c in ATTRIBUTES
            }
            own |= dict(zip(("year", "length"), number[i], strict=True))
            broken.append(oracles.broken_constraints(own, ATTRIBUTES, said, ("year", "length"), ends, model.order))
        expected = oracles.relaxed_order(broken, model.soft, count, k)
        assert answer.items.numpy()[row].tolist() == expected + [0] * (k - len(expected))
        for place, item in enumerate(expected):
            assert answer.relaxed.numpy()[row, place].tolist() == broken[item]


@settings(max_examples=60)
@given(st.data())
def test_any_history_speaks_for_the_constraints_of_the_loop(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    length, likes = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    refuse_after, middle = data.draw(st.sampled_from([0.5, 1.5])), data.draw(st.sampled_from([0.3, 0.75, 1.0]))
    has, count = rng.random((9, 3)) < 0.4, rng.integers(1, 5, 9)
    number = np.where(rng.random((9, 1)) < 0.3, np.nan, rng.integers(1900, 2000, (9, 1)))
    model = KnowledgeBased(9, {"genres": list("abc")}, ("year",), None, length, likes, refuse_after, middle)
    model.set_items(has, number, count)
    rows = data.draw(st.lists(st.lists(st.integers(1, 8), max_size=8), min_size=1, max_size=3))
    history = np.array([row + [0] * (8 - len(row)) for row in rows], np.int32)
    found = model.derive({"history": tf.constant(history)})
    for row, own in enumerate(rows):
        wanted, ends = oracles.derived_constraints(own, has, number, count, length, likes, refuse_after, middle)
        np.testing.assert_array_equal(found.wanted[row], wanted)
        np.testing.assert_array_equal(found.between[row], ends)


def test_a_history_says_nothing_without_a_known_item() -> None:
    model = made()
    for history in (np.zeros((2, 0), np.int32), np.ones((2, 3), np.int32), np.zeros((2, 3), np.int32)):
        scores = model.score_items({"history": tf.constant(history)}).numpy()
        np.testing.assert_allclose(scores, np.tile(model.popularity, (2, 1)))


def test_one_item_in_the_catalogue_and_none_ever_watched() -> None:
    model = KnowledgeBased(3, {"genres": ["g"]}, ("year",))
    model.set_items([[0], [0], [1]], [[np.nan]] * 3, [0, 0, 0])
    scores = model.score_items({"history": tf.constant([[2], [0]])})
    assert np.isfinite(scores).all()
    assert model.recommend(model.constraints({"genres": ["g"]}), k=2).items.numpy().tolist() == [[2, 0]]


def test_popularity_never_outweighs_a_constraint() -> None:
    """Even with 16 constraints, where little of a float32 is left for it."""
    numbers = tuple(f"n{n}" for n in range(14))
    model = KnowledgeBased(70_002, {"genres": ["g"]}, numbers)
    has = np.zeros((70_002, 1))
    has[2] = 1
    model.set_items(has, np.zeros((70_002, 14)), np.arange(70_002))
    wanted = Constraints(tf.constant([[1]], tf.int8), tf.ones([1, 14, 2]))  # every range is broken by every item
    answer = model.recommend(wanted, k=2)
    assert answer.items.numpy()[0, 0] == 2
    assert answer.scores.numpy()[0, 0] - answer.scores.numpy()[0, 1] > 2**14 - 1
    assert (model.popularity.numpy() < 1).all()
