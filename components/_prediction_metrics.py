"""Metrics of predictions, in NumPy: ratings, chances of a watch, expected watch time. One row is one impression.

Every function takes the name of the model, which is named where a prediction is not a number.
"""

from typing import Any

import numpy as np

from shortlist import ShortlistError

LEAST = 1e-15
"""The least chance that the log-loss lets a model have given to what happened."""


def rmse(predicted: np.ndarray, actual: np.ndarray, name: str = "predicted") -> float:
    """√(mean (predicted − actual)²) over all rows; NaN without any.

    Args:
      predicted: float `[N]`.
      actual: float `[N]`, in the same unit.
      name: of the model.

    Raises:
      ShortlistError: if a prediction is not a finite number, or the lengths differ.
    """
    return float(np.sqrt(_mean(_errors(predicted, actual, name) ** 2)))


def mae(predicted: np.ndarray, actual: np.ndarray, name: str = "predicted") -> float:
    """Mean |predicted − actual| over all rows; NaN without any. Arguments as in `rmse`."""
    return _mean(np.abs(_errors(predicted, actual, name)))


def user_rmse(
    predicted: np.ndarray, actual: np.ndarray, user: np.ndarray, users: int, name: str = "predicted"
) -> np.ndarray:
    """The RMSE of each user's rows, float64 `[Q]`, so that a user counts as much as any other in its mean.

    Args:
      predicted: float `[N]`.
      actual: float `[N]`.
      user: int `[N]`, from 0.
      users: Q.
      name: of the model.

    Returns:
      NaN for a user without a row.
    """
    squares = _errors(predicted, actual, name) ** 2
    return np.sqrt(_ratio(np.bincount(user, squares, users), np.bincount(user, minlength=users)))


def log_loss(probability: np.ndarray, positive: np.ndarray, name: str = "probability") -> float:
    """−mean(y log p + (1 − y) log(1 − p)), no row worse than −log(1e-15); NaN without rows.

    Args:
      probability: float `[N]`, in [0, 1]: the predicted chance of a watch.
      positive: bool `[N]`.
      name: of the model.

    Raises:
      ShortlistError: if a probability is not in [0, 1], or the lengths differ.
    """
    p = _predictions(probability, positive, name)
    if not ((p >= 0) & (p <= 1)).all():
        raise ShortlistError(
            f"`{name}` must predict chances from 0 to 1. Received: {p[~((p >= 0) & (p <= 1))][0]:g}. Odds are not "
            "chances: give odds / (1 + odds)."
        )
    with np.errstate(divide="ignore"):
        loss = -np.where(positive, np.log(p), np.log1p(-p))
    return _mean(np.minimum(loss, -np.log(LEAST)))


def auc(scores: np.ndarray, positive: np.ndarray, name: str = "scores") -> float:
    """The chance that a random positive has a higher score than a random negative, over all rows.

    Σ over pairs of 1[s⁺ > s⁻] + ½ 1[s⁺ = s⁻], divided by their number; ties count half (the average rank), so equal
    scores everywhere give ½. NaN without a positive or without a negative.

    Args:
      scores: float `[N]`.
      positive: bool `[N]`.
      name: of the model.

    Raises:
      ShortlistError: if a score is NaN, or the lengths differ.
    """
    return float(user_auc(scores, positive, np.zeros(len(scores), np.int64), 1, name)[0])


def user_auc(
    scores: np.ndarray, positive: np.ndarray, user: np.ndarray, users: int, name: str = "scores"
) -> np.ndarray:
    """`auc` among the rows of each user, float64 `[Q]`; NaN for a user without both kinds. Ties count half.

    Args:
      scores: float `[N]`.
      positive: bool `[N]`.
      user: int `[N]`, from 0.
      users: Q.
      name: of the model.
    """
    beaten, negatives = _beaten(_predictions(scores, positive, name), positive, user)
    lost = np.bincount(user[positive], beaten[positive], users)
    return 1 - _ratio(lost, np.bincount(user[positive], negatives[positive], users))


def mispredicted_watch_time(
    scores: np.ndarray,
    positive: np.ndarray,
    watch_time: np.ndarray,
    page: np.ndarray,
    user: np.ndarray,
    users: int,
    name: str = "scores",
) -> tuple[np.ndarray, np.ndarray]:
    """Of each user, the watch time that the order mispredicts and all that it could: what the loss is made of.

    Every positive impression is paired with every negative one of the same page. If the negative has the higher score,
    the positive's watch time T is mispredicted:

    mispredicted = Σ_pairs T (1[s⁻ > s⁺] + ½ 1[s⁻ = s⁺]),   total = Σ_pairs T

    Ties count half, as if a coin decided. Source: Covington, Adams, Sargin 2016, §4.3.

    Args:
      scores: float `[N]`.
      positive: bool `[N]`.
      watch_time: float `[N]`, at least 0; looked at for positives only.
      page: int `[N]`, which impressions were shown together; a page belongs to one user.
      user: int `[N]`, from 0.
      users: Q.
      name: of the model.

    Returns:
      Two float64 `[Q]`, in the unit of `watch_time`; sums over users are the paper's.

    Raises:
      ShortlistError: if a score is NaN, a watch time negative or not finite, or the lengths differ.
    """
    time = np.asarray(watch_time, np.float64)[positive]
    if not ((time >= 0) & (time < np.inf)).all():
        wrong = time[~((time >= 0) & (time < np.inf))][0]
        raise ShortlistError(f"`watch_time` of a positive must be a finite number of at least 0. Received: {wrong}.")
    beaten, negatives = _beaten(_predictions(scores, positive, name), positive, page)
    lost = np.bincount(user[positive], time * beaten[positive], users)
    return lost, np.bincount(user[positive], time * negatives[positive], users)


