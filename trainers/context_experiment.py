"""Which use of context helps: all methods on the same folds, each tuned with the same budget inside of them."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from shortlist import ShortlistError
from shortlist.components._config import Config
from shortlist.components._context_report import write_report
from shortlist.components._intervals import bootstrap_means, holm, sign_flip_p
from shortlist.components._progress import progress
from shortlist.components._tables import INTERACTIONS, conform
from shortlist.components.context import PREFIX, dimensions_of, row_numbers
from shortlist.components.example_gen import DataConfig, read
from shortlist.components.metrics import ranking_metrics
from shortlist.trainers._rating_methods import Method, Ratings, Settings, methods

BASE = "biased_mf"
RANKING = ("ndcg@10", "recall@10", "map@10")


class ContextExperiment(Config):
    """Settings of the comparison.

    Args:
      data: the ratings; see `DataConfig`. Rows without a rating are left out; repeated ones stay.
      folds: K. Each rating is predicted once a fold seed, by what was fitted to the other folds.
      fold_seeds: a division into folds for each.
      inner_folds: into how many parts the ratings of the other folds are cut to choose settings by RMSE.
      trials: settings that every method tries there.
      epochs: of each factorization.
      batch_size: rows a step.
      high_rating: the lowest rating of a relevant item.
      only: names of methods; all without any. `biased_mf` is always there.
      samples: of the bootstrap over users.
      seed: of the trials, of initial weights and of the bootstrap.
    """

    data: DataConfig = DataConfig()
    folds: int = pydantic.Field(5, ge=2)
    fold_seeds: tuple[int, ...] = pydantic.Field((0, 1, 2), min_length=1)
    inner_folds: int = pydantic.Field(3, ge=2)
    trials: int = pydantic.Field(12, ge=1)
    epochs: int = pydantic.Field(60, ge=1)
    batch_size: int = pydantic.Field(1024, ge=1)
    high_rating: float = 4.0
    only: tuple[str, ...] = ()
    samples: int = pydantic.Field(2000, ge=1)
    seed: int = pydantic.Field(0, ge=0)


def run_experiment(config: ContextExperiment, workdir: Path) -> dict[str, Any]:
    """Runs it, and writes `context.json`, `context.png`, `report.html` and `predictions.parquet` into `workdir`.

    Returns:
      What `context.json` holds: `{"data", "rows", "users", "items", "contexts", "settings", "methods": {name: {"rmse",
      "mae", "ndcg@10", "recall@10", "map@10": {"value", "low", "high"}, "rmse_by_fold": [[of each fold] of each fold
      seed], "chosen": [[settings of each fold] …]}}, "differences": [{"metric", "method", "difference", "low", "high",
      "p", "p_holm"}]}`. RMSE and MAE are means over folds and fold seeds, their intervals bootstraps over users; a
      ranking metric is a mean over users of the mean over a user's queries, one a context in which a rating of a fold
      is high. A difference is that of a method less `biased_mf`, on the same users.

    Raises:
      ShortlistError: for data without ratings or context, or with fewer ratings than folds, and for a method that is
        none.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    data = read_ratings(config.data, workdir)
    if len(data.rating) < config.folds * config.inner_folds:
        raise ShortlistError(
            f"`folds` must leave ratings for each of {config.folds} times {config.inner_folds} folds. Received: "
            f"{len(data.rating):,} ratings."
        )
    how = {"epochs": config.epochs, "batch_size": config.batch_size, "seed": config.seed}
    every = methods(data, config.high_rating, **how)
    for name in config.only:
        if name not in every:
            raise ShortlistError(f"`only` must name methods: {', '.join(every)}. Received: {name!r}.")
    chosen = {n: m for n, m in every.items() if not config.only or n in (*config.only, BASE)}
    results = {name: _Result(data, config) for name in chosen}
    with progress("folds", config.folds * len(config.fold_seeds)) as advance:
        for seed, fold in itertools.product(range(len(config.fold_seeds)), range(config.folds)):
            folds = _dealt(len(data.rating), config.folds, config.fold_seeds[seed])
            train, test = data.rows(folds != fold), data.rows(folds == fold)
            tuned: dict[str, Settings] = {}
            for name, method in chosen.items():
                same = BASE if name == "post_filter" else name  # it has the settings of what it filters
                tuned[name] = tuned.get(same) or _tune(method, train, config, fold)
                method.fit(train, tuned[name])
                results[name].add(seed, fold, method, train, np.flatnonzero(folds == fold), test, tuned[name])
            advance()
    found = _summary(config, data, results)
    (workdir / "context.json").write_text(json.dumps(found, indent=2))
    columns = {name: r.predicted.mean(axis=0) for name, r in results.items() if r.predicts}
    identity = {"user": data.user, "item": data.item, "rating": data.rating}
    pq.write_table(pa.table(identity | columns), workdir / "predictions.parquet")
    write_report(found, workdir)
    return found


