"""The report of a run: its page in a browser, whatever the run lacks, and that it is of this run."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_run
import tensorflow as tf
from browser import chromium, opened
from fixed_models import random_scores

from shortlist import ShortlistError
from shortlist.components._first_stage import ShortlistConfig
from shortlist.components._queries import EncodedData, build_queries
from shortlist.components._report_data import Example, Recommendation, history_of
from shortlist.components._report_page import Run, sections_of
from shortlist.components.artifacts import Artifact, Candidates, Encoded, Index, Model
from shortlist.components.candidate_generator import CandidateGenerator
from shortlist.components.evaluator import EvaluationConfig, Evaluator
from shortlist.components.example_gen import DataConfig, ExampleGen
from shortlist.components.example_validator import ExampleValidator
from shortlist.components.pipeline import Component, Pipeline
from shortlist.components.reporter import Reporter, ReporterConfig
from shortlist.components.schema_gen import SchemaGen
from shortlist.components.splitter import SplitConfig, Splitter
from shortlist.components.statistics_gen import StatisticsGen
from shortlist.components.transform import Transform
from shortlist.models._base import QUERY_SPEC

NASTY = '</script><script>window.hacked = 1</script><b>"|'
SECTIONS = """() => [...document.querySelectorAll("section")].map((s) => ({
    heading: s.querySelector("h2, h3")?.textContent ?? "", level: s.querySelector("h2") ? 2 : 3,
    content: s.querySelectorAll("p, .card").length}))"""


class Retriever(Component):
    """Random scores; one called `left` has random vectors of its items as well."""

    output = Index

    def run(self, out: Path, encoded: Encoded) -> None:
        data, name = EncodedData(encoded), self.name.rpartition(".")[2]
        module = tf.Module()
        module.table = tf.Variable(random_scores(len(name), data.num_users, data.num_items))
        module.scores = tf.function(lambda query: tf.gather(module.table, query["user"]), input_signature=[QUERY_SPEC])
        if name == "left":
            module.vectors = tf.Variable(np.random.default_rng(1).normal(size=(data.num_items, 4)).astype(np.float32))
            module.item_vectors = tf.function(lambda: tf.identity(module.vectors), input_signature=[])
        tf.saved_model.save(module, str(out / "index"))
        history = {"loss": [3.0, 2.0], "val_loss": [3.5, float("inf")]} if name == "left" else {}
        (out / "model.json").write_text(json.dumps({"history": history, "notes": []}))


class Ranker(Component):
    """The shortlist turned round."""

    output = Model

    def run(self, out: Path, candidates: Candidates) -> None:
        names = candidates.read_json("candidates.json")["feature_names"]
        column = names.index("log_fused_rank")
        module = tf.Module()
        rows = tf.TensorSpec([None, None], tf.int32)

        def score(features: tf.Tensor, items: tf.Tensor, history: tf.Tensor) -> dict[str, tf.Tensor]:
            odds = tf.exp(features[..., column])
            return {"odds": odds, "watch": odds / (1 + odds), "expected": odds}

        spec = [tf.TensorSpec([None, None, len(names)], tf.float32), rows, rows]
        module.score = tf.function(score, input_signature=spec)
        tf.saved_model.save(module, str(out / "serving"))
        (out / "model.json").write_text(json.dumps({"notes": [], "learned_from_shown": False}))


def build(folder: Path, users: list[str], items: list[dict[str, Any]], two_stage: bool) -> dict[str, Artifact]:
    """A run of random models on a random log of 24 items, 12 a user."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"user": user, "item": f"i{i}", "timestamp": 1_500_000_000 + 86_400 * n + u}
        for u, user in enumerate(users)
        for n, i in enumerate(rng.permutation(24)[:12])
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "log.parquet")
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")
    p = Pipeline(folder / "run")
    files = {"source": f"parquet:{folder / 'log.parquet'}", "items": str(folder / "items.parquet")}
    examples = p.add(ExampleGen(DataConfig(**files)))
    statistics = p.add(StatisticsGen(), examples)
    anomalies = p.add(ExampleValidator(), examples, p.add(SchemaGen(), statistics, examples))
    encoded = p.add(Transform(), p.add(Splitter(SplitConfig(test=0.2)), examples, anomalies))
    baselines = {"popularity": p.add(Retriever(None, "popularity"), encoded)}
    sources = {name: p.add(Retriever(None, name), encoded) for name in (("left", "right") if two_stage else ("right",))}
    second: list[Any] = []
    if two_stage:
        second = [p.add(CandidateGenerator(ShortlistConfig(size=8, quota=6)), encoded, sources)]
        second.append(p.add(Ranker(), second[0]))
    evaluation = p.add(Evaluator(EvaluationConfig(cutoffs=(2, 5), samples=100)), encoded, baselines, sources, *second)
    p.add(Reporter(ReporterConfig(examples=3)), statistics, anomalies, encoded, baselines, sources, evaluation, *second)
    return p.run()


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Both stages, with users, titles and genres that look like markup."""
    items = [
        {"item": f"i{i}", "title": f"{NASTY} {i}", "genres": [NASTY, "g"] if i % 2 else ["g"], "year": 1990}
        for i in range(24)
    ]
    return build(tmp_path_factory.mktemp("nasty"), [f"user {n}{NASTY}" for n in range(20)], items, True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """One user, one source without vectors or history, no ranker, no genres, nothing wrong."""
    items = [{"item": f"i{i}", "title": f"Film {i}"} for i in range(24)]
    return build(tmp_path_factory.mktemp("bare"), ["only"], items, False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def sections(browser: Any, path: Path, width: int = 1280) -> list[str]:
    """The headings, of which none stands over nothing; `opened` looks at the plots."""
    with opened(browser, path, width) as page:
        found = page.evaluate(SECTIONS)
        assert page.evaluate("window.hacked") is None
        assert not [s for s in found if not s["content"]]
        wide = [t for t in page.query_selector_all(".card") if t.bounding_box()["width"] > width]
        assert not wide
    return [s["heading"] for s in found if s["heading"] and s["level"] == 2]


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_of_a_run_is_drawn(browser: Any, tmp_path_factory: pytest.TempPathFactory, width: int) -> None:
    run = small_run.finished(tmp_path_factory) / "run"
    assert sections(browser, run / "report.html", width) == [
        "Headline",
        "Recall against shortlist length",
        "Two-stage gain",
        "Slices",
        "Calibration",
        "Training",
        "Item map",
        "Recommendations for 10 users",
        "Data",
        "Split and protocol",
        "Settings",
        "Lineage",
    ]
    (made,) = run.glob("artifacts/Reporter/*/report.html")
    assert made.read_text() == (run / "report.html").read_text()
    assert (made.parent / "report.md").read_text() == (run / "report.md").read_text()
    plots = {path.stem: path.read_bytes()[:8] for path in made.parent.glob("plots/*.png")}
    assert plots == dict.fromkeys(("headline", "recall", "gain", "calibration", "map"), b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_nothing_of_the_data_is_markup(browser: Any, nasty: dict[str, Artifact], width: int, dark: bool) -> None:
    path = nasty["Reporter"] / "report.html"
    assert "Two-stage gain" in sections(browser, path, width)
    with opened(browser, path, width, dark) as page:
        text = page.inner_text("main")
        assert page.evaluate("window.hacked") is None
        assert not page.query_selector_all("main b, main td script")
    assert f"{NASTY} 3" in text
    assert "User user 1" in text


def test_what_a_run_lacks_has_no_section(browser: Any, bare: dict[str, Artifact]) -> None:
    found = sections(browser, bare["Reporter"] / "report.html", 390)
    assert found == [
        "Headline",
        "Recall against shortlist length",
        "Slices",
        "Recommendations for 1 user",
        "Data",
        "Split and protocol",
        "Settings",
        "Lineage",
    ]
    page = (bare["Reporter"] / "report.html").read_text()
    assert "Anomalies" not in page
    assert "similar to</th>" not in page
    assert not spec_of(bare, "NDCG@2 of")[0]["group"]
    assert {path.stem for path in (bare["Reporter"] / "plots").iterdir()} == {"headline", "recall"}
    card = (bare["Reporter"] / "report.md").read_text()
    assert "### Paired differences" not in card
    assert "There is no ranker" in card


def test_the_lineage_is_that_of_the_run(nasty: dict[str, Artifact]) -> None:
    card = (nasty["Reporter"] / "report.md").read_text()
    listed = re.findall(r"^\| (\S+) \| `(\w{64})` \|$", card, re.MULTILINE)
    assert dict(listed) == {name: a.fingerprint for name, a in nasty.items() if name != "Reporter"}
    place = {name: n for n, (name, _) in enumerate(listed)}
    for name, artifact in nasty.items():
        for made in artifact.lineage["inputs"].values() if name != "Reporter" else ():
            assert place[made["uri"].split("/")[1]] < place[name]
    assert [step.name for step in history_of([nasty["StatisticsGen"]])] == ["ExampleGen", "StatisticsGen"]


def test_an_evaluation_of_other_models_is_refused(
    nasty: dict[str, Artifact], bare: dict[str, Artifact], tmp_path: Path
) -> None:
    given = {"encoded": nasty["Transform"], "baselines": {}, "sources": {"left": bare["Retriever.right"]}}
    about = {"statistics": nasty["StatisticsGen"], "anomalies": nasty["ExampleValidator"]}
    with pytest.raises(ShortlistError, match="was not made from") as error:
        Reporter().run(tmp_path, **about, **given, evaluation=nasty["Evaluator"])
    assert "(ModelEvaluation) was not made from" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_example_users_are_drawn_by_the_seed(nasty: dict[str, Artifact]) -> None:
    queries = build_queries(EncodedData(nasty["Transform"]), "test")
    drawn = [Reporter(ReporterConfig(examples=5, seed=seed))._draw(queries).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(own == sorted(set(own)) and len(own) == 5 for own in drawn)
    assert Reporter(ReporterConfig(examples=500))._draw(queries).tolist() == list(range(len(queries)))


# --- what each source adds --------------------------------------------------------------------------------------------


def test_what_each_source_adds_is_said_where_there_are_several(
    nasty: dict[str, Artifact], bare: dict[str, Artifact]
) -> None:
    card = (nasty["Reporter"] / "report.md").read_text()
    table = card.partition("### What each source adds")[2].partition("###")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert [row[0] for row in rows[2:]] == ["left", "right", "union", "any"]
    found, only = ({row[0]: float(row[n].rstrip("%") or "nan") for row in rows[2:]} for n in (2, 3))
    # Of two lists each finds what both do and what only it does.
    assert found["left"] - only["left"] == pytest.approx(found["right"] - only["right"], abs=0.11)
    assert found["any"] == pytest.approx(found["left"] + only["right"], abs=0.11)
    assert min(only["left"], only["right"]) > 0
    assert "All lists have the same length, 8." in table
    assert "What each source adds" in (nasty["Reporter"] / "report.html").read_text()
    for file in ("report.md", "report.html"):
        assert "What each source adds" not in (bare["Reporter"] / file).read_text()


# --- recall along the shortlist --------------------------------------------------------------------------------------


def test_the_curves_are_those_of_loops_over_the_lists(nasty: dict[str, Artifact]) -> None:
    data = EncodedData(nasty["Transform"])
    queries = build_queries(data, "test")
    with np.load(nasty["CandidateGenerator"] / "test.npz") as table:
        union = table["items"]
    spec = spec_of(nasty, "Recall of")
    points = {(row["system"], row["length"]): row["value"] for row in spec}
    assert {length for _, length in points} == {1, 2, 5, 8}
    for name in ("left", "right", "union"):
        scores = random_scores(len(name), data.num_users, data.num_items)
        for k in (1, 2, 5, 8):
            recalls = []
            for q in range(len(queries)):
                seen = set(queries.seen.padded(q, q + 1)[0])
                order = sorted(range(2, data.num_items), key=lambda i, q=q: (-scores[queries.user[q], i], i))
                best = union[q] if name == "union" else [i for i in order if i not in seen]
                targets = queries.targets.values[queries.targets.offsets[q] : queries.targets.offsets[q + 1]]
                recalls.append(oracles.ranking_metrics(list(best), list(targets), k)["recall"])
            assert points[name, k] == pytest.approx(np.mean(recalls), abs=1e-12), (name, k)


def spec_of(run: dict[str, Artifact], label: str) -> list[dict[str, Any]]:
    """The rows of the plot whose label begins so."""
    page = (run["Reporter"] / "report.html").read_text()
    for text in re.findall(r'role="img".*?<script type="application/json">(.*?)</script>', page, re.DOTALL):
        spec = json.loads(text)
        if spec["description"].startswith(label):
            return [row for rows in spec["datasets"].values() for row in rows]
    raise AssertionError(f"no plot {label}")


# --- calibration, examples -------------------------------------------------------------------------------------------


@pytest.fixture
def judged(nasty: dict[str, Artifact]) -> Callable[..., dict[str, Any]]:
    """From metrics to the texts of the sections on calibration and their plots."""

    def of(**metrics: Any) -> dict[str, Any]:
        found = nasty["Evaluator"].read_json("metrics.json")
        found = {key: value for key, value in found.items() if key not in ("shortlist", "impressions")} | metrics
        run = Run(
            found,
            [],
            {},
            nasty["Transform"].read_json("splits.json"),
            nasty["StatisticsGen"].read_json("statistics.json"),
            [],
            {},
            {"left": [{"length": 1, "value": 0.5, "low": 0.25, "high": 0.75}]},
            [],
            "two_stage",
            [],
            positives={"rank_train": 6.0, "test": 2.5},
        )
        sections, plots = sections_of(run)
        return {s.heading: s.text for s in sections if s.heading.startswith(("On", "Cal"))} | {"plots": list(plots)}

    return of


CURVE = {"bucket": [0, 9], "rows": [5, 5], "expected": [0.1, 2.0], "actual": [0.0, 1.0], "error": [None, 1.0]}
PAGE = {"impressions": 10, "positives": 3, "systems": {"two_stage": {"auc": {"value": 0.75}}}, "calibration": CURVE}


def test_calibration_says_what_a_positive_weighs(judged: Callable[..., dict[str, Any]]) -> None:
    found = judged(shortlist={**PAGE, "weight_from": "rating"})
    assert list(found)[:2] == ["Calibration", "On candidates"]
    assert (
        "A positive weighs its rating, a proxy for the watch time that the data does not have."
        in found["On candidates"]
    )
    assert "holds 6.0 positives on average; in test it holds 2.5" in found["On candidates"]
    assert found["plots"] == ["headline", "recall", "gain", "calibration"]

    both = {"weight_from": "watch_time", "learned_from_shown": True}
    found = judged(shortlist={**PAGE, **both}, impressions={**PAGE, **both})
    assert "A positive weighs its watch time." in found["On impressions"]
    assert "10 impressions, 3 of them positives." in found["On impressions"]
    assert "The ranker learned what is watched of what is shown." in found["On candidates"]
    assert found["plots"][-2:] == ["calibration", "calibration_impressions"]


def test_without_calibration_there_is_no_section(judged: Callable[..., dict[str, Any]]) -> None:
    infinite = {key: value for key, value in PAGE.items() if key != "calibration"}
    assert list(judged(shortlist={**infinite, "weight_from": "none"})) == ["plots"]
    assert list(judged()) == ["plots"]


def test_who_has_no_history_is_said_to_get_what_is_popular(nasty: dict[str, Artifact]) -> None:
    item = Recommendation("T", {}, None, None, False)
    liked = Recommendation("L", {"left": 3, "right": 1}, "S", 0.5, True)
    run = Run(
        nasty["Evaluator"].read_json("metrics.json"),
        [],
        {},
        nasty["Transform"].read_json("splits.json"),
        nasty["StatisticsGen"].read_json("statistics.json"),
        [],
        {},
        {"left": [{"length": 1, "value": 0.5, "low": 0.25, "high": 0.75}]},
        [Example("new", [], 0, [item]), Example("old", ["S"], 1, [liked, item])],
        "two_stage",
        [],
    )
    shown = {s.heading: s for s in sections_of(run)[0]}
    assert shown["User new"].text == "No history: the answer is what is popular."
    assert shown["User new"].items[0].rows == [["1", "T", "popularity", None, None]]
    assert shown["User old"].text == "Watched last: S. 1 item in all."
    assert shown["User old"].items[0].rows == [["1", "L", "left 3, right 1", "S", "0.50"], ["2", "T", None, None, None]]
    assert shown["User old"].items[0].marks == {0: "best"}
