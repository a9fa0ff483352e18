"""Content vectors by hand and against a loop; and the course's dense input, by feature columns and by layers."""

import numpy as np
import oracles
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.models._content import feature_columns, preprocessing_layers, title_tokens, weighted_content


def test_titles_are_words_without_case_and_punctuation() -> None:
    titles = np.array(["", "", "The Cat's (Hat), 2", "the dog", "THE HAT", "..."], object)
    assert title_tokens(titles, 2).tolist() == [[0, 0], [0, 0], [1, 1], [1, 0], [1, 1], [0, 0]]
    everything = title_tokens(titles, 100)
    assert everything.shape == (6, 5)  # the, hat, cats, 2, dog
    assert everything.sum(axis=1).tolist() == [0, 0, 4, 2, 2, 0]


def test_no_titles_have_no_columns() -> None:
    for titles, most in ((["", ""], 5), (["a film"], 0)):
        assert title_tokens(np.array(titles, object), most).shape == (len(titles), 0)


def test_weights_by_hand() -> None:
    # Three items are described: the first value is in all of them and says nothing, the others weigh log(4 / 2).
    genres = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 1]])
    years = np.array([[0, 0], [0, 0], [1, 0], [0, 1]])
    found = weighted_content({"genres": genres, "year": years}, {"year": 0.5})
    length = np.sqrt(1 + 0.25)
    expected = [[0] * 5, [0] * 5, [0, 1 / length, 0, 0.5 / length, 0], [0, 0, 1 / length, 0, 0.5 / length]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


@settings(max_examples=30)
@given(st.data())
def test_any_content_equals_the_loop_and_has_length_1_or_0(data: st.DataObject) -> None:
    items = data.draw(st.integers(1, 6))
    row = st.lists(st.integers(0, 1), min_size=3, max_size=3)
    blocks = {name: data.draw(st.lists(row, min_size=items, max_size=items)) for name in ("a", "b")}
    weights = {"b": data.draw(st.sampled_from([0.0, 0.5, 2.0]))}
    found = weighted_content({name: np.array(block) for name, block in blocks.items()}, weights)
    np.testing.assert_allclose(found, oracles.content_vectors(blocks, weights), rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(found, axis=1)
    assert np.all((lengths < 1e-6) | (np.abs(lengths - 1) < 1e-5))


def test_feature_columns_and_preprocessing_layers_give_the_same_dense_input() -> None:
    inputs = {
        "item": tf.constant([["i1", "i2", "i1"], ["i3", "", ""], ["", "", ""]]),
        "category": tf.constant([["drama", "war", "drama"], ["not known", "nor this", ""], ["", "", ""]]),
    }
    columns, layers = feature_columns(["drama", "war"], 7, 4), preprocessing_layers(["drama", "war"], 7, 4)
    expected = columns(inputs).numpy()
    ((table),) = columns.get_weights()
    assert table.shape == (7, 4)
    layers.set_weights([np.concatenate([np.full((1, 4), 99.0), table])])  # row 0 is padding: never read
    np.testing.assert_allclose(layers(inputs), expected, rtol=1e-6)
    row = dict(zip(["i1", "i2", "i3"], tf.strings.to_hash_bucket_fast(["i1", "i2", "i3"], 7).numpy(), strict=True))
    np.testing.assert_array_equal(expected[:, :3], [[2, 1, 0], [0, 0, 2], [0, 0, 0]])
    np.testing.assert_allclose(expected[0, 3:], (2 * table[row["i1"]] + table[row["i2"]]) / 3, rtol=1e-6)
    np.testing.assert_allclose(expected[1, 3:], table[row["i3"]], rtol=1e-6)
    np.testing.assert_array_equal(expected[2, 3:], np.zeros(4))


def test_both_dense_inputs_learn_the_same() -> None:
    """One step of gradient descent on the embedding, through either form."""
    inputs = {"item": tf.constant([["i1", "i2"], ["i3", ""]]), "category": tf.constant([["war"], [""]])}
    columns, layers = feature_columns(["war"], 5, 2), preprocessing_layers(["war"], 5, 2)
    columns(inputs)
    layers.set_weights([np.concatenate([np.zeros((1, 2)), columns.get_weights()[0]])])
    for form in (columns, layers):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(form(inputs)))
        (weight,) = form.trainable_variables
        tf.keras.optimizers.SGD(0.1).apply_gradients([(tape.gradient(loss, weight), weight)])
    np.testing.assert_allclose(layers.get_weights()[0][1:], columns.get_weights()[0], rtol=1e-6)
    assert not np.any(layers.get_weights()[0][0])
