"""The solvers of WALS as TensorFlow operations on padded batches of rows: for the served graph, and for any device.

Each gives u, float32 `[B, D]`, and the scores u·v of the cells, `[B, L]`, of which those of padding mean nothing.
"""

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


def on_gpu() -> bool:
    """Whether there is a GPU that TensorFlow sees."""
    return bool(tf.config.list_physical_devices("GPU"))


def _dots(vectors: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """v·x of a row's cells, `[B, L]`. oneDNN, which `tf.linalg.matvec` comes to on a CPU, takes half as long again."""
    if on_gpu():
        return tf.linalg.matvec(vectors, x)
    return tf.raw_ops.BatchMatMulV3(x=vectors, y=x[..., tf.newaxis], Tout=tf.float32)[..., 0]


def _combined(vectors: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Σ weights v over a row's cells, `[B, D]`; so written, the vectors are read in their order, in two thirds of the
    time that a transposed product takes."""
    return tf.linalg.matmul(weights[:, tf.newaxis], vectors)[:, 0]


def _factorized(vectors: tf.Tensor, excess: tf.Tensor, ridge: tf.Tensor, gram: tf.Tensor) -> tf.Tensor:
    """The Cholesky factors `[B, d, d]` of the systems in d coordinates."""
    cells = tf.linalg.matmul(vectors * excess[..., tf.newaxis], vectors, transpose_a=True)  # [B, d, d]
    return tf.linalg.cholesky(cells + gram + ridge[:, tf.newaxis, tf.newaxis] * tf.eye(tf.shape(gram)[0]))


def cholesky(s: Systems) -> tuple[tf.Tensor, tf.Tensor]:
    """The exact solution."""
    right = _combined(s.vectors, s.wanted)  # [B, D]
    u = tf.linalg.cholesky_solve(_factorized(s.vectors, s.excess, s.ridge, s.gram), right[..., tf.newaxis])[..., 0]
    return u, tf.linalg.matvec(s.vectors, u)


def contributions(s: Systems, vector: tf.Tensor) -> tf.Tensor:
    """What each cell adds to u · `vector` `[B, D]`, with the exact u: float32 `[B, L]`."""
    weighed = tf.linalg.cholesky_solve(_factorized(s.vectors, s.excess, s.ridge, s.gram), vector[..., tf.newaxis])
    return s.wanted * tf.linalg.matvec(s.vectors, weighed[..., 0])


def cg(s: Systems, start: tf.Tensor, steps: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Some steps of conjugate gradients from `start`; no D × D system is formed.

    The cells' vectors go through memory once a product, which is what this takes its time for. So the scores follow
    along, and the last step, which needs no new residual, does without the second product.
    """

    def dense(x: tf.Tensor) -> tf.Tensor:
        return tf.linalg.matmul(x, s.gram) + s.ridge[:, tf.newaxis] * x

    def squares(x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(x * x, axis=1, keepdims=True)  # [B, 1]

    u, scores = start, _dots(s.vectors, start)
    r = _combined(s.vectors, s.wanted - s.excess * scores) - dense(u)
    p, length = r, squares(r)
    goal = tf.maximum(CONVERGED * length, 1e-30)
    for taken in range(steps):
        change, product = _dots(s.vectors, p), dense(p)
        weighed, last = s.excess * change, taken == steps - 1
        if last:
            curvature = tf.reduce_sum(weighed * change, axis=1, keepdims=True)
            curvature += tf.reduce_sum(p * product, axis=1, keepdims=True)
        else:
            product += _combined(s.vectors, weighed)
            curvature = tf.reduce_sum(p * product, axis=1, keepdims=True)
        step = tf.where(length > goal, length / curvature, 0.0)
        u += step * p
        scores += step * change
        if not last:
            r -= step * product
            new = squares(r)
            p = tf.where(length > goal, r + new / length * p, p)
            length = tf.where(length > goal, new, length)
    return u, scores


def block(s: Systems, start: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """An exact step from `start` in each block of coordinates after the other."""
    dim = start.shape[1]
    u, scores = start, _dots(s.vectors, start)
    for first in range(0, dim, size):
        last = min(first + size, dim)
        part = s.vectors[..., first:last]  # [B, L, d]
        toward = _combined(part, s.wanted - s.excess * scores)  # [B, d]
        toward -= tf.linalg.matmul(u, s.gram[:, first:last]) + s.ridge[:, tf.newaxis] * u[:, first:last]
        factor = _factorized(part, s.excess, s.ridge, s.gram[first:last, first:last])
        step = tf.linalg.cholesky_solve(factor, toward[..., tf.newaxis])[..., 0]
        u += tf.pad(step, [[0, 0], [first, dim - last]])
        scores += _dots(part, step)
    return u, scores
