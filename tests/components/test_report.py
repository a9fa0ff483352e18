"""The model card and the table at the end of a run, from figures written by hand."""

import re
from pathlib import Path
from typing import Any

import pytest
import tomllib

from shortlist.components._model_card import write_model_card
from shortlist.components._report import comparison, differences, headline, weakest
from shortlist.components._report_data import Step


def figure(value: float, users: int = 1234) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "users": users}


def metrics(cutoffs: tuple[int, ...] = (10, 100), **changed: Any) -> dict[str, Any]:
    systems = {}
    for n, name in enumerate(("popularity", "two_stage"), 1):
        systems[name] = {f"{m}@{k}": figure(n * k / 1000 + o) for o, m in enumerate(("ndcg", "hr")) for k in cutoffs}
        systems[name] |= {f"recall@{k}": figure(n * k / 500) for k in cutoffs}
        systems[name] |= {f"coverage@{k}": {"value": k / 250} for k in cutoffs}
    pair = {"split": "test", "metric": "ndcg@10", "system": "two_stage", "against": "popularity"}
    return {
        "split": "test",
        "blessed": True,
        "reasons": [],
        "systems": systems,
        "comparisons": [{**pair, "difference": 0.0123, "low": -0.002, "high": 0.03456, "users": 12345}],
        "protocol": {
            "strategy": "global_time",
            "guarantee": "Later is later.",
            "positive_threshold": None,
            "catalogue": 9066,
            "users": 1234,
            "users_with_history": 20,
            "targets": 5678,
            "targets_outside_catalogue": 0.125,
            "positives": {"rank_train": 2000, "test": 0},
            "not_retrieved": {"rank_train": 500, "test": 0},
            "notes": ["Positives weigh their rating."],
        },
        **changed,
    }


SOURCE = {
    "source": "csv:x.csv",
    "name": "x.csv",
    "rows": 100004,
    "duplicates_dropped": 12,
    "licence": "CC0",
    "citation": "N.N.",
}


def written(folder: Path, found: dict[str, Any], source: dict[str, Any] = SOURCE, **more: Any) -> list[str]:
    write_model_card(folder / "report.md", found, source, {"seed": 42}, **more)
    return (folder / "report.md").read_text("utf-8").splitlines()


def test_the_table_by_hand() -> None:
    titles, rows = headline(metrics())
    assert titles == ["system", "NDCG@10", "HR@10", "Recall@100", "Coverage@10", "users"]
    assert rows == [
        ["popularity", "0.010 [0.000, 0.020]", "1.010 [1.000, 1.020]", "0.200 [0.190, 0.210]", "0.040", "1,234"],
        ["two_stage", "0.020 [0.010, 0.030]", "1.020 [1.010, 1.030]", "0.400 [0.390, 0.410]", "0.040", "1,234"],
    ]


@pytest.mark.parametrize(("cutoffs", "low", "high"), [((5,), 5, 5), ((100, 5, 20), 5, 100)])
def test_the_table_takes_the_first_and_the_deepest_cutoff(cutoffs: tuple[int, ...], low: int, high: int) -> None:
    titles, _ = headline(metrics(cutoffs))
    assert titles[1:5] == [f"NDCG@{low}", f"HR@{low}", f"Recall@{high}", f"Coverage@{low}"]


def test_a_comparison_by_hand() -> None:
    assert comparison(metrics()["comparisons"][0]) == (
        "ndcg@10 on test, two_stage against popularity: +0.0123 [-0.0020, +0.0346], 12,345 users"
    )


