"""Skip-gram against NumPy, what it draws, and words that come near each other because the same ones follow."""

import numpy as np
import oracles
import pytest
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.models._skip_gram import SkipGram


def test_the_loss_and_a_step_equal_numpy() -> None:
    model = SkipGram(6, 3)
    rng = np.random.default_rng(0)
    words, followers = rng.normal(size=(2, 6, 3))
    pairs, drawn = [(2, 3), (2, 5), (4, 2)], [[3, 4], [2, 4], [2, 2]]

    def loss() -> float:
        return sum(oracles.skip_gram_loss(words, followers, *pair, n) for pair, n in zip(pairs, drawn, strict=True))

    model.word_table.assign(words)
    model.follower_table.assign(followers)
    word, follower = np.transpose(pairs)
    batch = {"word": tf.constant(word), "follower": tf.constant(follower), "drawn": tf.constant(drawn)}
    with tf.GradientTape() as tape:
        found = model.compute_loss(batch, training=True)
    np.testing.assert_allclose(found, loss(), rtol=1e-5)
    for gradient, table in zip(tape.gradient(found, model.trainable_variables), (words, followers), strict=True):
        assert isinstance(gradient, tf.IndexedSlices)
        dense = tf.convert_to_tensor(gradient).numpy()
        for at in ((2, 0), (2, 2), (4, 1), (5, 1)):
            table[at] += 1e-5
            above = loss()
            table[at] -= 2e-5
            np.testing.assert_allclose(dense[at], (above - loss()) / 2e-5, rtol=1e-3, atol=1e-4)
            table[at] += 1e-5


def test_negatives_are_drawn_by_the_power_of_their_counts() -> None:
    model = SkipGram(6, 2, negatives=4, power=0.5)
    model.set_counts(np.array([0, 0, 16, 0, 4, 1]))
    tf.random.set_seed(0)
    drawn = model.draw(tf.constant(2000)).numpy()
    assert drawn.shape == (2000, 4)
    np.testing.assert_allclose(
        np.bincount(drawn.ravel(), minlength=6) / 8000, [0, 0, 4 / 7, 0, 2 / 7, 1 / 7], atol=0.03
    )


def test_words_with_the_same_followers_come_near_each_other() -> None:
    """Words 2 to 5 are followed by 10 to 13, and 6 to 9 by 14 to 17; no word of a half ever stands by another."""
    rng = np.random.default_rng(0)
    half = rng.integers(0, 2, 4000)
    word, follower = (2 + 4 * half + rng.integers(0, 4, 4000), 10 + 4 * half + rng.integers(0, 4, 4000))
    tf.keras.utils.set_random_seed(0)
    model = SkipGram(18, 8)
    model.set_counts(np.bincount(follower, minlength=18))
    model.compile(tf.keras.optimizers.Adagrad(0.1))
    pairs = tf.data.Dataset.from_tensor_slices({"word": word, "follower": follower}).batch(200)
    model.fit(pairs, epochs=5, verbose=0)
    vectors = tf.math.l2_normalize(model(tf.range(2, 10)), axis=1).numpy()
    cosine = vectors @ vectors.T
    assert cosine[:4, :4].min() > 0.8
    assert cosine[:4, 4:].max() < 0.2


def test_refuses_bad_arguments() -> None:
    with pytest.raises(
        ShortlistError, match=r"^`negatives` must be an integer of at least 1\. Received: negatives=0\.$"
    ):
        SkipGram(4, 2, negatives=0)
    with pytest.raises(ShortlistError, match=r"^`power` must be a finite number of at least 0\. Received: power=-1\.$"):
        SkipGram(4, 2, power=-1)
