"""What a person sees of a sweep: one page with plots and tables."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from shortlist.components._files import replace_file
from shortlist.components._plots import Cell, Facts, Section, Table, page
from shortlist.components._sweep_plots import (
    LOG_DECADES,
    STATUSES,
    Stage,
    duration_text,
    importance_plot,
    score_text,
    shown_text,
)
from shortlist.components._tables import counted
from shortlist.components._trials import (
    TREES,
    TrialRecord,
    best_trial,
    fit_forest,
    fitted,
    importance,
    trials_table,
    unimportant,
)

__all__ = ["TrialRecord", "best_trial", "importance", "trials_table", "unimportant", "write_sweep_report"]


def write_sweep_report(
    path: Path,
    records: Sequence[TrialRecord],
    objective: str | Mapping[str, str],
    title: str,
    facts: Mapping[str, str],
    shipped: Collection[str] = (),
) -> None:
    """Writes `sweep.html`, in one step: a reader never sees half of it.

    Args:
      path: The file.
      records: The trials in the order in which they were made.
      objective: The name of the objective, or a name for each stage.
      title: The head of the page.
      facts: What else to say at the top, such as the data and the algorithm.
      shipped: The stages whose first trial has the shipped settings.
    """
    sections = [Section("", items=[Facts({**facts, **_counts(records)})])]
    stages = list(dict.fromkeys(r.stage for r in records))
    for stage in stages:
        name = objective if isinstance(objective, str) else objective[stage]
        own, level = [r for r in records if r.stage == stage], 3 if len(stages) > 1 else 2
        found = _stage(own, name, stage in shipped, level)
        head = stage[:1].upper() + stage[1:]
        sections += [Section(head, f"The objective is {name}, on validation."), *found] if len(stages) > 1 else found
    if not records:
        sections.append(Section("No trial yet", "The sweep has not finished a single trial."))
    replace_file(path, page(title, sections))


def _counts(records: Sequence[TrialRecord]) -> dict[str, Cell]:
    counts: dict[str, Cell] = {"Trials": len(records)}
    for status in STATUSES[1:]:
        if many := sum(r.status == status for r in records):
            counts[status.capitalize()] = many
    if records:
        counts["Wall time"] = duration_text(max(r.ended for r in records) - min(r.started for r in records))
    return counts


def _stage(records: Sequence[TrialRecord], objective: str, shipped: bool, level: int) -> list[Section]:
    best, scored = best_trial(records), [r for r in records if r.score is not None]
    trials = Section("All trials", "", [_all_trials(records, objective, best)], level)
    if best is None:
        failed = sum(r.status == "failed" for r in records)
        what = "Every trial failed" if failed == len(records) else f"No trial gave a finite {objective}"
        return [Section("No result", f"{what}. The messages below say why.", [], level), trials]
    stage = Stage(records, best, objective)
    table = trials_table(records)
    sections = [_best(records, best, objective, shipped, level)]
    sections += [Section(h, text, [plot], level) for h, text, plot in (stage.over_trials(), stage.over_time())]
    held = [n for n in stage.settings if n not in stage.varied]
    fixed = (
        f" Held at one value: {', '.join(f'{n} = {shown_text(best.settings.get(n))}' for n in held)}." if held else ""
    )
    if len(scored) > 1 and stage.varied:
        text = (
            f"One line a trial, from its {objective} down through its settings; the bold line is the best trial. A "
            f"scale is logarithmic where the values span more than {LOG_DECADES} decades. Point at a dot to follow its "
            f"line.{fixed}"
        )
        sections.append(Section("All settings at once", text, [stage.parallel()], level))
        text = f"Each point is a trial, the ringed one the best. All panels share the scale of {objective}."
        sections.append(Section("Each setting", text, [stage.setting(n) for n in stage.varied], level, grid=True))
    else:
        what = "One trial has a result" if len(scored) == 1 else "The trials with a result have the same settings"
        sections.append(Section("Settings", f"{what}: there is nothing to compare.{fixed}", [], level))
    reason = unimportant(table)
    if reason:
        return [*sections, Section("Importance of the settings", reason, [], level), trials]
    found, seen = fit_forest(table)
    explained = f"explains {f'{seen:.0%}' if seen >= 0.01 else 'none'} of the variance between"
    text = (
        f"How much of its fit a forest of {TREES} regression trees loses when the values of a setting are shuffled "
        f"among the {counted(len(fitted(table)), 'completed trial')}. Indicative only: the forest {explained} trials "
        "that it has not seen, the trials are few and not drawn evenly, and settings that act together share their "
        "importance."
    )
    return [
        *sections,
        Section("Importance of the settings", text, [importance_plot(found, stage.stage)], level),
        trials,
    ]


def _best(records: Sequence[TrialRecord], best: TrialRecord, objective: str, shipped: bool, level: int) -> Section:
    first, called = records[0], "the shipped defaults" if shipped else "the first trial"
    rows: list[list[Cell]] = [[objective, score_text(first), score_text(best)]]
    for name in dict.fromkeys([*first.settings, *best.settings]):
        rows.append([name, shown_text(first.settings.get(name)), shown_text(best.settings.get(name))])
    if first.epochs != best.epochs:
        rows.append(["epochs run", first.epochs, best.epochs])
    changed = {i: "best" for i, row in enumerate(rows) if row[1] != row[2]}
    if best is first:
        text = f"No trial is better than {called}: {objective} is {score_text(best)}."
    elif first.score is None or best.score is None:
        text = f"Trial {best.trial} has {objective} {score_text(best)}; {called} (trial {first.trial}) gave none."
    else:
        text = (
            f"Trial {best.trial} has {objective} {score_text(best)}, {best.score - first.score:+.4f} against {called} "
            f"(trial {first.trial}). What differs is set in bold."
        )
    text += (
        " The best of many is partly luck: expect less on data that the sweep has not seen." if len(records) > 1 else ""
    )
    return Section(
        "Best trial", text, [Table(["", "defaults" if shipped else "first", "best"], rows, "", changed)], level
    )


def _all_trials(records: Sequence[TrialRecord], objective: str, best: TrialRecord | None) -> Table:
    ranked = sorted(records, key=lambda r: -math.inf if r.score is None else r.score, reverse=True)
    names = list(dict.fromkeys(name for r in records for name in r.settings))
    optional: dict[str, list[Cell]] = {
        "continues": [r.parent and f"{r.parent} from epoch {r.initial_epoch}" for r in ranked],
        "worker": [r.worker for r in ranked] if len({r.worker for r in records}) > 1 else [],
        "epochs run": [r.epochs for r in ranked],
    }
    extra = {name: values for name, values in optional.items() if any(v is not None for v in values)}
    columns = ["trial", objective, "status", "time", *extra, *names, "message"]
    rows = [
        [r.trial, score_text(r), r.status, duration_text(r.seconds)]
        + [values[i] for values in extra.values()]
        + [shown_text(r.settings.get(name)) for name in names]
        + [r.message]
        for i, r in enumerate(ranked)
    ]
    marks = {i: "best" if r is best else "failed" for i, r in enumerate(ranked) if r is best or r.score is None}
    return Table(columns, rows, "Sorted by the objective; what gave none comes last.", marks)