def test_the_card_states_what_it_stands_on(tmp_path: Path) -> None:
    lines = written(tmp_path, metrics(), models=["wals", "ease"])
    assert lines[0] == "# x.csv: model card"
    assert lines[2].startswith("Measured on `test`. **Blessed.**")
    head = lines.index("| system | NDCG@10 | HR@10 | Recall@100 | Coverage@10 | users |")
    assert lines[head + 1].count("--- |") == 6
    assert lines[head + 3].startswith("| two_stage | 0.020 [0.010, 0.030] |")
    assert [line for line in lines if line.startswith("## ")] == [
        "## Intended use",
        "## What it is not for",
        "## Data",
        "## Split and protocol",
        "## Metrics",
        "## Limits",
    ]
    page = "\n".join(lines)
    for sentence in (
        "from a catalogue of 9,066 items: wals, ease retrieve a shortlist, and a second model orders it.",
        "- Users of whom nothing is known:",
        "- Any use that the data's licence does not allow. CC0",
        "- ndcg@10 on test, two_stage against popularity: +0.0123",
        "- Split: global_time, seed 42. Later is later.",
        "- A positive is every watch.",
        "- 1,234 users with a target, 20 of them with a history. 5,678 targets, 12.5% of them outside the catalogue of "
        "9,066 items: they count as misses.",
        "500 of 2,000 (25%) in rank_train; 0 of 0 (0%) in test.",
        "- Positives weigh their rating.",
        "- Source: `csv:x.csv`, 100,004 rows, 12 duplicates dropped.",
        "- Licence: CC0",
        "- Citation: N.N.",
        "- 1,214 of the users measured have no history.",
    ):
        assert sentence in page
    assert "not in the shortlist" not in page  # nothing of test was lost


def test_the_card_of_a_run_that_is_not_blessed(tmp_path: Path) -> None:
    found = metrics(blessed=False, reasons=["Not above wals.", "Not above union."])
    found["protocol"]["positive_threshold"] = 3.5
    found["protocol"] |= {"positives": {"test": 400}, "not_retrieved": {"test": 220}}
    page = "\n".join(written(tmp_path, found))
    assert "**Not blessed.** Not above wals. Not above union." in page
    assert "- A positive is a rating of at least 3.5." in page
    assert "- 55% of the positives of test are not in the shortlist: no ranking can find them." in page


@pytest.mark.parametrize(("weight_from", "claimed"), [("rating", False), ("none", False), ("watch_time", True)])
def test_minutes_are_disclaimed_where_there_is_no_watch_time(tmp_path: Path, weight_from: str, claimed: bool) -> None:
    found = metrics()
    found["protocol"]["weight_from"] = weight_from
    assert ("Claims about minutes watched" not in "\n".join(written(tmp_path, found))) == claimed


def test_the_card_of_retrieval_alone(tmp_path: Path) -> None:
    found = metrics(comparisons=[])
    del found["systems"]["two_stage"]
    for name in ("positives", "not_retrieved"):
        del found["protocol"][name]
    lines = written(tmp_path, found, {"source": "demo"}, models=["wals"])
    assert lines[0] == "# demo: model card"
    assert (
        "Retrieves from a catalogue of 9,066 items: wals, each by itself. There is no ranking, and no bundle." in lines
    )
    assert not [line for line in lines if "no source retrieved" in line or "shortlist" in line or "Paired" in line]
    assert not [line for line in lines if "None" in line and not line.startswith(("- Licence", "- Citation", "- Any"))]


def test_the_card_lists_settings_and_fingerprints(tmp_path: Path) -> None:
    config = {"l2": 0.5, "none": None, "cutoffs": [10, 100], "quota": {"wals": 3}, "name": 'a"b'}
    steps = [
        Step("Trainer.wals", "abc123", config, "2026-01-01T00:00:00Z", 1.5, {}),
        Step("SchemaGen", "def456", {}, "2026-01-01T00:00:00Z", 0.1, {}),
    ]
    page = "\n".join(written(tmp_path, metrics(), steps=steps))
    (settings,) = re.findall("```toml\n(.*?)```", page, re.DOTALL)
    assert tomllib.loads(settings) == {"Trainer.wals": {k: v for k, v in config.items() if v is not None}}
    assert "| step | fingerprint |\n| --- | --- |\n| Trainer.wals | `abc123` |\n| SchemaGen | `def456` |" in page


def test_text_of_the_data_is_no_markup_in_the_card(tmp_path: Path) -> None:
    nasty = "<script>|\n& x"
    slices = [{"slice": "genre", "part": nasty, "system": "two_stage", "metric": "ndcg@10", **figure(0.5, 30)}]
    anomalies = [{"table": "items", "column": "title", "severity": "warning", "rows": 1, "message": nasty}]
    page = "\n".join(written(tmp_path, metrics(), {**SOURCE, "name": nasty}, slices=slices, anomalies=anomalies))
    assert "<script>" not in page
    assert "# &lt;script>\\| &amp; x: model card" in page
    assert "| genre | &lt;script>\\| &amp; x | 0.500 [0.490, 0.510] | 30 |" in page
    assert "- Warning: items.title &lt;script>\\| &amp; x" in page


