"""What a person sees of a sweep while it runs."""

import io
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live
from rich.table import Table

from shortlist.components import _sweep_view
from shortlist.components._sweep_view import SHOWN, SweepView
from shortlist.components._trials import TrialRecord

NOW = 1_000_000.0


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sweep_view.time, "time", lambda: NOW)


def trial(name: str, objective: float | None = None, **others: Any) -> TrialRecord:
    others = {"settings": {"rate": 0.123456, "layers": "[128, 64]"}, "started": NOW - 30, "seconds": 12.4, **others}
    status = others.pop("status", "failed" if objective is None else "completed")
    return TrialRecord(trial=name, status=status, objective=objective, **others)


def view(read: Callable[[], list[TrialRecord]] = lambda: [], total: int | None = 10, **others: Any) -> SweepView:
    objectives = others.pop("objective", {"": "ndcg@10"})
    return SweepView(read, objectives, total, **others)


def text(table: Table, width: int = 200) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def cells(line: str) -> list[str]:
    return line.replace(", 64]", ",64]").replace("best so far", "best_so_far").split()


def test_the_table_has_a_row_for_each_trial():
    running = trial("3", status="running", settings={"rate": 0.5})
    records = [trial("0", 0.25), trial("1", message="no"), trial("2", 0.5, status="early-stopped"), running]
    title, head, *rows, caption = text(view().table(records))
    assert title == "sweep: 4 of 10 trials"
    assert cells(head) == ["trial", "rate", "layers", "ndcg@10", "best_so_far", "seconds"]
    assert [cells(row) for row in rows] == [
        ["0", "0.1235", "[128,64]", "0.2500", "0.2500", "12"],
        ["1", "0.1235", "[128,64]", "failed", "0.2500", "12"],
        ["2", "0.1235", "[128,64]", "0.5000", "0.5000", "12"],
        ["3", "0.5", "running", "0.5000", "30"],  # has been running for half a minute, and has no layers
    ]
    assert caption == "best 0.5000 (trial 2), 1 failed"


def test_the_best_is_marked_and_always_shown():
    records = [trial(str(n), 0.1) for n in range(30)]
    records[3] = trial("3", 0.9)
    records[20] = trial("20", 0.9)  # as good, but later
    table = view(total=None).table(records)
    assert table.title == "sweep: 30 of ? trials"
    rows = text(table)[2:-1]
    assert [cells(row)[0] for row in rows] == ["3", *(str(n) for n in range(30 - SHOWN + 1, 30))]
    assert [row.style for row in table.rows] == ["bold green"] + [None] * (SHOWN - 1)
    assert {cells(row)[4] for row in rows} == {"0.9000"}
    recent = view().table([*records, trial("30", 0.95)])
    assert [row.style for row in recent.rows] == [None] * (SHOWN - 1) + ["bold green"]


def test_without_trials_there_is_an_empty_table():
    title, head, caption = text(view().table([]))
    assert (title, cells(head)) == ("sweep: 0 of 10 trials", ["trial", "ndcg@10", "best_so_far", "seconds"])
    assert caption == "no result"


def test_without_a_result_nothing_is_the_best():
    table = view().table([trial("0"), trial("1", status="running")])
    assert [row.style for row in table.rows] == [None, None]
    assert text(table)[-1] == "no result, 1 failed"


def test_each_stage_has_its_own_table():
    names = {"sources.wals.l2": 0.1, "sources.wals.epochs": 9, "sources.two_tower.epochs": 12}
    retrieval = [trial("0", 0.9, stage="retrieval", settings=names)]
    ranker = [trial("0", 0.2, stage="ranker", settings={"ranker.l2": 0.1})]
    own = view(objective={"retrieval": "recall@200", "ranker": "ndcg@10"})
    title, head, row, _ = text(own.table(retrieval))
    assert title == "retrieval: 1 of 10 trials"
    # whose l2 is plain; whose epochs is not
    assert cells(head) == ["trial", "l2", "wals.epochs", "two_tower.epochs", "recall@200", "best_so_far", "seconds"]
    assert cells(row) == ["0", "0.1", "9", "12", "0.9000", "0.9000", "12"]
    title, head, row, caption = text(own.table([*retrieval, *ranker]))
    assert title == "ranker: 1 of 10 trials"
    assert cells(head) == ["trial", "l2", "ndcg@10", "best_so_far", "seconds"]
    assert cells(row) == ["0", "0.1", "0.2000", "0.2000", "12"]
    assert caption.startswith("best 0.2000 (trial 0)")


