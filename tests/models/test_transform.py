"""The maps of Transform as layers: the same rows, and a graph that needs neither the files nor this package."""

import shutil
from pathlib import Path

import numpy as np
import oracles
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import Encoded, columns, encode, row, write_splits

from shortlist.components._queries import EncodedData
from shortlist.models._transform import IdLookup, IdNames, TransformLayers


def layers(encoded: Encoded) -> TransformLayers:
    state = encoded.read_json("state.json")
    vocabularies = [str(encoded / f"{name}.txt") for name in ("items", "users")]
    return TransformLayers(*vocabularies, state["year_boundaries"], state["time_quantiles"])


ids = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_equal_what_transform_encodes(tmp_path_factory, data: st.DataObject) -> None:
    users, items = (data.draw(st.lists(ids, min_size=1, max_size=8, unique=True)) for _ in range(2))
    draw = st.tuples(st.sampled_from(users), st.sampled_from(items), st.integers(0, 2**31))
    train, test = ([row(*r) for r in data.draw(st.lists(draw, min_size=1, max_size=15))] for _ in range(2))
    years = st.none() | st.integers(1900, 1910)
    described = [{"item": i, "year": data.draw(years), "genres": []} for i in items]
    parts = {"train": train, "test": test}
    folder = tmp_path_factory.mktemp("t")
    encoded = encode(write_splits(folder / "s", parts, described), year_buckets=4, quantiles=5)
    found, table = layers(encoded), EncodedData(encoded)
    for name, rows in parts.items():
        rows = sorted(rows, key=lambda r: r["user"].encode())
        expected = columns(encoded, name)
        np.testing.assert_array_equal(found.user(tf.constant([r["user"] for r in rows])), expected["user"])
        np.testing.assert_array_equal(found.item(tf.constant([r["item"] for r in rows])), expected["item"])
        times = found.time(tf.constant([[r["timestamp"] for r in rows]], tf.int64)).numpy()[0]
        bounds = np.float32(table.state["time_quantiles"])
        share = [oracles.quantile_share(bounds, np.float32(r["timestamp"])) for r in rows]
        np.testing.assert_allclose(times, share, atol=1e-5)
    np.testing.assert_array_equal(found.year(tf.constant(table.items["year"])), table.year_bucket())
    np.testing.assert_array_equal(
        found.item(tf.constant(table.items["id"].astype(str)))[2:], np.arange(2, len(table.items["id"]))
    )


def test_padding_and_the_unknown_have_rows_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("7\n07\n a \n")
    got = IdLookup(str(tmp_path / "ids.txt"))(tf.constant([["7", "07", " a "], ["", "a", "8"]]))
    np.testing.assert_array_equal(got, [[2, 3, 4], [0, 1, 1]])
    assert got.dtype == tf.int32


def test_an_exported_graph_carries_its_vocabularies(tmp_path: Path) -> None:
    rows = [row("u", "a", 3), row("v", "b", 5)]
    encoded = encode(write_splits(tmp_path / "s", {"train": rows}))

    class Served(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers(encoded)

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.string)])
        def item(self, ids: tf.Tensor) -> tf.Tensor:
            return self.layers.item(ids)

    served, asked = Served(), tf.constant([["a", "b", "", "c"]])
    expected = served.item(asked).numpy()
    assert sorted(expected[0, :2]) == [2, 3]
    assert expected[0, 2:].tolist() == [0, 1]
    tf.saved_model.save(served, str(tmp_path / "saved"))
    shutil.rmtree(encoded.uri)
    moved = shutil.move(tmp_path / "saved", tmp_path / "elsewhere")
    np.testing.assert_array_equal(tf.saved_model.load(str(moved)).item(asked), expected)


def test_without_years_and_times_the_layers_answer_still(tmp_path: Path) -> None:
    encoded = encode(write_splits(tmp_path / "s", {"train": [row("u", "a", None)]}))
    found = layers(encoded)
    assert found.time is None
    np.testing.assert_array_equal(found.year(tf.constant([0, 1999])), [0, 1])


@settings(max_examples=15, deadline=None)
@given(st.lists(ids, min_size=1, max_size=8, unique=True))
def test_names_are_the_way_back(tmp_path_factory, own: list[str]) -> None:
    file = tmp_path_factory.mktemp("t") / "ids.txt"
    file.write_bytes("".join(f"{i}\n" for i in own).encode())
    rows, names = IdLookup(str(file)), IdNames(str(file))
    asked = tf.constant([["", *own]])
    np.testing.assert_array_equal(names(rows(asked)), asked)
    assert names(tf.constant([0, 1, len(own) + 2, -1])).numpy().tolist() == [b""] * 4
