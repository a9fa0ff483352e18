"""The simulated log against the truth that it is drawn from, within 4.5 standard errors of a seeded draw."""

import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from data_cases import generate, table
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.components._queries import EncodedData, build_queries
from shortlist.components._sources import Tables
from shortlist.components.example_gen import DataConfig, ExampleGen
from shortlist.components.example_validator import ExampleValidator
from shortlist.components.pipeline import Pipeline
from shortlist.components.schema_gen import SchemaGen
from shortlist.components.simulator import START, Simulation, SimulatorConfig, _pages, parse_simulated, simulation_of
from shortlist.components.splitter import Splitter
from shortlist.components.statistics_gen import StatisticsGen
from shortlist.components.transform import Transform

CLOSE = 4.5


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return Simulation(SimulatorConfig(users=300, items=100, impressions=200_000, seed=3))


@pytest.fixture(scope="module")
def tables(simulation: Simulation) -> Tables:
    return simulation.log()


@pytest.fixture(scope="module")
def log(simulation: Simulation, tables: Tables) -> dict[str, np.ndarray]:
    """Of every impression: whether it was clicked, the seconds watched, what is true of it, and whether it is bait."""
    rows = tables.interactions
    number = pc.index_in(rows["item"], value_set=simulation.item_ids)
    return {
        "clicked": pc.equal(rows["event"], "watch").to_numpy(),
        "watched": rows["watch_time"].to_numpy(),
        "p": simulation.click_probability(rows["user"], rows["item"]),
        "mean": simulation.watch_time(rows["user"], rows["item"]),
        "worth": simulation.expected_watch_time(rows["user"], rows["item"]),
        "length": tables.items["length"].take(number).to_numpy(),
        "bait": pc.equal(tables.items["group"].take(number), "clickbait").to_numpy(),
    }


def deciles(x: np.ndarray) -> list[np.ndarray]:
    return np.array_split(np.argsort(x, kind="stable"), 10)


def test_clicks_are_as_likely_as_the_truth_says(log: dict[str, np.ndarray]) -> None:
    p = log["p"]
    for rows in [np.arange(len(p)), *deciles(p)]:
        error = np.sqrt((p[rows] * (1 - p[rows])).sum())
        assert abs(log["clicked"][rows].sum() - p[rows].sum()) < CLOSE * error
    assert np.quantile(p, 0.9) > 10 * np.quantile(p, 0.1)  # else the deciles say nothing


def test_watches_are_as_long_as_the_truth_says(log: dict[str, np.ndarray]) -> None:
    """Var(T | click) = (length − 1)² m (1 − m) / (3 + 1), and m = (E − 1) / (length − 1)."""
    clicked = log["clicked"]
    mean, watched, length = log["mean"][clicked], log["watched"][clicked], log["length"][clicked]
    variance = (mean - 1) * (length - mean) / 4
    for rows in [np.arange(len(mean)), *deciles(mean)]:
        assert abs((watched - mean)[rows].sum()) < CLOSE * np.sqrt(variance[rows].sum())
    np.testing.assert_allclose(((watched - mean) ** 2).sum(), variance.sum(), rtol=0.03)
    assert watched.min() >= 1
    assert (watched <= length).all()
    assert np.isnan(log["watched"][~clicked]).all()


def test_what_an_impression_is_worth(log: dict[str, np.ndarray]) -> None:
    p, mean, worth = log["p"], log["mean"], log["worth"]
    np.testing.assert_allclose(worth, p * mean, rtol=1e-12)
    variance = p * ((mean - 1) * (log["length"] - mean) / 4 + mean**2) - worth**2
    for rows in [np.arange(len(p)), *deciles(worth)]:
        found = np.nan_to_num(log["watched"].astype(np.float64))[rows].sum()
        assert abs(found - worth[rows].sum()) < CLOSE * np.sqrt(variance[rows].sum())


def test_truth_of_one_pair_by_the_formulas(simulation: Simulation) -> None:
    s = simulation
    for u, i in ((0, 0), (7, 42), (299, 99)):
        latent = sum(s.user_taste[u, d] * s.item_taste[i, d] for d in range(4))
        affinity = s.genre_taste[u, s.genre[i]] + latent
        foreign = 1.5 if s.user_language[u] != s.item_language[i] else 0.0
        p = 1 / (1 + math.exp(-(s.intercept + affinity + s.appeal[i] - foreign)))
        share = 1 / (1 + math.exp(-(affinity / 2 + s.quality[i])))
        pair = [f"u{u:03}"], [f"i{i:02}"]
        assert s.click_probability(*pair)[0] == pytest.approx(p, rel=1e-12)
        assert s.watch_time(*pair)[0] == pytest.approx(1 + (s.length[i] - 1) * share, rel=1e-12)