def test_markup_in_a_setting_is_text():
    (row,) = text(view().table([trial("0", 0.5, settings={"tag": "[red]x[/red]"})]))[2:3]
    assert cells(row)[1] == "[red]x[/red]"


@pytest.mark.parametrize(
    ("ended", "before", "passed", "total", "deadline", "left"),
    [
        (5, 0, 60, 10, None, "about 60 s left"),  # five in a minute, five to go
        (4, 2, 60, 10, None, "about 3 min left"),  # two in a minute, six to go
        (4, 0, 3600, 10, None, "about 90 min left"),
        (4, 0, 36000, 10, None, "about 15.0 h left"),
        (10, 0, 60, 10, None, "about 0 s left"),
        (12, 0, 60, 10, None, "about 0 s left"),
        (4, 0, 60, None, None, None),  # nobody knows how many
        (4, 4, 60, 10, None, None),  # nor how long one takes
        (4, 0, 60, 10, 20.0, "about 20 s left"),
        (5, 0, 60, 10, 1000.0, "about 60 s left"),
        (4, 4, 60, 10, 1000.0, "about 17 min left"),
        (4, 0, 60, 10, -5.0, "about 0 s left"),
    ],
)
def test_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
    ended: int,
    before: int,
    passed: float,
    total: int | None,
    deadline: float | None,
    left: str | None,
):
    records = [trial(str(n), 0.5) for n in range(ended)]
    limit = {} if deadline is None else {"deadline": NOW + deadline}
    monkeypatch.setattr(_sweep_view.time, "time", lambda: NOW - passed)
    own = view(lambda: records[:before], total, **limit)
    monkeypatch.setattr(_sweep_view.time, "time", lambda: NOW)
    own.read = lambda: records
    own.console = Console(file=io.StringIO())
    own._look()
    caption = own.table(records).caption
    assert caption == "best 0.5000 (trial 0)" + (f", {left}" if left else "")


def test_where_nobody_looks_each_trial_is_a_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_sweep_view, "PAUSE", 0.01)
    old = [trial("0", 0.25)]
    records = list(old)
    told: list[list[str]] = []
    own = view(lambda: list(records), 10, changed=lambda found: told.append([r.trial for r in found]))
    own.console = Console(file=io.StringIO(), width=20)

    def wait(lines: int) -> None:
        while own.console.file.getvalue().count("\n") < lines:
            time.sleep(0.005)

    with own:
        records.append(trial("1", status="running"))
        records[1:] = [trial("1", 0.5), trial("2", status="running")]
        wait(1)
        records[2:] = [trial("2", message="[Errno 28] no [/room]"), trial("3", status="running")]
        wait(2)
        records[3:] = [trial("3", 0.75, status="early-stopped")]
    assert own.console.file.getvalue().splitlines() == [
        "  trial 1  completed  ndcg@10 0.5000  12 s  rate=0.1235 layers=[128, 64]"
        "  (best 0.5000 (trial 1), about 0 s left)",
        "  trial 2  failed  ndcg@10 [Errno 28] no [/room]  12 s  rate=0.1235 layers=[128, 64]"
        "  (best 0.5000 (trial 1), 1 failed, about 0 s left)",
        "  trial 3  early-stopped  ndcg@10 0.7500  12 s  rate=0.1235 layers=[128, 64]"
        "  (best 0.7500 (trial 3), 1 failed, about 0 s left)",
    ]
    assert told == [["0", "1"], ["0", "1", "2"], ["0", "1", "2", "3"]]  # not of the running ones
    assert not own.thread.is_alive()


def test_in_a_terminal_the_table_is_drawn_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_sweep_view, "PAUSE", 0.01)
    records = [trial("0", status="running")]
    own = view(lambda: list(records))
    own.console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    own.live = Live(console=own.console, auto_refresh=False)
    with own:
        while "running" not in own.console.file.getvalue():
            time.sleep(0.005)
        records[:] = [trial("0", 0.5), trial("1", status="running")]
    shown = own.console.file.getvalue()
    assert "sweep: 1 of 10 trials" in shown
    last = shown[shown.rindex("sweep: 2 of 10 trials") :]
    assert "best 0.5000 (trial 0), about 0 s left" in last
    assert "0.5000" in last
    assert "completed" not in last  # no lines beside the table


def test_an_error_goes_through_and_what_has_ended_is_still_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_sweep_view, "PAUSE", 60)
    records: list[TrialRecord] = []
    told: list[int] = []
    own = view(lambda: list(records), changed=lambda found: told.append(len(found)))
    own.console = Console(file=io.StringIO())

    def search() -> None:
        with own:
            records.append(trial("0", 0.5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search()
    assert told == [1]
    assert not own.thread.is_alive()
