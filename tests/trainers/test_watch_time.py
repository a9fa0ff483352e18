"""The ranker on simulated impressions, whose true watch times are known: its odds, and what weights are for."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shortlist.components import metrics as m
from shortlist.components._queries import EncodedData
from shortlist.components._second_stage import read_shown, score_shown
from shortlist.components.simulator import simulation_of
from shortlist.trainers.two_stage import load_config, two_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a million impressions
SOURCE = "simulated:users=400,items=200,impressions=1000000,click_rate=0.05,taste=0.5"
SETTINGS = {
    "data.source": SOURCE,
    "split.strategy": "global_time",
    "split.rank_train": 0.4,
    "baselines": {},
    "sources": {"ease": {}},
    "shortlist.size": 100,
    # 400,000 impressions need no regularization, and any would pull the odds towards their mean; a cross layer, which
    # small data needs, fits the lowest decile too closely.
    "ranker.cross_layers": 0,
    "ranker.dropout": 0.0,
    "ranker.l2": 0.00001,
    "ranker.batch_size": 4096,
    "ranker.epochs": 8,
}
RANKERS: dict[str, dict[str, Any]] = {
    "weighted": {},
    "exact": {"ranker.exact": True},
    "unweighted": {"ranker.weighted": False},
}


class Judged:
    """What a ranker says of the impressions of `test`, beside what is true of them."""

    def __init__(self, workdir: Path, changes: dict[str, Any]):
        config = load_config(None, {**SETTINGS, **changes, "workdir": str(workdir)})
        done = two_stage(config).run(until=["Trainer.weighted_logistic"])
        self.shown = read_shown(done["CandidateGenerator"], "test")
        self.scores = score_shown(done["Trainer.weighted_logistic"], self.shown)
        data, simulation = EncodedData(done["Transform"]), simulation_of(SOURCE)
        users = data.users["id"][self.shown["user_key"]][self.shown["owner"]]
        items = data.items["id"][self.shown["item"]]
        self.click = simulation.click_probability(users, items)
        self.minutes = simulation.expected_watch_time(users, items) / 60
        self.bait = np.isin(items, simulation.item_ids.to_numpy(zero_copy_only=False)[simulation.clickbait])
        _, self.page = np.unique(np.stack([self.shown["owner"], self.shown["time"]]), axis=1, return_inverse=True)

    def of_users(self) -> np.ndarray:
        """The weighted loss of every user."""
        columns = (self.shown[name] for name in ("watched", "weight"))
        users = len(self.shown["user_key"])
        return m.weighted_user_loss(self.scores["odds"], *columns, self.page.ravel(), self.shown["owner"], users)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Judged]:
    workdir = tmp_path_factory.mktemp("watch_time")
    return {name: Judged(workdir, changes) for name, changes in RANKERS.items()}


def errors(predicted: np.ndarray, true: np.ndarray) -> tuple[float, np.ndarray]:
    """Relative errors of the means, of all and of every decile by the prediction."""
    predicted = predicted.astype(np.float64)
    parts = np.array_split(np.argsort(predicted, kind="stable"), 10)
    deciles = np.array([predicted[part].mean() / true[part].mean() - 1 for part in parts])
    return predicted.mean() / true.mean() - 1, deciles


@pytest.mark.parametrize(("ranker", "column"), [("weighted", "odds"), ("weighted", "expected"), ("exact", "odds")])
def test_the_odds_are_the_true_expected_watch_time(judged: dict[str, Judged], ranker: str, column: str) -> None:
    """In minutes: E[T] / (1 − P) for the odds, E[T] with `exact` and for what is served as expected watch time."""
    own = judged[ranker]
    true = {
        "odds": own.minutes if ranker == "exact" else own.minutes / (1 - own.click),
        "expected": own.minutes,
    }[column]
    overall, deciles = errors(own.scores[column], true)
    assert abs(overall) < 0.05, overall
    assert np.abs(deciles).max() < 0.15, deciles
    assert true.max() / true.min() > 20  # there is something to tell apart


def test_the_second_head_is_the_true_chance_of_a_watch(judged: dict[str, Judged]) -> None:
    """On the whole, and in the order of its deciles: the lowest, 1 watch in 100, has too few to be held to more."""
    own = judged["weighted"]
    overall, _ = errors(own.scores["watch"], own.click)
    assert abs(overall) < 0.05, overall
    parts = np.array_split(np.argsort(own.scores["watch"], kind="stable"), 10)
    means = [own.click[part].mean() for part in parts]
    assert means == sorted(means)
    assert means[-1] > 5 * means[0]


def test_without_weights_more_watch_time_is_lost(judged: dict[str, Judged]) -> None:
    """The ablation of the paper's section 4.3, by user: the interval of the difference lies above 0."""
    difference = judged["unweighted"].of_users() - judged["weighted"].of_users()
    mean, low, _ = m.bootstrap_means(difference[:, np.newaxis], 2000, 0)
    assert mean[0] > low[0] > 0


def test_clickbait_is_ranked_down_by_watch_time_and_up_by_clicks(judged: dict[str, Judged]) -> None:
    """The chance that a clickbait impression stands above another one."""
    bait = judged["weighted"].bait
    assert 0.05 < bait.mean() < 0.6
    assert m.auc(judged["weighted"].scores["odds"], bait) < 0.5
    assert m.auc(judged["unweighted"].scores["odds"], bait) > 0.6


def test_shuffled_watches_teach_nothing(tmp_path: Path) -> None:
    """Which impressions were watched, and for how long, permuted among all: the held-out ones can't be foretold."""
    tables = simulation_of("simulated:users=200,items=100,impressions=200000,click_rate=0.3").log()
    log, order = tables.interactions, np.random.default_rng(0).permutation(tables.interactions.num_rows)
    for name in ("event", "watch_time"):
        log = log.set_column(log.column_names.index(name), name, log[name].take(pa.array(order)))
    pq.write_table(log, tmp_path / "log.parquet")
    settings = {
        **SETTINGS,
        "data.source": f"parquet:{tmp_path / 'log.parquet'}",
        "split.rank_train": 0.2,
        "baselines": {"popularity": {}},
        "workdir": str(tmp_path / "run"),
    }
    done = two_stage(load_config(None, settings)).run(until=["Evaluator"])
    metrics = done["Evaluator"].read_json("metrics.json")
    assert metrics["impressions"]["positives"] > 5000
    assert metrics["impressions"]["systems"]["two_stage"]["auc"]["value"] == pytest.approx(0.5, abs=0.01)
    assert not metrics["blessed"]