def test_clickbait_is_clicked_more_and_left_sooner_and_worth_less(log: dict[str, np.ndarray]) -> None:
    bait, clicked = log["bait"], log["clicked"]
    assert clicked[bait].mean() > 1.5 * clicked[~bait].mean()
    finished = log["watched"] / log["length"]
    assert finished[clicked & bait].mean() < 0.4 * finished[clicked & ~bait].mean()
    assert log["worth"][bait].mean() < log["worth"][~bait].mean()


def test_affinity_has_mean_0_and_variance_1() -> None:
    s = Simulation(SimulatorConfig(users=4000, items=4000, clickbait=0))
    pairs = np.arange(4000)
    affinity = s._affinity(pairs, pairs)
    assert abs(affinity.mean()) < CLOSE / math.sqrt(4000)
    assert affinity.var() == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.6])
def test_the_click_rate_is_the_one_asked_for(rate: float) -> None:
    s = simulation_of(f"simulated:users=200,items=80,impressions=50000,click_rate={rate}")
    rows = s.log().interactions
    assert s.click_probability(rows["user"], rows["item"]).mean() == pytest.approx(rate, rel=0.03)


def test_pages_are_drawn_one_after_the_other_by_weight() -> None:
    weights, count = np.array([5.0, 3.0, 1.0, 1.0]), 200_000
    shown = np.sort(_pages(np.random.default_rng(0), weights, count, 2), axis=1)
    expected = dict.fromkeys([(a, b) for a in range(4) for b in range(a + 1, 4)], 0.0)
    for a, b in permutations(range(4), 2):
        expected[min(a, b), max(a, b)] += weights[a] / 10 * weights[b] / (10 - weights[a])
    for (a, b), share in expected.items():
        found = ((shown[:, 0] == a) & (shown[:, 1] == b)).mean()
        assert abs(found - share) < CLOSE * math.sqrt(share * (1 - share) / count)


def test_appealing_items_are_shown_more_by_the_tilt() -> None:
    def appeal_of_shown(tilt: float) -> float:
        s = Simulation(SimulatorConfig(users=20, items=100, impressions=20_000, popularity_tilt=tilt))
        rows = s.log().interactions["item"]
        return float(s.appeal[pc.index_in(rows, value_set=s.item_ids).to_numpy()].mean() - s.appeal.mean())

    assert appeal_of_shown(-1) < -0.3
    assert abs(appeal_of_shown(0)) < 0.05
    assert appeal_of_shown(1) > 0.3


def test_pages_have_a_viewer_a_second_and_different_items(tables: Tables) -> None:
    rows = tables.interactions
    time = rows["timestamp"].to_numpy().reshape(-1, 10)
    assert (time == time[:, :1]).all()
    assert (np.diff(time[:, 0]) > 0).all()
    assert time.min() >= START
    assert time.max() < START + 90 * 86_400
    user, item = (rows[c].to_numpy().astype(str).reshape(-1, 10) for c in ("user", "item"))
    assert (user == user[:, :1]).all()
    ordered = np.sort(item, axis=1)
    assert (ordered[:, 1:] != ordered[:, :-1]).all()


def test_the_seed_decides(tables: Tables) -> None:
    settings = SimulatorConfig(users=300, items=100, impressions=200_000, seed=3)
    again = Simulation(settings).log()
    other = Simulation(settings.model_copy(update={"seed": 4})).log()
    for name in ("interactions", "items", "users"):
        assert getattr(again, name).equals(getattr(tables, name))
        assert not getattr(other, name).equals(getattr(tables, name))


