"""The losses of a softmax over the catalogue: over all of it, over sampled negatives, or without any."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID
from shortlist.models._checks import require, require_integer, require_number
from shortlist.models._replicas import gathered, replicas, rows_of

SOFTMAX = ("full", "in_batch", "uniform", "popularity", "mixed", "hard", "positives_only")
IN_BATCH = ("in_batch", "mixed", "hard")
LOG_Q = ("counts", "streaming", "none")
MASKED = -1e9

Embed = Callable[..., tf.Tensor]
"""From item rows int `[N]` to their vectors float32 `[N, D]`; with `training=False` as they are served."""


@tf.keras.utils.register_keras_serializable("shortlist")
class StreamingFrequency(tf.keras.layers.Layer):
    """How often each item is in a batch, estimated while the batches go by, in memory that the catalogue doesn't set.

    For an item of the batch at step t, whose bucket last saw one at step A: B ← (1 − α) B + α (t − A), then A ← t. The
    mean gap B makes the probability of being in a batch 1 / B. A bucket that several items share has too small a gap,
    so of the several hash functions the largest gap counts. An item in every batch has the probability 1, however
    often it is there: with few batches an epoch exact counts are better.

    Source: Yi et al. 2019, algorithms 2 and 3.

    Args:
      buckets: H, of each hash function.
      hashes: M, how many hash functions.
      rate: α in (0, 1].
      first_gap: B before an item was seen.

    Call: item rows int `[N]` → log of the estimated probability, float32 `[N]`.

    Example:
      >>> layer = StreamingFrequency(buckets=64, rate=0.5, first_gap=4.0)
      >>> for batch in ([2, 3], [2, 4], [2, 3]):
      ...     layer.update(tf.constant(batch))
      >>> np.exp(-layer(tf.constant([2, 3]))).round(3)  # 1.375 = ((4 + 1) / 2 + 1) / 2 …, 2.25 = ((4 + 1) / 2 + 2) / 2
      array([1.375, 2.25 ], dtype=float32)
    """

    def __init__(
        self, buckets: int = 2**16, hashes: int = 3, rate: float = 0.05, first_gap: float = 100.0, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.buckets, self.hashes = require_integer("buckets", buckets), require_integer("hashes", hashes)
        require(0 < rate <= 1, "`rate` must be in (0, 1].", rate=rate)
        self.rate, self.first_gap = rate, require_number("first_gap", first_gap, low=1.0)
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA  # all replicas count the same batch
        constant, size = {"trainable": False, "aggregation": first}, (self.hashes * self.buckets,)
        self.last = self.add_weight("last", size, tf.float32, "zeros", **constant)
        self.gap = self.add_weight("gap", size, tf.float32, tf.keras.initializers.Constant(first_gap), **constant)
        self.step = self.add_weight("step", (), tf.float32, "zeros", **constant)

    def places(self, items: tf.Tensor) -> tf.Tensor:
        """Where each hash function puts each item, int64 `[M, N]`, in arrays that stand behind each other."""
        x = tf.cast(items, tf.int64)[tf.newaxis] + 1
        number = tf.range(self.hashes, dtype=tf.int64)[:, tf.newaxis]
        mixed = x * (2_654_435_761 + 81_006 * number)  # odd multipliers; the high half decides
        mixed = tf.bitwise.bitwise_xor(mixed, tf.bitwise.right_shift(mixed, tf.constant(16, tf.int64)))
        return tf.math.floormod(mixed, self.buckets) + number * self.buckets

    def update(self, items: tf.Tensor) -> None:
        """Counts one batch, int `[N]`; an item twice in it is there once."""
        self.step.assign_add(1.0)
        place = tf.reshape(self.places(items), [-1])
        last, gap = rows_of(self.last, place), rows_of(self.gap, place)
        gap = (1 - self.rate) * gap + self.rate * (self.step - last)
        self.gap.scatter_update(tf.IndexedSlices(gap, place))  # equal places are given equal values
        self.last.scatter_update(tf.IndexedSlices(tf.fill(tf.shape(place), self.step), place))

    def call(self, items: tf.Tensor) -> tf.Tensor:
        return -tf.math.log(tf.reduce_max(rows_of(self.gap, self.places(items)), axis=0))

    def get_config(self) -> dict[str, Any]:
        own = {"buckets": self.buckets, "hashes": self.hashes, "rate": self.rate, "first_gap": self.first_gap}
        return {**super().get_config(), **own}


@tf.keras.utils.register_keras_serializable("shortlist")
class CatalogueSoftmax(tf.keras.layers.Layer):
    """−log softmax of the watched item, among all items or among it and some negatives.

    Each logit, the label's too, is s(x, i) − log Q(i), Q being how probable i is as a negative, and the loss of an
    example is −log(e^label / (e^label + Σ_negatives e^logit)). A negative that equals the label is masked. `softmax`
    says which negatives:

    * `full`: every item but the reserved rows, log Q = 0.
    * `in_batch`: the labels of the other examples; Q is an item's share of the labels.
    * `uniform`: `negatives` items, drawn uniformly for the whole batch.
    * `popularity`: `negatives` items, drawn by Q ∝ count^`popularity_power`.
    * `mixed`: in-batch and uniform ones, Q = (B · share + N / I) / (B + N).
    * `hard`: as `mixed`, but `hard_share` of the `negatives` are, for each example, the items of the highest scores
      by item vectors that are up to `hard_refresh` steps old. Before step `hard_warmup` these too are uniform. The
      search looks at all items, so that a step costs about as much as with `full`.
    * `positives_only`: no negative; −log σ(s). Nothing pushes apart what nobody watches together, so it folds.

    Source: Yi et al. 2019, eq. 4–6 (in-batch, logQ); Bengio and Senécal 2008 (sampled softmax); Yang et al. 2020, eq. 4
    (mixed); Covington, Adams and Sargin 2016, §3.1.

    Args:
      num_items: I, rows of the item table, the two reserved ones included.
      embedding_dim: D.
      softmax: one of the above.
      negatives: N, drawn a batch.
      log_q: "counts" takes Q from `set_counts`, "streaming" estimates an item's share from the batches that go by, see
        `StreamingFrequency`; "none" leaves the correction out.
      popularity_power: β ≥ 0.
      hard_share: in [0, 1].
      hard_warmup, hard_refresh: steps.

    Call: ψ float32 `[B, D]`, `label` int `[B]`, `embed`, and optionally weights float32 `[B]` of the examples → the
    summed loss.
    """

    def __init__(
        self,
        num_items: int,
        embedding_dim: int,
        softmax: str = "in_batch",
        negatives: int = 512,
        log_q: str = "counts",
        popularity_power: float = 0.75,
        hard_share: float = 0.1,
        hard_warmup: int = 1000,
        hard_refresh: int = 200,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        require(softmax in SOFTMAX, f"`softmax` must be one of {', '.join(SOFTMAX)}.", softmax=softmax)
        require(log_q in LOG_Q, f"`log_q` must be one of {', '.join(LOG_Q)}.", log_q=log_q)
        require(0 <= hard_share <= 1, "`hard_share` must be in [0, 1].", hard_share=hard_share)
        self.num_items, self.softmax, self.log_q, self.hard_share = num_items, softmax, log_q, hard_share
        self.negatives = require_integer("negatives", negatives)
        self.popularity_power = require_number("popularity_power", popularity_power)
        self.hard_warmup = require_integer("hard_warmup", hard_warmup, 0)
        self.hard_refresh = require_integer("hard_refresh", hard_refresh)
        self.hard = round(negatives * hard_share) if softmax == "hard" else 0
        constant = {"trainable": False, "initializer": "zeros"}
        self.log_share = self.add_weight("log_share", (num_items,), **constant)
        if softmax == "popularity":
            self.cumulative = self.add_weight("cumulative", (num_items,), tf.float64, **constant)
        if log_q == "streaming" and softmax in IN_BATCH:
            self.streaming = StreamingFrequency(buckets=max(1024, 2 * num_items))
        if self.hard:
            self.index = self.add_weight("index", (num_items, embedding_dim), **constant)
            self.step = self.add_weight("step", (), tf.int64, **constant)
        self.set_counts(np.ones(num_items))

    def set_counts(self, counts: np.ndarray) -> None:
        """Takes from `counts` `[I]`, how often each item is a label, its share and how popular it is.

        Raises:
          ShortlistError: if they are not one number an item.
        """
        counts = np.asarray(counts, np.float64)
        rule = f"`counts` must be one number for each of the {self.num_items:,} items."
        require(counts.shape == (self.num_items,), rule, shape=counts.shape)
        share = np.maximum(counts, 0.5) / max(counts.sum(), 1.0)
        self.log_share.assign(np.log(share).astype(np.float32))
        if self.softmax == "popularity":
            power = share**self.popularity_power
            power[:FIRST_ID] = 0
            self.cumulative.assign(np.cumsum(power) / power.sum())

    def draw(self, shape: Any) -> tf.Tensor:
        """Negatives, int32 of that shape: uniform, or by popularity."""
        if self.softmax != "popularity":
            return tf.random.uniform(shape, FIRST_ID, self.num_items, tf.int32)
        return tf.searchsorted(self.cumulative, tf.random.uniform(shape, dtype=tf.float64), side="right")

    def log_probability(self, items: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
        """Log Q float32 of item rows `[N]`, in a batch of that many examples; up to a constant."""
        if self.log_q == "none" or self.softmax == "uniform":
            return tf.zeros(tf.shape(items))
        if self.softmax == "popularity":
            return rows_of(self.log_share, items) * self.popularity_power
        if self.log_q == "streaming":
            log_count = self.streaming(items)
        else:
            log_count = rows_of(self.log_share, items) + tf.math.log(tf.cast(batch, tf.float32))
        if self.softmax == "in_batch":
            return log_count
        return tf.math.log(tf.exp(log_count) + self.negatives / (self.num_items - FIRST_ID))

    def hardest(self, psi: tf.Tensor, embed: Embed) -> tf.Tensor:
        """The items of the highest scores in the index, int32 `[B, H]`; uniform ones before the warm-up is over."""
        since = self.step.assign_add(1) - 1 - self.hard_warmup

        def refreshed() -> tf.Tensor:
            return self.index.assign(embed(tf.range(self.num_items), training=False))

        index = tf.cond((since >= 0) & (since % self.hard_refresh == 0), refreshed, lambda: self.index.value())

        def search() -> tf.Tensor:
            scores = tf.linalg.matmul(psi, index[FIRST_ID:], transpose_b=True)  # [B, I - 2]
            return tf.math.top_k(scores, min(self.hard, self.num_items - FIRST_ID))[1] + FIRST_ID

        drawn = [tf.shape(psi)[0], min(self.hard, self.num_items - FIRST_ID)]
        return tf.stop_gradient(tf.cond(since >= 0, search, lambda: self.draw(drawn)))

    def logits(
        self, psi: tf.Tensor, label: tf.Tensor, embed: Embed, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Corrected and masked logits `[B, N]` with the label's among them, and its column `[B]`.

        Items that are in the batch more than once share a column, see `_grouped`.
        """
        batch = tf.shape(label)[0]
        if self.softmax == "full":
            vectors = embed(tf.range(FIRST_ID, self.num_items))
            return tf.linalg.matmul(psi, vectors, transpose_b=True), label - FIRST_ID  # [B, I - 2]
        if self.softmax == "positives_only":
            right = tf.reduce_sum(psi * embed(label), axis=1, keepdims=True)
            return tf.concat([right, tf.zeros_like(right)], axis=1), tf.zeros_like(label)  # σ is a softmax against 0
        everybody = gathered(label) if self.softmax in IN_BATCH else label  # the batch of all replicas
        if self.log_q == "streaming" and training:
            self.streaming.update(everybody)
        drawn = self.draw([0 if self.softmax == "in_batch" else self.negatives - self.hard])
        if self.softmax in IN_BATCH:
            logits, own = self._grouped(psi, label, everybody, drawn, embed)
        else:
            items = tf.concat([label, drawn], axis=0)
            vectors, log_q = embed(items), self.log_probability(items, batch)
            right = tf.reduce_sum(psi * vectors[:batch], axis=1) - log_q[:batch]
            others = tf.linalg.matmul(psi, vectors[batch:], transpose_b=True) - log_q[batch:]
            others = tf.where(label[:, tf.newaxis] == drawn, MASKED, others)
            logits, own = tf.concat([right[:, tf.newaxis], others], axis=1), tf.zeros_like(label)  # [B, 1 + N]
        if self.hard:
            items = self.hardest(psi, embed)  # [B, H]
            flat = tf.reshape(items, [-1])
            vectors = tf.reshape(embed(flat), [batch, -1, psi.shape[1]])  # [B, H, D]
            log_q = tf.reshape(self.log_probability(flat, batch), tf.shape(items))
            hard = tf.einsum("bd,bhd->bh", psi, vectors) - log_q
            logits = tf.concat([logits, tf.where(label[:, tf.newaxis] == items, MASKED, hard)], axis=1)
        return logits, own

    def _grouped(
        self, psi: tf.Tensor, label: tf.Tensor, everybody: tf.Tensor, drawn: tf.Tensor, embed: Embed
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits `[B, U]` of the different ones among the labels of all replicas and `drawn`, and the labels' columns.

        An item that is there c times is a negative c times, so its logit grows by log c; where it is the label it
        counts once, which masks all accidental hits. Alone, a replica embeds each item once; several embed their own
        labels and exchange the vectors.
        """
        batch, alone = tf.shape(label)[0], replicas() == 1
        items = tf.concat([everybody, drawn] if alone else [label, everybody, drawn], axis=0)  # own labels first
        used, place, count = tf.unique_with_counts(items)
        own = place[:batch]
        if alone:
            vectors = embed(used)
        else:
            count -= tf.math.bincount(own, minlength=tf.size(used), maxlength=tf.size(used))  # they are there twice
            mine = embed(label)
            found = tf.concat([mine, gathered(mine), embed(drawn)], axis=0)
            vectors = tf.gather(found, tf.math.unsorted_segment_min(tf.range(tf.size(items)), place, tf.size(used)))
        log_count = tf.math.log(tf.cast(count, tf.float32))
        bias = log_count - self.log_probability(used, tf.shape(everybody)[0])
        vectors = tf.concat([vectors, bias[:, tf.newaxis]], axis=1)  # [U, D + 1]
        psi = tf.pad(psi, [[0, 0], [0, 1]], constant_values=1.0)
        logits = tf.linalg.matmul(psi, vectors, transpose_b=True)
        where = tf.stack([tf.range(batch), own], axis=1)
        return tf.tensor_scatter_nd_sub(logits, where, tf.gather(log_count, own)), own

    def call(
        self,
        psi: tf.Tensor,
        label: tf.Tensor,
        embed: Embed,
        sample_weight: tf.Tensor | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        logits, own = self.logits(psi, label, embed, training)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(own, logits)
        return tf.reduce_sum(losses if sample_weight is None else losses * sample_weight)
