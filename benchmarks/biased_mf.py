"""BiasedMF against Surprise's SVD and myFM with nothing but ids: RMSE of ratings, five folds.

All see the same folds. BiasedMF and SVD choose among as many settings, drawn at random from ranges as wide for either,
by RMSE on a fifth of the ratings of the other folds; myFM samples its own regularization, and its rank is chosen there
alike. ours is the mean of BiasedMF over the folds, peer that of the other.
The differences are paired by rating, their 95 % intervals bootstraps over users. Bars: not above SVD (the interval does
not lie above 0), and above myFM by .02 at most.

Surprise and myFM are asked for here alone: pip install scikit-surprise myfm "setuptools<81".
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")  # myFM's bar, one a fit

import numpy as np
from _table import add_numbers, parsed, parser_of, tell

from shortlist.components._config import parse
from shortlist.components._tables import INTERACTIONS, conform
from shortlist.components.context import row_numbers
from shortlist.components.example_gen import DataConfig, read
from shortlist.models.camf import BiasedMF

QUICK = {"data": ["demo"], "trials": 1, "folds": 2, "myfm_samples": 40}
Settings = dict[str, Any]
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""User, item and rating `[N]`."""


def loaded(source: str, archive: Path | None, scratch: Path) -> Rows:
    scratch.mkdir(parents=True, exist_ok=True)
    given = {"source": source, **({"archive_dir": str(archive)} if archive else {})}
    table = conform(read(parse(DataConfig, given), scratch).interactions, INTERACTIONS, source)
    user, item = (row_numbers(table[name])[0] - 1 for name in ("user", "item"))
    return user, item, table["rating"].to_numpy().astype(np.float64)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def draw_ours(rng: np.random.Generator) -> Settings:
    exponent = float(rng.choice([0.5, 0.75, 1.0]))
    scale = 80 ** (1 - exponent)  # a row of 80 ratings is then drawn to 0 alike under every exponent
    return {
        "embedding_dim": int(rng.choice([20, 50])),
        "frequency_exponent": exponent,
        "l2_bias": scale * log_uniform(rng, 0.01, 0.3),
        "l2_factors": scale * log_uniform(rng, 0.02, 1.0),
        "epochs": int(rng.choice([15, 30])),
        "learning_rate": log_uniform(rng, 0.02, 0.4),
    }


def ours(train: Rows, test: Rows, settings: Settings, sizes: tuple[int, int], seed: int) -> np.ndarray:
    import tensorflow as tf

    user, item, rating = train
    how = {name: settings[name] for name in ("epochs", "learning_rate")}
    tf.keras.utils.set_random_seed(seed)
    model = BiasedMF(*sizes, **{name: value for name, value in settings.items() if name not in how})
    model.fit_quickly({"user": user, "item": item}, rating, batch_size=1024, seed=seed, **how)
    asked = {"user": tf.constant(test[0]), "item": tf.constant(test[1])}
    return model.predict_rating(asked, clip=(rating.min(), rating.max())).numpy()


def draw_svd(rng: np.random.Generator) -> Settings:
    return {
        "n_factors": int(rng.choice([20, 50, 100])),
        "n_epochs": int(rng.choice([20, 40])),
        "lr_all": log_uniform(rng, 0.002, 0.04),
        "reg_all": log_uniform(rng, 0.01, 0.5),
    }


def svd(train: Rows, test: Rows, settings: Settings, sizes: tuple[int, int], seed: int) -> np.ndarray:
    import pandas as pd
    import surprise

    frame = pd.DataFrame(dict(zip(("user", "item", "rating"), train, strict=True)))
    low, high = train[2].min(), train[2].max()
    data = surprise.Dataset.load_from_df(frame, surprise.Reader(rating_scale=(low, high))).build_full_trainset()
    model = surprise.SVD(random_state=seed, **settings).fit(data)
    return np.array([model.predict(u, i).est for u, i in zip(test[0], test[1], strict=True)])


def draw_myfm(rng: np.random.Generator) -> Settings:
    return {"rank": int(rng.choice([8, 16, 32]))}