def test_a_longer_log_is_of_the_same_world(simulation: Simulation) -> None:
    longer = Simulation(simulation.config.model_copy(update={"impressions": 300_000}))
    pairs = simulation.user_ids.take(pa.array([0, 1, 299])), simulation.item_ids.take(pa.array([0, 1, 99]))
    np.testing.assert_array_equal(longer.expected_watch_time(*pairs), simulation.expected_watch_time(*pairs))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_settings_give_a_log_that_can_be_read(data: st.DataObject) -> None:
    draw = data.draw
    items = draw(st.integers(2, 12))
    config = SimulatorConfig(
        users=draw(st.integers(1, 12)),
        items=items,
        impressions=draw(st.integers(1, 60)),
        page=draw(st.integers(1, items)),
        clickbait=draw(st.sampled_from([0.0, 0.5, 0.99])),
        taste=draw(st.sampled_from([0.0, 1.0, 10.0])),
        popularity_tilt=draw(st.sampled_from([-5.0, 0.0, 5.0])),
        click_rate=draw(st.sampled_from([0.001, 0.9])),
        seed=draw(st.integers(0, 5)),
    )
    rows = Simulation(config).log().interactions
    assert len(rows) == config.impressions
    assert len(rows.group_by(["user", "item", "timestamp"]).aggregate([])) == len(rows)
    watched = rows["watch_time"].drop_null().to_numpy()
    assert np.isfinite(watched).all()
    assert (watched >= 1).all()
    assert pc.equal(rows["event"], "watch").to_pylist() == pc.is_valid(rows["watch_time"]).to_pylist()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A simulated log through the pipeline, up to its encoding."""
    p = Pipeline(tmp_path_factory.mktemp("simulated"))
    source = "simulated:users=60,items=40,impressions=6000,seed=1"
    examples = p.add(ExampleGen(parse(DataConfig, {"source": source}, "data")))
    schema = p.add(SchemaGen(), p.add(StatisticsGen(), examples), examples)
    anomalies = p.add(ExampleValidator(), examples, schema)
    p.add(Transform(), p.add(Splitter(), examples, anomalies))
    return p.run()


def test_as_a_source_it_is_the_log_without_anomalies(run: dict[str, Any]) -> None:
    examples = run["ExampleGen"]
    expected = simulation_of("simulated:users=60,items=40,impressions=6000,seed=1").log()
    for name in ("interactions", "items", "users"):
        wanted = getattr(expected, name)
        assert table(examples, name).select(wanted.column_names).to_pylist() == wanted.to_pylist()
    about = examples.read_json("source.json")
    assert (about["name"], about["rows"], about["duplicates_dropped"]) == ("Simulated impressions", 6000, 0)
    (again,) = run["ExampleValidator"].read_json("anomalies.json")
    assert again["severity"] == "warning"
    assert again["message"].startswith("repeats a user and an item with the same event at another time")


def test_what_was_only_shown_is_neither_positive_nor_history_nor_target(run: dict[str, Any]) -> None:
    data = EncodedData(run["Transform"])
    for split in ("train", "rank_train", "validation", "test"):
        rows = data.rows(split)
        np.testing.assert_array_equal(rows["positive"], np.isfinite(rows["watch_time"]))
    queries = build_queries(data, "test")
    test, before = data.rows("test"), data.rows("train", "rank_train", "validation")
    first = {u: test["timestamp"][test["user_key"] == u].min() for u in np.unique(test["user_key"])}
    assert len(queries.targets.values) == np.isfinite(test["watch_time"]).sum() > 20
    watched = np.isfinite(before["watch_time"]) & np.isin(before["user_key"], queries.user_key)
    earlier = before["timestamp"] < np.array([first.get(u, 0) for u in before["user_key"]])
    assert len(queries.history.values) == (watched & earlier).sum() > 100


def test_no_settings_are_the_defaults() -> None:
    assert parse(DataConfig, {"source": "simulated"}, "data").kind == "simulated"
    assert parse_simulated("") == SimulatorConfig()
    assert parse_simulated("impressions=50000, seed=1") == SimulatorConfig(impressions=50_000, seed=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("simulated:", "Received: 'simulated:'."),
        ("simulated:seed", "such as simulated:impressions=50000,seed=1. Received: 'seed'."),
        ("simulated:=3", "Received: '=3'."),
        ("simulated:seed=1,seed=2", "Received: 'seed=2'."),
        ("simulated:item=3", "`item` is not a setting of a simulated source. Did you mean `items`?"),
        ("simulated:users=0", "Input should be greater than or equal to 1. Received: '0'."),
        ("simulated:users=many", "unable to parse string as an integer. Received: 'many'."),
        ("simulated:clickbait=1", "Input should be less than 1. Received: '1'."),
        ("simulated:taste=nan", "Input should be a finite number. Received: 'nan'."),
        (
            "simulated:items=5",
            "`page` must be at most `items`, as a page shows an item once. Received: page=10, items=5.",
        ),
        (
            "simulated:impressions=100000,page=1,days=1",
            "`days` must hold a second for every page, 100,000 in all. Raise days or page. Received: days=1, 86,400 "
            "seconds.",
        ),
    ],
)
def test_bad_settings_are_refused(text: str, message: str) -> None:
    with pytest.raises(ShortlistError) as error:
        parse(DataConfig, {"source": text}, "data")
    assert str(error.value).endswith(message)


def test_a_file_map_does_not_belong_to_it() -> None:
    with pytest.raises(ShortlistError, match=r"^`columns` belongs to a source of the form csv: or parquet:"):
        parse(DataConfig, {"source": "simulated", "columns": {"user": "x"}}, "data")


def test_pairs_that_the_simulation_does_not_have_are_refused(simulation: Simulation, tmp_path: Path) -> None:
    with pytest.raises(ShortlistError) as error:
        simulation.click_probability(["u000", "u999"], ["i00", "i01"])
    assert str(error.value) == "`users` must be ids of the simulation, u000 to u299. Received: 'u999'."
    with pytest.raises(ShortlistError) as error:
        simulation.watch_time(["u000"], np.array(["i00", "i01"]))
    assert str(error.value) == "`users` and `items` must have an id each for every pair. Received: 1 and 2."
    assert generate(tmp_path, source="simulated:users=5,items=10,impressions=20").read_json("source.json")["rows"] == 20