def test_the_weakest_slices_have_enough_users() -> None:
    values = {"a": (0.1, 19), "b": (0.3, 20), "c": (0.2, 500), "d": (0.4, 20), "e": (0.5, 20)}
    slices = [
        {"slice": "genre", "part": part, "system": system, "metric": metric, **figure(value * scale, users)}
        for part, (value, users) in values.items()
        for system, scale in (("popularity", 0.1), ("two_stage", 1))
        for metric in ("ndcg@10", "hr@10")
    ]
    assert weakest(slices, "two_stage") == [
        "genre = c: 0.200 [0.190, 0.210], 500 users",
        "genre = b: 0.300 [0.290, 0.310], 20 users",
        "genre = d: 0.400 [0.390, 0.410], 20 users",
    ]
    assert weakest([], "two_stage") == []


def test_differences_as_a_table() -> None:
    pair = metrics()["comparisons"][0]
    columns, rows = differences([pair, {**pair, "p_holm": 0.0123}, {**pair, "p_holm": 0.0001}])
    assert columns == ["split", "metric", "system", "against", "difference", "p", "users"]
    first = ["test", "ndcg@10", "two_stage", "popularity", "+0.0123 [-0.0020, +0.0346]"]
    assert rows == [[*first, p, "12,345"] for p in ("", "0.012", "< .001")]


def test_a_comparison_with_its_p() -> None:
    pair = metrics()["comparisons"][0]
    assert comparison({**pair, "p": 0.001, "p_holm": 0.0123}).endswith("[-0.0020, +0.0346], p = 0.012, 12,345 users")
    assert comparison({**pair, "p": 0.0001, "p_holm": 0.0003}).endswith(", p < .001, 12,345 users")


def test_what_is_measured_besides_stands_in_tables_of_its_own(tmp_path: Path) -> None:
    found = metrics()
    assert "Beyond accuracy" not in "\n".join(written(tmp_path, found))
    for system in found["systems"].values():
        system |= {"gini@10": {"value": 0.9}, "gini@100": {"value": 0.8}}
    found["systems"]["two_stage"]["novelty@10"] = figure(5)
    found["comparisons"][0] |= {"p": 0.01, "p_holm": 0.02}
    found["impressions"] = {
        "weight_from": "watch_time",
        "impressions": 500,
        "positives": 50,
        "systems": {"two_stage": {"auc": {"value": 0.625}}},
    }
    found["shortlist"] = {
        "weight_from": "rating",
        "impressions": 12345,
        "positives": 67,
        "systems": {"union": {"auc": {"value": 0.75}}, "two_stage": {"weighted_user_loss": figure(0.25)}},
        "calibration": {
            "bucket": [0, 9],
            "rows": [1200, 34],
            "expected": [0.5, 2.0],
            "actual": [0.0, 1.6],
            "error": [None, 0.25],
        },
    }
    slices = [
        {"slice": name, "part": part, "system": system, "metric": metric, **figure(0.5, 7)}
        for name, part in (("activity", "low"), ("item.decade", "1990s"))
        for system in ("popularity", "two_stage")
        for metric in ("ndcg@10", "ndcg@100", "hr@10")
    ]
    page = "\n".join(written(tmp_path, found, slices=slices))
    for text in (
        "| system | novelty@10 | gini@10 |\n| --- | --- | --- |\n| popularity |  | 0.900 |\n"
        "| two_stage | 5.000 [4.990, 5.010] | 0.900 |\n",
        "corrected by Holm's rule",
        "12,345 candidates, 67 of them positives. The loss is the share of the rating, the proxy for watch time, that "
        "a negative of the same shortlist is ranked above.",
        "Expected against actual value. A positive weighs its rating, a proxy for the watch time that the data does",
        "| union | 0.750 |  |  |  |\n| two_stage |  |  | 0.250 [0.240, 0.260] |  |\n",
        "| 1 | 1,200 | 0.5 | 0 |  |\n| 10 | 34 | 2 | 1.6 | +25% |\n",
        "| slice | part | NDCG@10 of two_stage | users |\n| --- | --- | --- | --- |\n"
        "| activity | low | 0.500 [0.490, 0.510] | 7 |\n\n",
        "### Impressions\n\n500 impressions, 50 of them positives. The loss is the share of the watch time that a "
        "negative of the same page is ranked above.",
        "| two_stage | 0.625 |",
    ):
        assert text in page
    assert "1990s" not in page
