"""The page of an evaluation and the table at the end of a run, from figures written by hand."""

from pathlib import Path
from typing import Any

import pytest

from shortlist.components._report import comparison, headline, write_report


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


def written(folder: Path, found: dict[str, Any], source: dict[str, Any] = SOURCE) -> list[str]:
    write_report(folder / "report.md", found, source, {"seed": 42})
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


def test_the_page_states_what_it_stands_on(tmp_path: Path) -> None:
    lines = written(tmp_path, metrics())
    assert lines[0] == "# x.csv: evaluation on `test`"
    assert lines[2] == "| system | NDCG@10 | HR@10 | Recall@100 | Coverage@10 | users |"
    assert lines[3].count("--- |") == 6
    assert lines[5].startswith("| two_stage | 0.020 [0.010, 0.030] |")
    page = "\n".join(lines)
    for sentence in (
        "**Blessed.**",
        "- ndcg@10 on test, two_stage against popularity: +0.0123",
        "- Split: `global_time`, seed 42. Later is later.",
        "- A positive is every watch.",
        "- 1,234 users with a target, 20 of them with a history. 5,678 targets, 12.5% of them outside the catalogue of "
        "9,066 items: they count as misses.",
        "500 of 2,000 (25%) in rank_train; 0 of 0 (0%) in test.",
        "- Positives weigh their rating.",
        "- Source: `csv:x.csv`, 100,004 rows, 12 duplicates dropped.",
        "- Licence: CC0",
        "- Citation: N.N.",
    ):
        assert sentence in page


def test_the_page_of_a_run_that_is_not_blessed(tmp_path: Path) -> None:
    found = metrics(blessed=False, reasons=["Not above wals.", "Not above union."])
    found["protocol"]["positive_threshold"] = 3.5
    page = "\n".join(written(tmp_path, found))
    assert "**Not blessed.** Not above wals. Not above union." in page
    assert "- A positive is a rating of at least 3.5." in page


def test_the_page_of_retrieval_alone(tmp_path: Path) -> None:
    found = metrics(comparisons=[])
    for name in ("positives", "not_retrieved"):
        del found["protocol"][name]
    lines = written(tmp_path, found, {"source": "demo"})
    assert lines[0] == "# demo: evaluation on `test`"
    assert not [line for line in lines if "no source retrieved" in line or "ranker" in line or "Paired" in line]
    assert not [line for line in lines if "None" in line and not line.startswith(("- Licence", "- Citation"))]


def test_a_comparison_with_its_p() -> None:
    pair = metrics()["comparisons"][0]
    assert comparison({**pair, "p": 0.001, "p_holm": 0.0123}).endswith("[-0.0020, +0.0346], p = 0.012, 12,345 users")
    assert comparison({**pair, "p": 0.0001, "p_holm": 0.0003}).endswith(", p < .001, 12,345 users")


def test_what_is_measured_besides_stands_in_tables_of_its_own(tmp_path: Path) -> None:
    found = metrics()
    assert "## Beyond accuracy" not in "\n".join(written(tmp_path, found))
    for system in found["systems"].values():
        system |= {"gini@10": {"value": 0.9}, "gini@100": {"value": 0.8}}
    found["systems"]["two_stage"]["novelty@10"] = figure(5)
    found["comparisons"][0] |= {"p": 0.01, "p_holm": 0.02}
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
    write_report(tmp_path / "report.md", found, SOURCE, {"seed": 42}, slices)
    page = (tmp_path / "report.md").read_text("utf-8")
    for text in (
        "| system | novelty@10 | gini@10 |\n| --- | --- | --- |\n| popularity |  | 0.900 |\n"
        "| two_stage | 5.000 [4.990, 5.010] | 0.900 |\n",
        "corrected by Holm's rule",
        "12,345 candidates, 67 of them positives. The loss is the share of the rating, the proxy for watch time, that",
        "| union | 0.750 |  |  |  |\n| two_stage |  |  | 0.250 [0.240, 0.260] |  |\n",
        "| 1 | 1,200 | 0.5 | 0 |  |\n| 10 | 34 | 2 | 1.6 | +25% |\n",
        "| slice | part | NDCG@10 of two_stage | users |\n| --- | --- | --- | --- |\n"
        "| activity | low | 0.500 [0.490, 0.510] | 7 |\n\n",
    ):
        assert text in page
    assert "1990s" not in page
