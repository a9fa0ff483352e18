"""SplitRows against the ids that the split gives: what applies, what is chosen, what a seen half hides."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components.context import SplitByContextConfig, apply_splits, find_splits, half_rows
from shortlist.models._split_rows import SplitRows

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
