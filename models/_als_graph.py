"""The solvers of WALS as TensorFlow operations on padded batches of rows: for the served graph, and for any device."""

from typing import NamedTuple

import tensorflow as tf

CONVERGED = 1e-14
"""Squared length of a residual, relative to the first one's, at which float32 has no more to give."""


class Systems(NamedTuple):
    """What B rows solve: (Σ excess v vᵀ + gram + ridge 1) u = Σ wanted v."""

    vectors: tf.Tensor
    """v, float32 `[B, L, D]`."""
    excess: tf.Tensor
    """c − w0, float32 `[B, L]`, 0 where padded."""
    wanted: tf.Tensor
    """c a, float32 `[B, L]`, 0 where padded."""
    ridge: tf.Tensor
    """λ n^ν, float32 `[B]`; 1 more for a row without a cell, so that its factors are zeros."""
    gram: tf.Tensor
    """w0 Σ v vᵀ over the whole other side, float32 `[D, D]`."""


def systems(
    columns: tf.Tensor,
    targets: tf.Tensor,
    weights: tf.Tensor,
    other: tf.Tensor,
    gram: tf.Tensor,
    w0: float,
    l2: float,
    exponent: float,
    size: tf.Tensor,
) -> Systems:
    """See `WALS.project` for the tensors; `size`, float32, is the other side's."""
    observed = tf.cast(columns >= 0, tf.float32)
    count = tf.reduce_sum(observed, axis=1)  # [B]
    n = count + w0 * size
    return Systems(
        tf.gather(other, tf.maximum(columns, 0)),
        (weights - w0) * observed,
        weights * targets * observed,
        l2 * n**exponent + tf.cast(count == 0, tf.float32),
        w0 * gram,
    )


def _factorized(vectors: tf.Tensor, excess: tf.Tensor, ridge: tf.Tensor, gram: tf.Tensor) -> tf.Tensor:
    """The Cholesky factors `[B, d, d]` of the systems in d coordinates."""
    cells = tf.linalg.matmul(vectors * excess[..., tf.newaxis], vectors, transpose_a=True)  # [B, d, d]
    return tf.linalg.cholesky(cells + gram + ridge[:, tf.newaxis, tf.newaxis] * tf.eye(tf.shape(gram)[0]))


def cholesky(s: Systems) -> tf.Tensor:
    """The exact u, float32 `[B, D]`."""
    right = tf.linalg.matvec(s.vectors, s.wanted, transpose_a=True)  # [B, D]
    return tf.linalg.cholesky_solve(_factorized(s.vectors, s.excess, s.ridge, s.gram), right[..., tf.newaxis])[..., 0]


def contributions(s: Systems, vector: tf.Tensor) -> tf.Tensor:
    """What each cell adds to u · `vector` `[B, D]`, with the exact u: float32 `[B, L]`."""
    weighed = tf.linalg.cholesky_solve(_factorized(s.vectors, s.excess, s.ridge, s.gram), vector[..., tf.newaxis])
    return s.wanted * tf.linalg.matvec(s.vectors, weighed[..., 0])


def cg(s: Systems, start: tf.Tensor, steps: int) -> tf.Tensor:
    """Some steps of conjugate gradients from `start`: u, float32 `[B, D]`. No D × D system is formed."""

    def times(x: tf.Tensor) -> tf.Tensor:
        scores = s.excess * tf.linalg.matvec(s.vectors, x)  # [B, L]
        cells = tf.linalg.matvec(s.vectors, scores, transpose_a=True)  # [B, D]
        return cells + tf.linalg.matmul(x, s.gram) + s.ridge[:, tf.newaxis] * x

    u = start
    r = tf.linalg.matvec(s.vectors, s.wanted, transpose_a=True) - times(u)
    p, length = r, tf.reduce_sum(r * r, axis=1, keepdims=True)  # [B, 1]
    goal = tf.maximum(CONVERGED * length, 1e-30)
    for _ in tf.range(steps):
        q = times(p)
        step = tf.where(length > goal, length / tf.reduce_sum(p * q, axis=1, keepdims=True), 0.0)
        u += step * p
        r -= step * q
        new = tf.reduce_sum(r * r, axis=1, keepdims=True)
        p = tf.where(length > goal, r + new / length * p, p)
        length = tf.where(length > goal, new, length)
    return u


def block(s: Systems, start: tf.Tensor, size: int) -> tf.Tensor:
    """An exact step from `start` in each block of coordinates after the other: u, float32 `[B, D]`."""
    dim = start.shape[1]
    u, scores = start, tf.linalg.matvec(s.vectors, start)  # [B, L]
    for first in range(0, dim, size):
        last = min(first + size, dim)
        part = s.vectors[..., first:last]  # [B, L, d]
        toward = tf.linalg.matvec(part, s.wanted - s.excess * scores, transpose_a=True)  # [B, d]
        toward -= tf.linalg.matmul(u, s.gram[:, first:last]) + s.ridge[:, tf.newaxis] * u[:, first:last]
        factor = _factorized(part, s.excess, s.ridge, s.gram[first:last, first:last])
        step = tf.linalg.cholesky_solve(factor, toward[..., tf.newaxis])[..., 0]
        u += tf.pad(step, [[0, 0], [first, dim - last]])
        scores += tf.linalg.matvec(part, step)
    return u
