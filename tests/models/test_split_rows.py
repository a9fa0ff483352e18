"""SplitRows against the ids that the split gives: what applies, what is chosen, what a seen half hides."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_contract import ModelContract

from shortlist import ShortlistError
from shortlist.components.context import SplitByContextConfig, apply_splits, find_splits, half_rows
from shortlist.models._base import query_spec
from shortlist.models._nested import described
from shortlist.models._split_rows import SplitItems, SplitRows, SplitUsers
from shortlist.models.camf import CAMF

PLACES, COMPANY = ["home", "out"], ["alone", "friends", "family"]


def rated(seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    place = rng.choice(np.array([*PLACES, None], object), 300)
    company = rng.choice(np.array([*COMPANY, None], object), 300)
    columns: dict[str, Any] = {
        "user": [f"u{n}" for n in rng.integers(0, 6, 300)],
        "item": [f"i{n}" for n in rng.integers(0, 6, 300)],
        "rating": pa.array(rng.integers(1, 6, 300), pa.float32()),
    }
    kind = pa.string()
    return pa.table({**columns, "context_place": pa.array(place, kind), "context_company": pa.array(company, kind)})


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from(["item", "user"]))
def test_it_answers_as_the_tables_do(seed: int, side: str) -> None:
    rows = rated(seed)
    config = SplitByContextConfig(side=side, mode="complex", alpha=0.9, min_ratings=5)
    splits = find_splits(rows, config)
    after = apply_splits(rows, splits)
    ids = pa.array(["", "", *after[side].unique().sort().to_pylist()])
    conditions = {"place": pa.array(PLACES), "company": pa.array(COMPANY)}
    layer = SplitRows(len(ids), {"place": 2, "company": 3})
    layer.set_halves(**half_rows(splits, side, ids, conditions))

    query = {"user": tf.zeros(len(rows), tf.int32)}
    for name, values in conditions.items():
        known = [None, *values.to_pylist()]
        codes = [known.index(value) for value in rows[f"context_{name}"].to_pylist()]
        query[f"context_{name}"] = tf.constant(codes, tf.int32)
    row = {value: n for n, value in enumerate(ids.to_pylist())}
    right = np.array([row[value] for value in after[side].to_pylist()])
    applies = layer(query).numpy()
    assert applies[np.arange(len(rows)), right].all()
    halves = {row[s["id_in"]]: row[s["id_out"]] for s in splits.to_pylist()}
    for inside, outside in halves.items():
        assert (applies[:, inside] != applies[:, outside]).all()
    single = [n for n in range(len(ids)) if n not in halves and n not in halves.values()]
    assert applies[:, single].all()
    other = {**halves, **{b: a for a, b in halves.items()}}
    wrong = np.array([other.get(n, n) for n in right])
    for asked in (right, wrong):
        np.testing.assert_array_equal(layer.choose(tf.constant(asked, tf.int32), query), right)
    seen = tf.constant(np.stack([right, np.zeros_like(right), np.full_like(right, -1)], axis=1), tf.int32)
    hidden = layer.with_siblings(seen).numpy()
    np.testing.assert_array_equal(hidden, np.concatenate([seen, np.stack([wrong, 0 * wrong, 0 * wrong - 1], 1)], 1))


def test_a_half_without_a_row_leaves_the_other_alone() -> None:
    rows = rated(0)
    splits = find_splits(rows, SplitByContextConfig(alpha=0.9, min_ratings=5)).slice(0, 1)
    ids = pa.array(["", "", splits["id_in"][0].as_py()])
    halves = half_rows(splits, "item", ids, {"place": pa.array(PLACES), "company": pa.array(COMPANY)})
    assert halves["sibling"].tolist() == [0, 1, 2]
    assert halves["inverse"].tolist() == [False] * 3
    assert halves["required"][:2].tolist() == [[0, 0]] * 2
    assert (halves["required"][2] > 0).sum() == 1
    unknown = half_rows(splits, "item", ids, {"place": pa.array([""]), "company": pa.array([""])})
    layer = SplitRows(3, {"place": 1, "company": 1})
    layer.set_halves(**unknown)  # its condition is none of the vocabulary: it never holds
    for value in range(4):
        query = {
            "user": tf.constant([0]),
            "context_place": tf.constant([value]),
            "context_company": tf.constant([value]),
        }
        assert layer(query).numpy().tolist() == [[True, True, False]]


def test_refuses_what_does_not_fit() -> None:
    layer = SplitRows(3, {"place": 2})
    with pytest.raises(ShortlistError) as error:
        layer.set_halves(np.zeros((3, 2)), np.zeros(3), np.zeros(3))
    assert str(error.value) == "`required` must be of shape (3, 1). Received: shape=(3, 2)."
    again = SplitRows.from_config(layer.get_config())
    assert (again.num_rows, again.contexts) == (3, {"place": 2})


# --- a model behind it ------------------------------------------------------------------------------------------------

CONTEXTS = {"place": 2, "company": 3}
SPLIT = {"user": [3, 5], "item": [2, 6, 4]}
REQUIRED = {"user": [[1, 0], [2, 3]], "item": [[0, 1], [2, 0], [1, 2]]}
USERS, ITEMS = 6, 8


def behind(*sides: str) -> SplitItems:
    further = {side: len(SPLIT[side]) if side in sides else 0 for side in SPLIT}
    base = CAMF(USERS + further["user"], ITEMS + further["item"], CONTEXTS, "CUCI", embedding_dim=3)
    make = SplitItems if "item" in sides else SplitUsers
    model = make(described(base), USERS, ITEMS, CONTEXTS)
    rng = np.random.default_rng(3)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(0, 0.6, weight.shape))
    for side in sides:
        model.set_splits(side, np.array(SPLIT[side]), np.array(REQUIRED[side]))
    return model


def half(side: str, row: int, conditions: tuple[int, int], sides: tuple[str, ...]) -> int:
    """The row of the base, by a loop."""
    size = {"user": USERS, "item": ITEMS}[side]
    for s, (owner, required) in enumerate(zip(SPLIT[side], REQUIRED[side], strict=True)):
        if side in sides and owner == row and all(n in (0, c) for n, c in zip(required, conditions, strict=True)):
            return size + s
    return row


ASKED = [(2, (0, 0)), (3, (1, 2)), (3, (2, 2)), (3, (0, 0)), (5, (2, 3)), (5, (2, 1)), (5, (9, 3)), (1, (1, 1))]


class TestSplitItems(ModelContract):
    sides: ClassVar[tuple[str, ...]] = ("item", "user")
    refused = (
        ({"num_users": 0}, "`num_users` must be an integer of at least 1. Received: num_users=0."),
        ({"num_items": 99}, "`base` must have a row for each item. Received: num_items=99, base=11."),
        ({"base": "{}"}, "`base` must be what `described` makes of a fitted retriever. Received: base='{}'."),
    )

    def make(self) -> SplitItems:
        return behind(*self.sides)

    def spec(self) -> dict[str, tf.TensorSpec]:
        return query_spec({f"context_{name}": "category" for name in CONTEXTS})

    def query(self) -> dict[str, np.ndarray]:
        place, company = np.array([conditions for _, conditions in ASKED]).T
        history = np.zeros((len(ASKED), 1))
        further = {"history": history, "history_time": history, "time": np.zeros(len(ASKED))}
        user = np.array([user for user, _ in ASKED])
        return {"user": user, "context_place": place, "context_company": company, **further}

    test_example_of_the_docstring_runs = None


class TestSplitUsers(TestSplitItems):
    sides: ClassVar[tuple[str, ...]] = ("user",)
    refused = (*TestSplitItems.refused[:1], *TestSplitItems.refused[2:])
    test_same_scores_in_a_fresh_process = None


@pytest.mark.parametrize("sides", [("user",), ("item",), ("user", "item")])
def test_a_request_is_that_of_the_halves_of_its_context(sides: tuple[str, ...]) -> None:
    model = behind(*sides)
    query = {name: tf.constant(value, tf.int32) for name, value in TestSplitItems().query().items()}
    expected = np.empty((len(ASKED), ITEMS))
    for n, (user, conditions) in enumerate(ASKED):
        own = {name: tf.fill([ITEMS], value) for name, value in zip(("place", "company"), conditions, strict=True)}
        rows = [half("item", item, conditions, sides) for item in range(ITEMS)]
        asked = {"user": tf.fill([ITEMS], half("user", user, conditions, sides)), "item": tf.constant(rows)}
        expected[n] = model.model({**asked, **{f"context_{name}": value for name, value in own.items()}})
    np.testing.assert_allclose(model.score_items(query), expected, rtol=1e-5, atol=1e-5)
    for item in (2, 4, 7):
        asked = {**query, "item": tf.fill([len(ASKED)], item)}
        np.testing.assert_allclose(model(asked), expected[:, item], rtol=1e-5, atol=1e-5)
    assert len(np.unique(expected[1:4].round(5), axis=0)) == 3 if "user" in sides else True


def test_it_trains_the_halves_apart_as_the_base_with_their_rows() -> None:
    rng = np.random.default_rng(0)
    x = {"user": rng.integers(0, USERS, 200), "item": rng.integers(0, ITEMS, 200)}
    x |= {"context_place": rng.integers(0, 3, 200), "context_company": rng.integers(0, 4, 200)}
    x = {name: values.astype(np.int32) for name, values in x.items()}
    y = rng.integers(1, 6, 200).astype(np.float32)
    model = behind("user", "item")
    base = tf.keras.models.clone_model(model.model)
    base.set_weights(model.model.get_weights())
    pairs = list(zip(x["context_place"].tolist(), x["context_company"].tolist(), strict=True))
    split = {
        side: np.array(
            [half(side, r, c, ("user", "item")) for r, c in zip(x[side].tolist(), pairs, strict=True)], np.int32
        )
        for side in SPLIT
    }
    assert all((split[side] >= size).any() for side, size in (("user", USERS), ("item", ITEMS)))
    for trained, rows in ((model, x), (base, {**x, **split})):
        trained.adapt(rows, y)
        trained.compile(tf.keras.optimizers.Adagrad(0.2))
        history = trained.fit(rows, y, batch_size=32, epochs=2, shuffle=False, verbose=0)
        assert set(history.history) == {"loss", "rmse", "mae"}
    for ours, its in zip(model.model.get_weights(), base.get_weights(), strict=True):
        np.testing.assert_allclose(ours, its, rtol=1e-5, atol=1e-6)


def test_training_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    x = {"user": np.array([3, 5, 2, 3], np.int32), "item": np.array([2, 4, 6, 7], np.int32)}
    x |= {"context_place": np.array([1, 2, 0, 2], np.int32), "context_company": np.array([1, 3, 0, 2], np.int32)}
    y = np.array([1, 5, 3, 4], np.float32)
    model = behind("user", "item")
    model.adapt(x, y)
    model.compile(tf.keras.optimizers.Adagrad(0.2))
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    again = tf.keras.models.load_model(tmp_path / "model.keras")
    assert again.registered_name == "camf"
    for one in (model, again):
        one.fit(x, y, epochs=2, shuffle=False, verbose=0)
    for ours, its in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, its)
