"""What a person sees while a sweep goes on: a live table, or a line a trial where nobody is looking."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from shortlist.components._trials import TrialRecord, best_trial

SHOWN = 12
"""Trials in the live table; the best one is always among them."""
PAUSE = 1.0


class SweepView:
    """Reads the trials once a second and shows them, for as long as the block lasts.

    Args:
      read: the trials so far, of every stage.
      objective: its name, of each stage.
      total: trials of a stage, if that is known.
      deadline: seconds since 1970 after which no trial begins.
      changed: is called with the trials whenever one has ended.
    """

    def __init__(
        self,
        read: Callable[[], list[TrialRecord]],
        objective: dict[str, str],
        total: int | None,
        deadline: float = math.inf,
        changed: Callable[[list[TrialRecord]], None] = lambda records: None,
    ):
        self.read, self.objective, self.total, self.deadline, self.changed = read, objective, total, deadline, changed
        self.console = Console(stderr=True, highlight=False)
        self.started, self.ended = time.time(), {(r.stage, r.trial) for r in read() if r.status != "running"}
        self.before = len(self.ended)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="sweep-view", daemon=True)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> "SweepView":
        if self.live:
            self.live.start()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop.set()
        self.thread.join()
        self._look()
        if self.live:
            self.live.stop()

    def _watch(self) -> None:
        while not self.stop.wait(PAUSE):
            self._look()

    def _look(self) -> None:
        records = self.read()
        new = [r for r in records if r.status != "running" and (r.stage, r.trial) not in self.ended]
        self.ended |= {(r.stage, r.trial) for r in new}
        if new:
            self.changed([r for r in records if r.status != "running"])
        if self.live and records:
            self.live.update(self.table(records), refresh=True)
        elif not self.live:
            for record in new:
                self.console.print(self._line(record, records), soft_wrap=True)

    def table(self, records: Sequence[TrialRecord]) -> Table:
        """The last trials, the best one marked, and how long the rest may take."""
        stage = records[-1].stage if records else next(iter(self.objective))
        own = [r for r in records if r.stage == stage]
        best = best_trial(own)
        shown = own[-SHOWN:] if best is None or best in own[-SHOWN:] else [best, *own[1 - SHOWN :]]
        names = list(dict.fromkeys(name for r in own for name in r.settings))
        title = f"{stage or 'sweep'}: {len(own)} of {self.total or '?'} trials"
        table = Table(title=title, caption=self._left(own), caption_justify="left", title_justify="left", box=None)
        for name in ("trial", *_headings(names), self.objective[stage], "best so far", "seconds"):
            table.add_column(name, justify="right", overflow="fold")
        so_far = -math.inf
        running_best = {}
        for r in own:
            so_far = max(so_far, r.objective if r.objective is not None else -math.inf)
            running_best[r.trial] = so_far
        for r in shown:
            value = f"{r.objective:.4f}" if r.objective is not None else r.status
            seconds = r.seconds if r.status != "running" else time.time() - r.started
            cells = [escape(_short(r.settings[name])) if name in r.settings else "" for name in names]
            top = f"{running_best[r.trial]:.4f}" if running_best[r.trial] > -math.inf else ""
            table.add_row(r.trial, *cells, value, top, f"{seconds:.0f}", style="bold green" if r is best else None)
        return table

    def _left(self, records: Sequence[TrialRecord]) -> str:
        done = [r for r in records if r.status != "running"]
        best = best_trial(done)
        found = (
            f"best {best.objective:.4f} (trial {best.trial})" if best and best.objective is not None else "no result"
        )
        failed = sum(r.status == "failed" for r in done)
        parts = [found, *([f"{failed} failed"] if failed else [])]
        new = len(self.ended) - self.before
        rest = math.inf
        if self.total and new:
            rest = (time.time() - self.started) / new * (self.total - len(done))
        rest = min(rest, self.deadline - time.time())
        return ", ".join([*parts, *([f"about {_span(max(rest, 0))} left"] if rest < math.inf else [])])

    def _line(self, record: TrialRecord, records: Sequence[TrialRecord]) -> str:
        own = [r for r in records if r.stage == record.stage]
        value = f"{record.objective:.4f}" if record.objective is not None else escape(record.message[:200])
        settings = " ".join(f"{name}={_short(v)}" for name, v in record.settings.items())
        head = f"{record.stage} trial {record.trial}".strip()
        text = f"  {head}  {record.status}  {self.objective[record.stage]} {value}  {record.seconds:.0f} s  "
        return text + f"[dim]{escape(settings)}[/dim]  ({self._left(own)})"


def _headings(names: Sequence[str]) -> list[str]:
    """The last part of dotted names; the model's too where two models share it."""
    last = [name.rpartition(".")[2] for name in names]
    return [".".join(n.split(".")[-2:]) if last.count(end) > 1 else end for n, end in zip(names, last, strict=True)]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