def weighted_user_loss(
    scores: np.ndarray,
    positive: np.ndarray,
    watch_time: np.ndarray,
    page: np.ndarray,
    user: np.ndarray,
    users: int,
    name: str = "scores",
) -> np.ndarray:
    """The weighted per-user loss: the share of each user's watch time that the order mispredicts, float64 `[Q]`.

    `mispredicted_watch_time`, the first divided by the second; ties count half. NaN for a user without a pair, or
    without watch time. The paper's figure over all users is the ratio of the sums instead.

    Example:
      >>> shown = {"page": np.zeros(3, int), "user": np.zeros(3, int), "users": 1}
      >>> scores, watched = np.array([0.9, 0.5, 0.7]), np.array([True, True, False])
      >>> weighted_user_loss(scores, watched, np.array([30.0, 10.0, 0.0]), **shown)
      array([0.25])
    """
    return _ratio(*mispredicted_watch_time(scores, positive, watch_time, page, user, users, name))


def calibration(
    expected: np.ndarray, actual: np.ndarray, buckets: int = 10, name: str = "expected"
) -> dict[str, list[Any]]:
    """Expected against actual watch time in equal shares of the rows, ordered by what was expected.

    A row's bucket is ⌊buckets × (r − ½) / N⌋, r its rank from 1 up, the average one among equal predictions: these
    stay together, so equal predictions everywhere are one bucket. Empty buckets are absent.

    Args:
      expected: float `[N]`, predicted watch time, or odds.
      actual: float `[N]`, watch time in the same unit, 0 for a negative.
      buckets: 10 for deciles.
      name: of the model.

    Returns:
      One entry a bucket: `bucket` (from 0), `rows`, `low` and `high` (of the predictions), `expected` and `actual`
      (means) and `error` = expected / actual − 1, None where nothing was watched.

    Raises:
      ShortlistError: if a prediction is not a finite number, or the lengths differ.
    """
    x = _predictions(expected, actual, name, finite=True)
    ordered = np.sort(x)
    middle = (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")) / 2  # average rank − ½
    bucket = np.minimum((buckets * middle / max(len(x), 1)).astype(np.int64), buckets - 1)
    rows = np.bincount(bucket, minlength=buckets)
    there = np.flatnonzero(rows)
    means = [np.bincount(bucket, values, buckets)[there] / rows[there] for values in (x, actual)]
    low, high = np.full((2, buckets), np.nan)
    np.fmin.at(low, bucket, x)
    np.fmax.at(high, bucket, x)
    error = means[0] / np.where(means[1] != 0, means[1], np.nan) - 1
    return {
        "bucket": there.tolist(),
        "rows": rows[there].tolist(),
        "low": low[there].tolist(),
        "high": high[there].tolist(),
        "expected": means[0].tolist(),
        "actual": means[1].tolist(),
        "error": [None if np.isnan(e) else float(e) for e in error],
    }


def _beaten(scores: np.ndarray, positive: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every row the negatives of its group with a higher score, an equal one counted half, and all of them."""
    if not len(scores):
        return np.zeros(0), np.zeros(0)
    order = np.lexsort((scores, group))
    g, s, negative = group[order], scores[order], ~positive[order]
    below = np.concatenate([[0], np.cumsum(negative)])  # negatives before each place in the order
    new_group = np.append(True, g[1:] != g[:-1])
    new_run = new_group | np.append(True, s[1:] != s[:-1])  # a run has equal group and score
    place = np.arange(len(g))
    run_start, group_start = (np.maximum.accumulate(np.where(new, place, 0)) for new in (new_run, new_group))
    run, member = np.cumsum(new_run) - 1, np.cumsum(new_group) - 1
    run_end = np.append(np.flatnonzero(new_run), len(g))[run + 1]
    group_end = np.append(np.flatnonzero(new_group), len(g))[member + 1]
    higher, equal = below[group_end] - below[run_end], below[run_end] - below[run_start]
    beaten, all_of_them = np.empty(len(g)), np.empty(len(g))
    beaten[order] = higher + equal / 2
    all_of_them[order] = below[group_end] - below[group_start]
    return beaten, all_of_them


def _predictions(values: np.ndarray, other: np.ndarray, name: str, finite: bool = False) -> np.ndarray:
    """As float64, or ShortlistError."""
    x = np.asarray(values, np.float64)
    if x.shape != np.shape(other):
        raise ShortlistError(
            f"`{name}` must predict every row. Received: {len(x):,} predictions for {len(other):,} rows."
        )
    wrong = ~np.isfinite(x) if finite else np.isnan(x)
    if wrong.any():
        raise ShortlistError(
            f"`{name}` predicts {'what is no finite number' if finite else 'NaN'}, which nothing can be said about. "
            f"Train it with a smaller learning rate. Received: {int(wrong.sum()):,} of {len(x):,} rows."
        )
    return x


def _errors(predicted: np.ndarray, actual: np.ndarray, name: str) -> np.ndarray:
    return _predictions(predicted, actual, name, finite=True) - np.asarray(actual, np.float64)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a / np.where(b > 0, b, np.nan)
