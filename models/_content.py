"""What items are, as numbers; and the dense input of the course's network, by feature columns and by layers."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf


def title_tokens(titles: np.ndarray, most: int, fitted: np.ndarray | None = None) -> np.ndarray:
    """The words of titles, float32 `[I, T]` multi-hot, T ≤ `most`.

    A title is put in lower case and loses its punctuation; what stands between blanks is a word. The `most` frequent
    words have a column each, ties in the order of `TextVectorization`; the others have none.

    Args:
      titles: strings `[I]`, "" where there is none.
      most: at least 0.
      fitted: the titles whose words have the columns; `titles` themselves if None.
    """
    words = _words(titles if fitted is None else fitted, most)
    if words is None:
        return np.zeros((len(titles), 0), np.float32)
    return words(tf.constant(np.asarray(titles, np.str_))).numpy()[:, 1:]  # column 0 is that of the other words


def title_words(titles: np.ndarray, most: int) -> list[str]:
    """The words that have a column of `title_tokens`, in their order."""
    words = _words(titles, most)
    return [] if words is None else [str(word) for word in words.get_vocabulary()[1:]]


def _words(titles: np.ndarray, most: int) -> tf.keras.layers.Layer | None:
    """The layer that counts the words of titles; None where none has a column."""
    if not most or not any(titles):
        return None
    words = tf.keras.layers.TextVectorization(max_tokens=most + 1, output_mode="multi_hot")
    words.adapt(np.asarray(titles, np.str_), batch_size=len(titles))  # its own batches have 32 titles
    return words


def weighted_content(
    blocks: Mapping[str, np.ndarray], weights: Mapping[str, float], fitted: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Content vectors of length 1, rare values weighing more, float32 `[I, F]`: the blocks' columns side by side.

    A value f that n_f of N items have weighs log((1 + N) / (1 + n_f)), N counting the items that have anything in the
    block. What an item has of a block is brought to length 1, times the block's weight, and then the whole. An item
    without any content is 0 everywhere.

    Source: Salton and Buckley 1988 (TF-IDF with the cosine).

    Args:
      blocks: float `[I, F_b]` multi-hot, by name.
      weights: at least 0, by the same names; 1 where there is none.
      fitted: as `blocks`, of the items that are counted; `blocks` themselves if None.
    """
    parts = []
    for name, block in blocks.items():
        block = np.asarray(block, np.float32)
        counted = block if fitted is None else np.asarray(fitted[name], np.float32)
        share = (1 + counted.any(axis=1).sum()) / (1 + counted.sum(axis=0))
        parts.append(np.float32(weights.get(name, 1.0)) * _unit(block * np.log(share).astype(np.float32)))
    return _unit(np.concatenate(parts, axis=1))


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, np.newaxis]
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def feature_columns(vocabulary: Sequence[str], hash_buckets: int, embedding_dim: int) -> tf.keras.layers.Layer:
    """The dense input of the course's network by feature columns, in the form that TensorFlow 2 still has.

    Ids go through a hash bucket and the mean of their embeddings; categories through a vocabulary list with one bucket
    for what is not in it, and an indicator, which counts them. `tf.feature_column.input_layer` and `tf.layers` are gone
    from TensorFlow 2; `DenseFeatures` takes their place. TensorFlow marks the columns as deprecated:
    `preprocessing_layers` gives the same.

    Args:
      vocabulary: the categories.
      hash_buckets: at least 1.
      embedding_dim: D.

    Returns:
      A layer: `{"category": string [B, C], "item": string [B, L]}`, "" being padding → float32 `[B, V + 1 + D]`, the
      indicator first, its last column for what is not in the vocabulary.
    """
    columns = tf.feature_column
    category = columns.categorical_column_with_vocabulary_list("category", vocabulary, num_oov_buckets=1)
    item = columns.categorical_column_with_hash_bucket("item", hash_buckets)
    return tf.keras.layers.DenseFeatures(
        [columns.indicator_column(category), columns.embedding_column(item, embedding_dim, combiner="mean")]
    )


def preprocessing_layers(vocabulary: Sequence[str], hash_buckets: int, embedding_dim: int) -> tf.keras.Model:
    """The same dense input as `feature_columns`, by preprocessing layers; only weight: `[hash_buckets + 1, D]`, whose
    row 0 is padding."""
    inputs = {name: tf.keras.Input([None], dtype=tf.string, name=name) for name in ("category", "item")}
    counts = tf.keras.layers.StringLookup(vocabulary=list(vocabulary), output_mode="count", mask_token="")
    rows = tf.keras.layers.Hashing(hash_buckets + 1, mask_value="")(inputs["item"])  # [B, L]
    seen = tf.cast(rows > 0, tf.float32)[..., tf.newaxis]
    total = tf.reduce_sum(tf.keras.layers.Embedding(hash_buckets + 1, embedding_dim)(rows) * seen, axis=1)  # [B, D]
    mean = tf.math.divide_no_nan(total, tf.reduce_sum(seen, axis=1))
    indicator = tf.roll(counts(inputs["category"]), -1, axis=1)  # out of vocabulary comes first in a look-up
    return tf.keras.Model(inputs, tf.concat([indicator, mean], axis=1))