def read_ratings(config: DataConfig, scratch: Path) -> Ratings:
    """The rated rows of a source, all of them."""
    found = read(config, scratch).all_interactions()
    table = conform(found, INTERACTIONS, config.source)
    table = table.filter(pc.is_valid(table["rating"]))
    names = dimensions_of(table)
    if not names or not len(table):
        raise ShortlistError(
            "An experiment with context needs ratings and at least one column `context_<dimension>`. Received: "
            f"{len(table):,} ratings and the columns {', '.join(found.column_names)}."
        )
    codes, values = zip(*(row_numbers(table[PREFIX + name]) for name in names), strict=True)
    contexts = {name: len(own) - 1 for name, own in zip(names, values, strict=True)}
    if empty := [name for name, size in contexts.items() if not size]:
        raise ShortlistError(f"`{PREFIX}{empty[0]}` must be known in some row. Received: none of {len(table):,}.")
    (user, users), (item, items) = row_numbers(table["user"]), row_numbers(table["item"])
    rating = table["rating"].to_numpy().astype(np.float64)
    return Ratings(user - 1, item - 1, np.stack(codes, axis=1), rating, len(users) - 1, len(items) - 1, contexts)


def _dealt(rows: int, folds: int, seed: int) -> np.ndarray:
    """The fold of each row, of sizes that differ by one at most."""
    return np.random.default_rng(seed).permutation(rows) % folds


def _tune(method: Method, train: Ratings, config: ContextExperiment, fold: int) -> Settings:
    """The settings with the least RMSE over the inner folds; every method draws as many."""
    rng = np.random.default_rng([config.seed, fold])
    trials = [method.draw(rng) for _ in range(config.trials)]
    if not trials[0]:
        return {}
    inner = _dealt(len(train.rating), config.inner_folds, config.seed)
    losses = np.zeros(len(trials))
    for (t, settings), part in itertools.product(enumerate(trials), range(config.inner_folds)):
        method.fit(train.rows(inner != part), settings)
        held_out = train.rows(inner == part)
        losses[t] += np.square(method.predict(held_out) - held_out.rating).sum()
    return trials[int(losses.argmin())]


class _Result:
    """What a method predicted of each rating, and how it ranked for each query."""

    def __init__(self, data: Ratings, config: ContextExperiment):
        self.data, self.config = data, config
        shape = len(config.fold_seeds), len(data.rating)
        self.predicted, self.predicts = np.full(shape, np.nan), True
        self.sums, self.queries = np.zeros((data.users, len(RANKING))), np.zeros(data.users)
        self.by_fold = np.full((len(config.fold_seeds), config.folds, 2), np.nan)  # RMSE, MAE
        self.chosen: list[list[Settings]] = [[] for _ in config.fold_seeds]

    def add(
        self, seed: int, fold: int, method: Method, train: Ratings, rows: np.ndarray, test: Ratings, settings: Settings
    ) -> None:
        """What `method`, fitted to `train`, says of `test`, which are `rows` of all."""
        self.chosen[seed].append(settings)
        self.predicts = method.predicts
        if method.predicts:
            self.predicted[seed, rows] = method.predict(test)
            error = self.predicted[seed, rows] - test.rating
            self.by_fold[seed, fold] = np.sqrt(np.mean(error**2)), np.abs(error).mean()
        user, context, offsets, targets, exclude = queries(train, test, self.config.high_rating)
        if not len(user):
            return
        scores = method.scores(user, context, self.data.items)
        scores[exclude] = -np.inf
        ranked = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        ranked = np.where(np.take_along_axis(scores, ranked, axis=1) > -np.inf, ranked + 1, 0).astype(np.int32)
        values = ranking_metrics(ranked, offsets, targets + 1, (10,))
        np.add.at(self.sums, user, np.stack([values[name] for name in RANKING], axis=1))
        np.add.at(self.queries, user, 1)

    def ranking(self) -> np.ndarray:
        """The metrics of each user `[U, 3]`, NaN without a query."""
        with np.errstate(invalid="ignore"):
            return self.sums / self.queries[:, np.newaxis]

    def errors(self) -> np.ndarray:
        """Of each user the sums of squared and of absolute errors, means over fold seeds, and the ratings: `[U, 3]`."""
        error = self.predicted - self.data.rating
        columns = (np.square(error).mean(axis=0), np.abs(error).mean(axis=0), np.ones(len(self.data.rating)))
        return np.stack([np.bincount(self.data.user, c, self.data.users) for c in columns], axis=1)


