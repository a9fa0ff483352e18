"""The page of a sweep, from trials whose answers are known."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, opened
from sweep_cases import sweep, trial

from shortlist.components._sweep_plots import Scale
from shortlist.components._sweep_report import (
    TrialRecord,
    best_trial,
    importance,
    trials_table,
    unimportant,
    write_sweep_report,
)

NASTY = "</script><script>window.hacked = 1</script>"


def written(
    path: Path, records: Sequence[TrialRecord], objective: Any = "ndcg@10", shipped: Sequence[str] = ("",)
) -> str:
    write_sweep_report(path, records, objective, "Sweep", {"Data": "demo"}, shipped)
    return path.read_text("utf-8")


def cells(text: str, caption: str) -> list[list[str]]:
    """The rows of the table with that caption, as text."""
    table = re.search(rf"<table>(?:<caption>{caption}.*?</caption>)<thead>.*?</table>", text, re.DOTALL)
    assert table, f"no table {caption!r}"
    rows = re.findall(r"<tr.*?>(.*?)</tr>", table[0], re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def specs(text: str) -> dict[str, dict[str, Any]]:
    """The charts of a page by what they are called."""
    found = [json.loads(s) for s in re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)]
    return {spec["description"]: spec for spec in found}


def rows_of(spec: dict[str, Any], field: str) -> list[dict[str, Any]]:
    return next(rows for rows in spec["datasets"].values() if field in rows[0])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([trial(n, n / 10, {"a": n}) for n in range(7)], "It takes 8 completed trials to tell. There are 7."),
        ([trial(0, 0.5, {"a": 1})], "It takes 8 completed trials to tell. There is 1."),
        ([trial(n, 0.5, {"a": n}) for n in range(9)], "Every completed trial has the same objective."),
        ([trial(n, n / 10, {"a": 1}) for n in range(9)], "Every completed trial has the same settings."),
        (
            [trial(n, n / 10, {"a": n}, status="completed" if n < 5 else "early-stopped") for n in range(9)],
            "It takes 8 completed trials to tell. There are 5.",
        ),
    ],
)
def test_importance_is_left_out_with_a_reason(tmp_path, records, reason):
    assert unimportant(trials_table(records)) == reason
    assert importance(trials_table(records)) == []
    assert f"<p>{reason}</p>" in written(tmp_path / "sweep.html", records)


def test_importance_says_how_far_to_trust_it(tmp_path):
    text = written(tmp_path / "sweep.html", sweep(20))
    (said,) = re.findall(r"<p>(How much of its fit.*?)</p>", text)
    assert "among the 16 completed trials" in said
    assert "Indicative only" in said


def test_the_best_is_set_beside_the_defaults(tmp_path):
    records = [trial(0, 0.1, {"a": 1, "b": 0.5, "old": True}), trial(1, 0.125, {"a": 1, "b": 0.25, "new": "x"})]
    text = written(tmp_path / "sweep.html", records)
    assert "Trial 001 has ndcg@10 0.1250, +0.0250 against the shipped defaults (trial 000)." in text
    rows = re.search(r"<thead><tr><th></th><th>defaults</th>.*?</table>", text, re.DOTALL)
    assert rows
    found = [
        (kind, re.findall(r"<td>(.*?)</td>", row))
        for kind, row in re.findall(r'<tr class="(\w*)">(.*?)</tr>', rows[0], re.DOTALL)
    ]
    assert found == [
        ("best", ["ndcg@10", "0.1000", "0.1250"]),
        ("", ["a", "1", "1"]),
        ("best", ["b", "0.5", "0.25"]),
        ("best", ["old", "true", "–"]),
        ("best", ["new", "–", "x"]),
    ]


def test_defaults_that_are_the_best_are_called_so(tmp_path):
    text = written(tmp_path / "sweep.html", [trial(0, 0.2, {"a": 1}), trial(1, 0.1, {"a": 2})])
    assert "No trial is better than the shipped defaults: ndcg@10 is 0.2000." in text


def test_a_first_trial_that_has_other_settings_is_not_called_shipped(tmp_path):
    first, second, failed = trial(0, 0.2, {"a": 1}), trial(1, 0.25, {"a": 2}), trial(0, None, {"a": 1})
    text = written(tmp_path / "sweep.html", [first, second], shipped=[])
    assert "Trial 001 has ndcg@10 0.2500, +0.0500 against the first trial (trial 000)." in text
    assert re.search("<th[^>]*>first</th><th[^>]*>best</th>", text)
    assert "shipped defaults" not in text
    assert "No trial is better than the first trial: ndcg@10" in written(tmp_path / "x", [first], shipped=[])
    text = written(tmp_path / "sweep.html", [failed, second], shipped=[])
    assert "Trial 001 has ndcg@10 0.2500; the first trial (trial 000) gave none." in text
    text = written(tmp_path / "sweep.html", [failed, second])
    assert "Trial 001 has ndcg@10 0.2500; the shipped defaults (trial 000) gave none." in text


def test_each_stage_says_what_its_first_trial_is(tmp_path):
    records = [trial(0, 0.2, {"a": 1}, stage=stage) for stage in ("retrieval", "ranker")]
    objectives = {"retrieval": "recall@300", "ranker": "ndcg@10"}
    text = written(tmp_path / "sweep.html", records, objectives, ["ranker"])
    assert "No trial is better than the first trial: recall@300" in text
    assert "No trial is better than the shipped defaults: ndcg@10" in text


def test_all_trials_are_listed_best_first_with_the_message_of_the_failed(tmp_path):
    records = [
        trial(0, 0.1, {"a": 1}),
        trial(1, None, {"a": 2}, message="out of memory"),
        trial(2, 0.3, {"a": 3}, epochs=9, parent="000", initial_epoch=3),
    ]
    head, *rows = cells(written(tmp_path / "sweep.html", records), "Sorted by")
    assert head == ["trial", "ndcg@10", "status", "time", "continues", "epochs run", "a", "message"]
    assert rows == [
        ["002", "0.3000", "completed", "8.0 s", "000 from epoch 3", "9", "3", ""],
        ["000", "0.1000", "completed", "8.0 s", "–", "–", "1", ""],
        ["001", "–", "failed", "8.0 s", "–", "–", "2", "out of memory"],
    ]


def test_the_best_so_far_over_trials_and_over_time(tmp_path):
    times = [dict(started=100.0, seconds=90.0), dict(started=100.0, seconds=30.0), dict(started=130.0, seconds=30.0)]
    records = [trial(n, y, {"a": n}, **times[n]) for n, y in enumerate((0.1, 0.3, 0.2))] + [
        trial(3, None, started=160.0)
    ]
    charts = specs(written(tmp_path / "sweep.html", records))
    over_trials = rows_of(charts["ndcg@10 of 4 trials in order, with the best so far."], "so_far")
    assert [(row["n"], row["y"], row["so_far"]) for row in over_trials] == [
        (1, 0.1, 0.1),
        (2, 0.3, 0.3),
        (3, 0.2, 0.3),
        (4, None, 0.3),
    ]
    over_time = rows_of(charts["ndcg@10 of 4 trials over seconds of wall time, with the best so far."], "so_far")
    assert [(row["from"], row["x"], row["so_far"]) for row in over_time] == [
        (0, 30, 0.3),
        (30, 60, 0.3),
        (60, 68, 0.3),
        (0, 90, 0.3),
    ]


@pytest.mark.parametrize(
    ("values", "kind", "places"),
    [
        ([0.001, 0.1, 0.01], "log", [0, 1, 0.5]),
        ([1, 10, 31], "linear", [0, 0.3, 1]),
        ([1, 10, 32], "log", [0, np.log(10) / np.log(32), 1]),
        ([0, 0.001, 0.1], "symlog", [0, np.log(2) / np.log(101), 1]),
        ([-1.0, 100.0, 49.5], "linear", [0, 1, 0.5]),
        ([5, 5], "linear", [0.5, 0.5]),
        (["b", "a", "c"], "linear", [0.5, 0, 1]),
        (["[128, 64]", "[64]", "[128]"], "linear", [1, 0, 0.5]),
        ([True, False], "linear", [1, 0]),
        ([1, None, 3], "linear", [0, -0.22, 1]),
        (["a", None, "b"], "linear", [0, 1, 0.5]),
    ],
)
def test_where_a_value_stands(values, kind, places):
    scale = Scale(values)
    assert scale.kind == kind
    np.testing.assert_allclose([scale.place(value) for value in values], places, atol=1e-12)


def test_every_varied_setting_has_its_panel_and_a_place_in_the_lines(tmp_path):
    records = sweep(20)
    text = written(tmp_path / "sweep.html", records)
    charts = specs(text)
    varied = ["embedding_dim", "l2", "solver", "hidden_units", "weighted", "dropout", "cg_steps"]
    panels = [re.match(r"ndcg@10 against (\w+), (\d+) trials", label) for label in charts]
    assert {p[1]: int(p[2]) for p in panels if p} == {
        **dict.fromkeys(varied, 18),
        "cg_steps": sum("cg_steps" in r.settings for r in records if r.score is not None),
    }
    (lines,) = (spec for label, spec in charts.items() if label.startswith("Parallel"))
    rows = rows_of(lines, "rank")
    assert len(rows) == 18 * (len(varied) + 1)
    assert {row["trial"] for row in rows if row["best"]} == {best_trial(records).trial}
    assert "Held at one value: seed = 0." in text


def test_each_stage_has_its_own_part_and_objective(tmp_path):
    records = [*sweep(4, "retrieval"), *sweep(5, "ranker", seed=3)]
    text = written(tmp_path / "sweep.html", records, {"retrieval": "recall@300", "ranker": "ndcg@10"})
    assert re.findall(r"<h2[^>]*>(.*?)</h2><p>(.*?)</p>", text) == [
        ("Retrieval", "The objective is recall@300, on validation."),
        ("Ranker", "The objective is ndcg@10, on validation."),
    ]
    assert text.count(">Best trial</h3>") == 2
    assert any(label.startswith("retrieval: recall@300 of 4 trials in order") for label in specs(text))
    assert any(label.startswith("ranker: ndcg@10 of 5 trials in order") for label in specs(text))


def test_a_sweep_in_which_all_failed_says_so(tmp_path):
    text = written(tmp_path / "sweep.html", [trial(n, None, {"a": n}, message=f"why {n}") for n in range(3)])
    assert "Every trial failed. The messages below say why." in text
    assert [row[-1] for row in cells(text, "Sorted by")[1:]] == ["why 0", "why 1", "why 2"]
    assert specs(text) == {}


def test_a_sweep_without_a_trial_says_so(tmp_path):
    assert "has not finished a single trial" in written(tmp_path / "sweep.html", [])


def test_the_report_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "sweep.html"
    before = written(path, [trial(0, 0.1)])
    replaced = []
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (replaced.append((self.read_text(), to)), replace(self, to))[1]
    )
    after = written(path, [trial(0, 0.1), trial(1, 0.2)])
    assert replaced == [(after, path)]
    assert after != before
    monkeypatch.setattr(Path, "replace", lambda self, to: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        written(path, [])
    assert path.read_text("utf-8") == after
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.html"]


HOSTILE = {"a.b[0]": 1, "x'y\"z\\": NASTY, "datum.y": 0.5, "ndcg@10": 3, "n\nl": "<img src=x onerror=alert(1)>"}
CASES = {
    "twenty": sweep(20),
    "two stages": [*sweep(12, "retrieval"), *sweep(12, "ranker", seed=3)],
    "all failed": [trial(n, None, {"a": n}, message=NASTY) for n in range(2)],
    "one": [trial(0, 0.5, {"a": 1, "b": True})],
    "no settings": [trial(0, 0.5), trial(1, 0.6)],
    "not finite": [trial(n, y, {"a": n}) for n, y in enumerate([float("nan"), 0.2, float("inf"), None, 0.3])],
    "one setting": [trial(n, n % 5 / 5, {"a": 10.0**-n}) for n in range(9)],
    "constant": [trial(n, 0.0, {"a": n, "b": n % 2 == 0}) for n in range(9)],
    "hostile": [
        trial(n, n % 4 / 4, {**HOSTILE, "ndcg@10": n, **({"x'y\"z\\": "other"} if n % 2 else {})}, message=NASTY)
        for n in range(9)
    ],
    "rungs": [
        trial(n, n % 7 / 7, {"a": n // 3}, epochs=3 ** (n % 3), parent=f"{n - 1:03}" if n % 3 else None)
        for n in range(12)
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_is_drawn_whole(browser, tmp_path, name, width, dark):
    text = written(tmp_path / "sweep.html", CASES[name])
    with opened(browser, tmp_path / "sweep.html", width, dark) as page:
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("Number(document.documentElement.dataset.plots)") == len(specs(text))


@pytest.mark.slow
def test_thirty_settings_and_five_hundred_trials_are_drawn(browser, tmp_path):
    draw = np.random.default_rng(0)
    names = [f"a_long_name_of_a_setting_{i}" for i in range(30)]
    values = 10 ** draw.uniform(-4, 0, (500, 30))
    records = [trial(n, float(row[0]), dict(zip(names, row.tolist(), strict=True))) for n, row in enumerate(values)]
    text = written(tmp_path / "sweep.html", records)
    assert len(specs(text)) == 3 + 30 + 1
    assert len(text) < 10_000_000
    with opened(browser, tmp_path / "sweep.html"):
        pass


@pytest.mark.slow
def test_pointing_at_a_trial_shows_it(browser, tmp_path):
    records = [trial(0, 0.1, {"a": 1}), trial(1, 0.3, {"a": 7, NASTY: 1}), trial(2, 0.2, {"a": 2}, message=NASTY)]
    written(tmp_path / "sweep.html", records)
    with opened(browser, tmp_path / "sweep.html") as page:
        page.locator(".plot").first.locator(".mark-symbol.role-mark path[aria-label*='trial: 001']").first.hover()
        shown = page.locator("#vg-tooltip-element.visible")
        shown.wait_for()
        assert dict(
            zip(shown.locator(".key").all_inner_texts(), shown.locator(".value").all_inner_texts(), strict=True)
        ) == {
            **{
                "trial": "001",
                "status": "completed",
                "ndcg@10": "0.3000",
                "a": "7",
                NASTY: "1",
                "message": "–",
                "time": "8.0 s",
            },
        }
        assert page.evaluate("window.hacked") is None
