"""Bootstrap intervals over users, paired differences and their p-values, all columns at once."""

import numpy as np

from shortlist import ShortlistError

BLOCK = 2**21
"""Draws held at a time."""


def bootstrap_means(
    values: np.ndarray, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The means over users of many columns and their percentile bootstrap intervals.

    A sample draws as many users as there are, with replacement; the bounds are the (1 ± level) / 2 quantiles of the
    samples' means. Equal `seed` and number of users give the same draws, so two systems are compared on the same ones.
    Columns with the same users share their draws: how often each user was drawn, `[S, Q]`, times the values `[Q, M]`.
    Source: Efron, Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.

    Args:
      values: float `[Q, M]`, a row a user; NaN, a user without a target, is left out of its column.
      samples: S, number of bootstrap samples.
      seed: of the draws.
      level: of the interval, between 0 and 1.

    Returns:
      Means, lower and upper bounds, float64 `[M]`; NaN where a column has no user.
    """
    mean, low, high = np.full((3, values.shape[1]), np.nan)
    if not len(values):
        return mean, low, high
    there = ~np.isnan(values)
    patterns, pattern = np.unique(np.packbits(there, axis=0), axis=1, return_inverse=True)
    for p in range(patterns.shape[1]):
        columns = np.flatnonzero(pattern.ravel() == p)
        kept = np.ascontiguousarray(values[there[:, columns[0]]][:, columns], np.float64)  # [Q, m]
        if len(kept):
            mean[columns] = kept.mean(axis=0)
            bounds = [(1 - level) / 2, (1 + level) / 2]
            low[columns], high[columns] = np.quantile(_resampled(kept, samples, seed), bounds, axis=0)
    return mean, low, high


def _resampled(kept: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """The means of each sample `[S, M]`, a block of samples at a time."""
    users = len(kept)
    rng = np.random.default_rng(seed)
    means = np.empty((samples, kept.shape[1]))
    step = max(1, BLOCK // users)
    for start in range(0, samples, step):
        size = min(step, samples - start)
        drawn = rng.integers(0, users, (size, users), np.int32) + users * np.arange(size)[:, np.newaxis]
        counts = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users)  # [step, Q]
        means[start : start + size] = counts.astype(np.float64) @ kept / users
    return means


def bootstrap_mean(
    values: np.ndarray, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """`bootstrap_means` of one column, float `[Q]`.

    Returns:
      Mean, lower and upper bound.

    Raises:
      ShortlistError: if no user is left.
    """
    if np.isnan(values).all():
        raise ShortlistError(
            f"`values` must hold at least one user with a target. Received: {len(values)} users, none with a target."
        )
    mean, low, high = bootstrap_means(values[:, np.newaxis], samples, seed, level)
    return float(mean[0]), float(low[0]), float(high[0])


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """The mean of a − b over users and its interval, by `bootstrap_mean`.

    Args:
      a: float `[Q]`, one a user.
      b: float `[Q]`, of the same users in the same order.
      samples: number of bootstrap samples.
      seed: of the draws.
      level: of the interval, between 0 and 1.

    Returns:
      Mean difference, lower and upper bound.

    Raises:
      ShortlistError: if the numbers of users differ, or no user is left.
    """
    if a.shape != b.shape:
        raise ShortlistError(f"`a` and `b` must be of the same users. Received: {len(a)} and {len(b)} users.")
    return bootstrap_mean(a - b, samples, seed, level)


def sign_flip_p(differences: np.ndarray, samples: int = 10_000, seed: int = 0) -> np.ndarray:
    """Two-sided p-values of paired differences: how often a random exchange of the two systems differs as much.

    If it does not matter which system is which, the sign of each user's difference is a coin. The p-value is the share
    of coin throws whose sum is at least as far from 0 as the observed one, a tie counted: of all 2^Q throws where they
    are no more than `samples`, else (1 + those among `samples` random ones) / (1 + samples), never 0. All columns are
    judged on the same throws.

    Why not from the bootstrap: its percentile interval is too short with few users, and a p-value read off it too
    small; this one is exact, at any number of users, where differences are symmetric about 0 under the hypothesis.
    Source: Smucker, Allan, Carterette 2007, "A comparison of statistical significance tests for information retrieval
    evaluation" (the randomization test).

    Args:
      differences: float `[Q, M]`, a row a user; NaN is left out of its column.
      samples: number of throws, at least 1.
      seed: of the throws.

    Returns:
      float64 `[M]`; NaN where a column has no user.
    """
    given = np.nan_to_num(differences, nan=0.0).astype(np.float64)
    users = len(given)
    observed = np.abs(given.sum(axis=0))
    least = observed - 1e-9 * np.abs(given).sum(axis=0)  # sums of the same numbers in another order are equal
    every = 2**users <= samples if users < 63 else False
    throws = 2**users if every else samples
    rng = np.random.default_rng(seed)
    extreme = np.zeros(given.shape[1], np.int64)
    step = max(1, BLOCK // max(users, 1))
    for start in range(0, throws, step):
        size = min(step, throws - start)
        if every:
            flipped = (np.arange(start, start + size)[:, np.newaxis] >> np.arange(users)) & 1  # [step, Q]
        else:
            bits = rng.integers(0, 256, (size, -(-users // 8)), np.uint8)
            flipped = np.unpackbits(bits, axis=1, count=users).astype(np.int64)
        sums = given.sum(axis=0) - 2 * (flipped.astype(np.float64) @ given)  # [step, M]
        extreme += (np.abs(sums) >= least).sum(axis=0)
    p = extreme / throws if every else (1 + extreme) / (1 + throws)
    return np.where(np.isnan(differences).all(axis=0), np.nan, p)


def holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected for many comparisons: the chance of even one false finding among all stays below the level.

    With p_(1) ≤ … ≤ p_(M), the corrected one is max_{j≤i} min(1, (M − j + 1) p_(j)). NaN is no comparison and stays.
    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Args:
      p: float `[M]`.

    Returns:
      float64 `[M]`, in the order of `p`.

    Example:
      >>> holm(np.array([0.01, 0.04, 0.03])).round(2)
      array([0.03, 0.06, 0.06])
    """
    order = np.argsort(p, kind="stable")  # NaN comes last
    count = int((~np.isnan(p)).sum())
    factor = np.maximum(count - np.arange(len(p)), 1)
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.maximum.accumulate(np.minimum(1, factor * p[order]))
    return corrected
