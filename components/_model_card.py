"""The model card of a run, as a page of Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shortlist.components import _report as r
from shortlist.components._report_data import Step


def write_model_card(
    path: Path,
    metrics: Mapping[str, Any],
    source: Mapping[str, Any],
    splits: Mapping[str, Any],
    slices: Sequence[Mapping[str, Any]] = (),
    models: Sequence[str] = (),
    anomalies: Sequence[Mapping[str, Any]] = (),
    steps: Sequence[Step] = (),
    contributions: Sequence[Mapping[str, Any]] = (),
    size: int = 0,
) -> None:
    """Writes `report.md`.

    Args:
      path: the file.
      metrics: what is in metrics.json.
      source: what is in source.json.
      splits: what is in splits.json.
      slices: the rows of `slices.parquet`.
      models: the sources.
      anomalies: what is in anomalies.json.
      steps: the run, with its settings.
      contributions: of each source, what it finds and what only it does, in lists of `size` items.
      size: of these.
    """
    system = list(metrics["systems"])[-1]
    compared = metrics["comparisons"]
    lines = [
        f"# {_text(source.get('name') or source.get('source'))}: model card",
        "",
        f"Measured on `{metrics['split']}`. **{'Blessed' if metrics['blessed'] else 'Not blessed'}.** "
        + " ".join(metrics["reasons"]),
        "",
        *_use(metrics, source, models),
        "## Data",
        "",
        f"- Source: `{source.get('source')}`, {source.get('rows', 0):,} rows, "
        f"{source.get('duplicates_dropped', 0):,} duplicates dropped.",
        f"- Licence: {_text(source.get('licence'))}",
        f"- Citation: {_text(source.get('citation'))}",
        *[
            f"- {a['severity'].capitalize()}: {_text(a['table'])}.{_text(a['column'])} {_text(a['message'])}"
            for a in anomalies
        ],
        "",
        "## Split and protocol",
        "",
        *_list(r.protocol(metrics, splits)),
        "## Metrics",
        "",
        *_table(r.headline(metrics)),
        "Means over users, with 95 % intervals (bootstrap over users). The full catalogue is ranked, without the items "
        "that the user has seen.",
        "",
        *(["### Paired differences", "", *_list(map(r.comparison, compared))] if compared else []),
        *([r.TESTS, ""] if any("p_holm" in c for c in compared) else []),
        *_headed("### What each source adds", r.added(contributions)),
        *([r.counted_added(size), ""] if contributions else []),
        *_headed("### Beyond accuracy", r.besides(metrics)),
        *([r.folding(metrics), ""] if metrics.get("folding") else []),
        *_judged("### Within the shortlist", metrics.get("shortlist"), "candidates"),
        *_judged("### Impressions", metrics.get("impressions"), "impressions"),
        *_slices(slices, system),
        "## Limits",
        "",
        *_list(_limits(metrics, slices, system)),
        *_settings(steps),
    ]
    path.write_text("\n".join(lines), "utf-8")


def _use(metrics: Mapping[str, Any], source: Mapping[str, Any], models: Sequence[str]) -> list[str]:
    found, ranked = metrics["protocol"], "two_stage" in metrics["systems"]
    catalogue, sources = f"{found['catalogue']:,} items", ", ".join(models) or "the sources"
    if ranked:
        use = (
            f"Recommends from a catalogue of {catalogue}: {sources} retrieve a shortlist, and a second model orders it."
        )
    else:
        use = (
            f"Retrieves from a catalogue of {catalogue}: {sources}, each by itself. There is no ranking, and no bundle."
        )
    unfit = ["Items outside the catalogue: none is recommended before the catalogue is refreshed."]
    if ranked:
        unfit.append("Users of whom nothing is known: they get what is popular, the same for all.")
        if found.get("weight_from") != "watch_time":
            unfit.append(
                "Claims about minutes watched: the scores order items, and the data has no watch time to expect."
            )
    unfit.append("Decisions about people: it was trained and measured on what was watched, and on nothing else.")
    unfit.append(f"Any use that the data's licence does not allow. {_text(source.get('licence') or 'None is stated.')}")
    return ["## Intended use", "", use, "", "## What it is not for", "", *_list(unfit)]


def _limits(metrics: Mapping[str, Any], slices: Sequence[Mapping[str, Any]], system: str) -> list[str]:
    found, split = metrics["protocol"], metrics["split"]
    limits = [
        "Relevant is what was watched under whatever showed the items then: what users would have liked and never saw "
        "counts as a miss, and this favours what is popular.",
        "The figures belong to the models of the lineage below. Sources that are trained again on everything before "
        "the export (refit) are not measured.",
    ]
    if users := found["users"] - found["users_with_history"]:
        limits.append(f"{users:,} of the users measured have no history.")
    lost = found.get("not_retrieved", {}).get(split, 0) / max(found.get("positives", {}).get(split, 0), 1)
    if lost:
        limits.append(f"{lost:.0%} of the positives of {split} are not in the shortlist: no ranking can find them.")
    if weak := r.weakest(slices, system):
        limits.append(f"Weakest slices by {r.slice_metric(slices)} of {system}: {_text('; '.join(weak))}.")
    return limits


def _judged(heading: str, judged: Mapping[str, Any] | None, what: str) -> list[str]:
    if judged is None:
        return []
    lines = [heading, "", r.counted_orders(judged, what), "", *_table(r.orders(judged))]
    if "calibration" in judged:
        text = f"Expected against actual value. {r.weight(judged['weight_from'])}"
        lines += [text, "", *_table(r.deciles(judged["calibration"], what))]
    return lines


def _slices(slices: Sequence[Mapping[str, Any]], system: str) -> list[str]:
    shown = [s for s in r.slice_values(slices, system) if s["slice"] in r.PARTS]
    rows = [[s["slice"], s["part"], r.cell(s), f"{s['users']:,}"] for s in shown]
    title = f"NDCG@{r.slice_metric(slices).partition('@')[2]} of {system}"
    return _headed("### Slices", (["slice", "part", title, "users"], rows))


def _settings(steps: Sequence[Step]) -> list[str]:
    if not steps:
        return []
    rows = [[step.name, f"`{step.fingerprint}`"] for step in steps]
    settings = [line for step in steps for line in step.lines()]
    return ["## Settings", "", "```toml", *settings, "```", "", *_headed("## Lineage", (["step", "fingerprint"], rows))]


def _headed(heading: str, table: r.Rows) -> list[str]:
    return [heading, "", *_table(table)] if table[1] else []


def _table(table: r.Rows) -> list[str]:
    titles, rows = table
    return [*(f"| {' | '.join(map(_text, row))} |" for row in (titles, ["---"] * len(titles), *rows)), ""]


def _list(sentences: Any) -> list[str]:
    return [*(f"- {sentence}" for sentence in sentences), ""]


def _text(text: Any) -> str:
    """Text of the data's own, which is neither HTML nor the end of a cell."""
    return " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