def myfm_of(samples: int) -> Callable[[Rows, Rows, Settings, tuple[int, int], int], np.ndarray]:
    def fitted(train: Rows, test: Rows, settings: Settings, sizes: tuple[int, int], seed: int) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for pkg_resources, which says that it is old
            import myfm
        from scipy.sparse import csr_matrix

        def cells(rows: Rows) -> Any:
            columns = np.stack([rows[0], rows[1] + sizes[0]], axis=1).ravel()
            shape = len(rows[0]), sum(sizes)
            return csr_matrix((np.ones(len(columns)), columns, np.arange(0, len(columns) + 1, 2)), shape)

        model = myfm.MyFMRegressor(rank=settings["rank"], random_seed=seed)
        groups = [0] * sizes[0] + [1] * sizes[1]
        model.fit(cells(train), train[2], n_iter=samples, n_kept_samples=samples * 4 // 5, grouping=groups)
        return np.clip(model.predict(cells(test)), train[2].min(), train[2].max())

    return fitted


def compare(source: str, data: Rows, a: argparse.Namespace) -> list[dict[str, Any]]:
    systems = {
        "BiasedMF": (draw_ours, ours),
        "Surprise SVD": (draw_svd, svd),
        "myFM": (draw_myfm, myfm_of(a.myfm_samples)),
    }
    sizes = int(data[0].max()) + 1, int(data[1].max()) + 1
    folds = np.random.default_rng(a.seed).permutation(len(data[0])) % a.folds
    predicted = {name: np.empty(len(data[0])) for name in systems}
    chosen: dict[str, list[Settings]] = {name: [] for name in systems}
    for fold in range(a.folds):
        train, test = (tuple(column[keep] for column in data) for keep in (folds != fold, folds == fold))
        held = np.random.default_rng([a.seed, fold]).random(len(train[0])) < 0.2
        inner, outer = (tuple(column[keep] for column in train) for keep in (~held, held))
        for name, (draw, fit) in systems.items():
            rng = np.random.default_rng([a.seed, fold])
            trials = [draw(rng) for _ in range(a.trials)]
            trials = [trial for n, trial in enumerate(trials) if trial not in trials[:n]]
            losses = [np.square(fit(inner, outer, t, sizes, a.seed) - outer[2]).mean() for t in trials]
            chosen[name].append(trials[int(np.argmin(losses))])
            predicted[name][folds == fold] = fit(train, test, chosen[name][-1], sizes, a.seed)
            found = round(rmse(predicted[name][folds == fold], test[2]), 4)
            print(source, fold, name, chosen[name][-1], found, file=sys.stderr, flush=True)

    def by_fold(name: str) -> float:
        return float(np.mean([rmse(predicted[name][folds == f], data[2][folds == f]) for f in range(a.folds)]))

    rng = np.random.default_rng(a.seed)
    draws = rng.multinomial(sizes[0], np.full(sizes[0], 1 / sizes[0]), 2000)
    sums = {n: np.bincount(data[0], np.square(p - data[2]), sizes[0]) for n, p in predicted.items()}
    count = np.bincount(data[0], minlength=sizes[0])
    samples = {name: np.sqrt((draws @ own) / (draws @ count)) for name, own in sums.items()}
    rows = []
    for name, margin in (("Surprise SVD", 0.0), ("myFM", 0.02)):
        low, high = np.quantile(samples["BiasedMF"] - samples[name], [0.025, 0.975])
        own, peer = by_fold("BiasedMF"), by_fold(name)
        over = own - peer if margin else low
        row = {"case": f"{source}: RMSE, against {name}", "ours": own, "peer": peer, "ratio": own / peer}
        row |= {"bar": f"+{margin:g}" if margin else "interval", "ok": bool(over <= margin)}
        rows.append({**row, "difference": f"{own - peer:+.4f} [{low:+.4f}, {high:+.4f}]", "users": sizes[0]})
    return rows


def rmse(predicted: np.ndarray, rating: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(predicted - rating))))


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, QUICK, ["demo", "tfds:movielens/latest-small"], "runs/biased_mf")
    add_numbers(
        parser,
        ("trials", 20, "settings that each tries"),
        ("folds", 5, "of the ratings"),
        ("myfm-samples", 200, "iterations of myFM's sampler"),
        ("seed", 0, "of folds, trials and models"),
    )
    return parsed(parser, argv, QUICK)


def main(argv: list[str]) -> int:
    def of_source(source: str, a: argparse.Namespace) -> list[dict[str, Any]]:
        archive = a.archive_dir if source.startswith("tfds:") else None
        return compare(source, loaded(source, archive, a.workdir), a)

    text = "difference: ours less the peer's, with its 95 % interval over users"
    try:
        return tell(parse_arguments(argv), of_source, text, ["difference", "users"])
    except ModuleNotFoundError as error:
        print(f'Error: pip install scikit-surprise myfm "setuptools<81": {error}.', file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