def queries(
    train: Ratings, test: Ratings, high: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """One query for each user and context with a high rating in `test`.

    An item that the user rated in the same context in `train` is left out of the ranking, as seen.

    Returns:
      `user` `[Q]`, `conditions` `[Q, C]`, `offsets` `[Q + 1]` and `targets` (items), and where what was seen stands in
      `[Q, I]`, as a pair of indices.
    """
    liked = test.rows(test.rating >= high)
    keys = [np.column_stack([part.user, part.conditions]) for part in (liked, train)]
    _, key = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
    key = key.ravel()
    own, query = np.unique(key[: len(liked.user)], return_inverse=True)
    pairs = np.unique(np.stack([query, liked.item], axis=1), axis=0)  # a repeated rating is one target
    first = np.unique(query, return_index=True)[1]
    place = np.full(key.max(initial=-1) + 1, -1)
    place[own] = np.arange(len(own))
    seen = place[key[len(liked.user) :]]
    row, item = seen[seen >= 0], train.item[seen >= 0]
    target = np.isin(row * test.items + item, pairs[:, 0] * test.items + pairs[:, 1])  # rated twice: still asked for
    offsets = np.searchsorted(pairs[:, 0], np.arange(len(own) + 1))
    return liked.user[first], liked.conditions[first], offsets, pairs[:, 1], (row[~target], item[~target])


def _summary(config: ContextExperiment, data: Ratings, results: Mapping[str, _Result]) -> dict[str, Any]:
    counted = {name: r for name, r in results.items() if r.predicts}
    rng = np.random.default_rng(config.seed)
    draws = rng.multinomial(data.users, np.full(data.users, 1 / data.users), config.samples)  # [S, U]

    def error(sums: np.ndarray) -> np.ndarray:
        """RMSE and MAE `[..., 2]` from sums over users `[..., 3]`."""
        return np.stack([np.sqrt(sums[..., 0] / sums[..., 2]), sums[..., 1] / sums[..., 2]], axis=-1)

    samples = {name: error(draws @ r.errors()) for name, r in counted.items()}  # [S, 2]
    found: dict[str, dict[str, Any]] = {}
    differences: list[dict[str, Any]] = []
    for m, metric in enumerate(("rmse", "mae")):
        base = counted[BASE]
        for name, r in counted.items():
            value = float(r.by_fold[..., m].mean())
            shift = value - error(r.errors().sum(axis=0))[m]  # of folds apart, not of all ratings at once
            low, high = np.quantile(samples[name][:, m], [0.025, 0.975]) + shift
            found.setdefault(name, {})[metric] = {"value": value, "low": float(low), "high": float(high)}
            if name != BASE:
                low, high = np.quantile(samples[name][:, m] - samples[BASE][:, m], [0.025, 0.975])
                p = sign_flip_p((r.errors() - base.errors())[:, [m]], seed=config.seed)[0]
                difference = value - float(base.by_fold[..., m].mean())
                differences.append(_difference(metric, name, difference, low, high, p))
    for m, metric in enumerate(RANKING):
        values = np.stack([r.ranking()[:, m] for r in results.values()], axis=1)
        against = values - values[:, [list(results).index(BASE)]]
        for n, (name, mean, low, high) in enumerate(
            zip(results, *bootstrap_means(values, config.samples), strict=True)
        ):
            interval = {"value": float(mean), "low": float(low), "high": float(high)}
            found.setdefault(name, {})[metric] = interval
            if name != BASE:
                mean, low, high = (part[0] for part in bootstrap_means(against[:, [n]], config.samples))
                p = sign_flip_p(against[:, [n]], seed=config.seed)[0]
                differences.append(_difference(metric, name, float(mean), low, high, p))
    for metric in ("rmse", "mae", *RANKING):
        rows = [d for d in differences if d["metric"] == metric]
        for row, corrected in zip(rows, holm(np.array([d["p"] for d in rows])), strict=True):
            row["p_holm"] = float(corrected)
    for name, r in results.items():
        found[name] |= {"rmse_by_fold": r.by_fold[..., 0].tolist() if r.predicts else None, "chosen": r.chosen}
    sizes = {"rows": len(data.rating), "users": data.users, "items": data.items, "contexts": dict(data.contexts)}
    order = {name: found[name] for name in results}
    settings = config.model_dump(mode="json")
    return {"data": config.data.source, **sizes, "settings": settings, "methods": order, "differences": differences}


def _difference(metric: str, method: str, value: float, low: float, high: float, p: float) -> dict[str, Any]:
    figures = {"difference": value, "low": float(low), "high": float(high), "p": float(p)}
    return {"metric": metric, "method": method, **figures}
