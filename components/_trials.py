"""The trials of a sweep: their records, their table, the best of them, and which settings mattered."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ENOUGH = 8  # completed trials, for a forest to say anything
TREES, REPEATS = 100, 10


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of a sweep, as it ended.

    Args:
      stage: "" for the sweep of one model; "retrieval" or "ranker" for one of two stages.
      trial: Its name, unique within the stage.
      status: "completed", "early-stopped" or "failed".
      objective: The figure to be maximized; None or NaN where there is none.
      settings: What was tried, by name: bool, int, float or str, a list as its JSON text ("[128, 64]"). A setting that
        was inactive in this trial is absent.
      epochs: The epoch at which it ended, or None.
      initial_epoch: The epoch at which it began, above 0 for a trial that goes on from a checkpoint.
      parent: The trial whose checkpoint that was (Hyperband), or None.
      started: When it began, seconds since 1970.
      seconds: How long it took.
      worker: Who ran it.
      message: Why it failed or was stopped.
    """

    stage: str = ""
    trial: str
    status: str
    objective: float | None
    settings: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    epochs: int | None = None
    initial_epoch: int = 0
    parent: str | None = None
    started: float
    seconds: float
    worker: str = ""
    message: str = ""

    @property
    def score(self) -> float | None:
        """The objective, or None where the trial failed or it is not a finite number."""
        return self.objective if self.status != "failed" and _known(self.objective) else None

    @property
    def ended(self) -> float:
        return self.started + self.seconds


def _known(objective: float | None) -> bool:
    return objective is not None and math.isfinite(objective)


def trials_table(records: Sequence[TrialRecord]) -> pa.Table:
    """The trials as a table, one row a trial in the order given.

    Returns:
      stage, trial, status string; objective float64 (null unless finite); epochs, initial_epoch int64; parent string;
      started timestamp[s, UTC]; seconds float64; worker, message string; then `settings.<name>` for each setting in
      order of appearance: bool, int64, float64 (also where whole numbers and others are mixed) or string, null where
      the setting was inactive.
    """
    columns = {
        "stage": pa.array([r.stage for r in records], pa.string()),
        "trial": pa.array([r.trial for r in records], pa.string()),
        "status": pa.array([r.status for r in records], pa.string()),
        "objective": pa.array([r.objective if _known(r.objective) else None for r in records], pa.float64()),
        "epochs": pa.array([r.epochs for r in records], pa.int64()),
        "initial_epoch": pa.array([r.initial_epoch for r in records], pa.int64()),
        "parent": pa.array([r.parent for r in records], pa.string()),
        "started": pa.array([int(r.started) for r in records], pa.timestamp("s", "UTC")),
        "seconds": pa.array([r.seconds for r in records], pa.float64()),
        "worker": pa.array([r.worker for r in records], pa.string()),
        "message": pa.array([r.message for r in records], pa.string()),
    }
    for name in dict.fromkeys(name for r in records for name in r.settings):
        columns[f"settings.{name}"] = _typed([r.settings.get(name) for r in records])
    return pa.table(columns)


def _typed(values: list[Any]) -> pa.Array:
    kinds = {kind_of(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int}:
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string())


def kind_of(value: Any) -> type:
    return next(kind for kind in (bool, int, float, str) if isinstance(value, kind))


def best_trial(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial with the highest objective among those that did not fail, the first of equals; None if there is none.

    It is meant for the trials of one stage.
    """
    return max((r for r in records if r.score is not None), key=lambda r: r.score or 0.0, default=None)


def importance(table: pa.Table) -> list[tuple[str, float, float]]:
    """How much each setting of a stage mattered: the loss of R² of a forest on the trials when the setting is shuffled.

    A forest of regression trees is fitted to the objective of the completed trials. Epochs, where trials differ in
    them, are an input beside the settings and not listed. An inactive setting is a missing value.

    Source: Breiman 2001, "Random Forests", section 10, on the trials that were fitted (there are too few to hold out).

    Args:
      table: As `trials_table` makes it, of one stage.

    Returns:
      (setting, mean, standard deviation over the shufflings), the most important first. Empty where `unimportant` gives
      a reason.
    """
    return [] if unimportant(table) else fit_forest(table)[0]


def unimportant(table: pa.Table) -> str:
    """Why the importance of the settings cannot be told, or ""."""
    found = fitted(table)
    if len(found) < ENOUGH:
        return f"It takes {ENOUGH} completed trials to tell. There {'is' if len(found) == 1 else 'are'} {len(found)}."
    if len(set(found["objective"].to_pylist())) == 1:
        return "Every completed trial has the same objective."
    if not _varied(found):
        return "Every completed trial has the same settings."
    return ""


def fitted(table: pa.Table) -> pa.Table:
    """The completed trials with an objective."""
    return table.filter(pc.and_(pc.equal(table["status"], "completed"), pc.is_valid(table["objective"])))


def _varied(table: pa.Table) -> list[str]:
    names = (name for name in table.column_names if name.startswith("settings."))
    return [name for name in names if len(set(table[name].to_pylist())) > 1]


def fit_forest(table: pa.Table) -> tuple[list[tuple[str, float, float]], float]:
    """The importances, and R² of the forest on the trials that each tree has not seen."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    table = fitted(table)
    names = _varied(table)
    inputs = np.column_stack([_codes(table[name]) for name in [*names, "epochs"]])  # [trials, settings + 1]
    objective = np.asarray(table["objective"])
    forest = RandomForestRegressor(TREES, oob_score=True, random_state=0).fit(inputs, objective)
    shuffled = permutation_importance(forest, inputs, objective, n_repeats=REPEATS, random_state=0)
    named = zip(names, shuffled.importances_mean[: len(names)], shuffled.importances_std, strict=False)
    found = [(name.removeprefix("settings."), float(mean), float(std)) for name, mean, std in named]
    return sorted(found, key=lambda f: -f[1]), float(forest.oob_score_)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers for a tree: text by its order, nothing as NaN."""
    values = column.to_pylist()
    known = sorted({v for v in values if v is not None})
    order: Mapping[Any, float] = {v: i if isinstance(v, str) else float(v) for i, v in enumerate(known)}
    return np.asarray([np.nan if v is None else order[v] for v in values], np.float64)
