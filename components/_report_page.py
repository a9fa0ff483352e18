"""The page of a run, `report.html`: everything that is known of it, from the headline down to the lineage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from shortlist.components import _report as r
from shortlist.components._plots import Cell, Facts, Plot, Pre, Section, Table, number
from shortlist.components._report_data import Example, Point, Step
from shortlist.components._report_plots import (
    calibration_plot,
    gain_plot,
    headline_plot,
    history_plots,
    map_plot,
    recall_plot,
    slice_plot,
)
from shortlist.components._tables import counted


@dataclass(frozen=True)
class Run:
    """What the page is made from.

    Args:
      metrics: what is in metrics.json.
      slices: the rows of slices.parquet.
      source: what is in source.json.
      splits: what is in splits.json.
      statistics: what is in statistics.json.
      anomalies: what is in anomalies.json.
      histories: by model, what its training logged.
      curves: by list, its recall along its length.
      contributions: of each source, what it finds and what only it does, in lists of one length.
      examples: users with recommendations of `system`.
      system: whose recommendations they are.
      steps: all of them, with their settings.
      map: the items, the variance of each axis and the source whose vectors they are; none where no source has any.
      positives: by split, the positives in a shortlist, on average.
    """

    metrics: Mapping[str, Any]
    slices: Sequence[Mapping[str, Any]]
    source: Mapping[str, Any]
    splits: Mapping[str, Any]
    statistics: Mapping[str, Any]
    anomalies: Sequence[Mapping[str, Any]]
    histories: Mapping[str, Mapping[str, Sequence[float]]]
    curves: Mapping[str, Sequence[Mapping[str, float]]]
    examples: Sequence[Example]
    system: str
    steps: Sequence[Step]
    map: tuple[Sequence[Point], tuple[float, float], str] | None = None
    positives: Mapping[str, float] = field(default_factory=dict)
    contributions: Sequence[Mapping[str, Any]] = ()

    @property
    def title(self) -> str:
        return str(self.source.get("name") or self.source.get("source") or "Run")


def sections_of(run: Run) -> tuple[list[Section], dict[str, Plot]]:
    """The sections of the page, and its main plots by the names of their files."""
    plots: dict[str, Plot] = {}
    sections = [
        *_top(run, plots),
        *_recall(run, plots),
        *_gain(run, plots),
        *_slices(run),
        *_calibration(run, plots),
        *_training(run),
        *_map(run, plots),
        *_examples(run),
        *_data(run),
        *_split(run),
        *_steps(run),
    ]
    return sections, plots


def _top(run: Run, plots: dict[str, Plot]) -> list[Section]:
    metrics, found = run.metrics, run.metrics["protocol"]
    facts: dict[str, Cell] = {
        "Data": str(metrics["data"]),
        "Measured on": metrics["split"],
        "Users": found["users"],
        "Positives": found["targets"],
        "Catalogue": counted(found["catalogue"], "item"),
        "Blessed": "yes" if metrics["blessed"] else "no",
        "Seed": metrics["seed"],
    }
    titles, rows = r.headline(metrics)
    metric = titles[1].lower()
    plots["headline"] = headline_plot(metrics, metric)
    best = r.best_system(metrics, list(metrics["systems"]))
    marks = {i: "best" for i, row in enumerate(rows) if row[0] == best}
    text = (
        "Means over users with 95 % intervals (bootstrap over users). The full catalogue is ranked, without the items "
        "that the user has seen. Coverage is the share of the catalogue that is recommended to anybody."
    )
    sections = [
        Section("", " ".join(metrics["reasons"]), [Facts(facts)]),
        Section("Headline", text, [plots["headline"], Table(titles, rows, marks=marks)]),
    ]
    titles, rows = r.besides(metrics)
    if rows:
        text = (
            "Novelty: mean −log2 of the share of users that watched an item. Diversity: 1 − the mean cosine of two "
            "items' genres. Popularity bias: how much more popular, in percentiles, a list is than what the user "
            "watched. Gini: 0 where every item is recommended equally often, near 1 where few are to all."
        )
        text = f"{text} {r.folding(metrics)}".strip()
        sections.append(Section("Beyond accuracy", text, [Table(titles, rows)], 3))
    return sections


def _recall(run: Run, plots: dict[str, Plot]) -> list[Section]:
    plots["recall"] = recall_plot(run.curves)
    at = [int(point["length"]) for point in next(iter(run.curves.values()))]
    rows: list[list[Cell]] = [[name, *(r.cell(p) for p in points)] for name, points in run.curves.items()]
    text = (
        "Recall is the share of a user's positives found, of at most as many as the list is long: hits / min(length, "
        "positives), the mean over users. It says how much a longer shortlist would leave to the second stage."
    )
    table = Table(["list", *(f"{n:,}" for n in at)], rows)
    sections = [Section("Recall against shortlist length", text, [plots["recall"], table])]
    if run.contributions:
        added = Table(*r.added(run.contributions))
        sections.append(Section("What each source adds", r.counted_added(at[-1]), [added], 3))
    return sections


def _gain(run: Run, plots: dict[str, Plot]) -> list[Section]:
    compared, judged = run.metrics["comparisons"], run.metrics.get("shortlist")
    sections = []
    if compared:
        drawn = {metric: gain_plot(compared, metric) for metric in dict.fromkeys(c["metric"] for c in compared)}
        plots["gain"] = next(iter(drawn.values()))
        ranked = "two_stage" in run.metrics["systems"]
        text = (
            "Paired over users: the mean of each user's difference, with its 95 % interval. An interval right of 0 "
            "says that the gain is no accident of who was measured. "
        ) + (r.TESTS if any("p_holm" in c for c in compared) else "")
        heading = "Two-stage gain" if ranked else "Gain of the union"
        sections.append(Section(heading, text, [*drawn.values(), Table(*r.differences(compared))]))
    if judged:
        text = r.counted_orders(judged, "candidates")
        sections.append(Section("Within the shortlist", text, [Table(*r.orders(judged))], 3))
    return sections


def _slices(run: Run) -> list[Section]:
    metric = r.slice_metric(run.slices)
    if not metric:
        return []
    systems = list(dict.fromkeys([next(iter(run.metrics["systems"])), run.system]))
    own = [row for name in systems for row in r.slice_values(run.slices, name)]
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in own:
        parts.setdefault(row["slice"], []).append(row)
    drawn = [slice_plot(name, rows, metric) for name, rows in parts.items() if len({row["part"] for row in rows}) > 1]
    values = {name: {(s["slice"], s["part"]): s for s in r.slice_values(run.slices, name)} for name in systems}
    rows: list[list[Cell]] = [
        [*key, *(r.cell(of[key]) if key in of else "" for of in values.values()), f"{found['users']:,}"]
        for key, found in values[run.system].items()
    ]
    text = (
        f"{metric} of {' and '.join(systems)} among parts of the users, and of what they watched: in a slice of items, "
        "only its items count. Intervals are over the users of a slice; with few users they are wide."
    )
    table = Table(["slice", "part", *systems, "users"], rows)
    return [Section("Slices", text, drawn, grid=True), Section("", items=[table])]


def _calibration(run: Run, plots: dict[str, Plot]) -> list[Section]:
    found = []
    for name, what, file in (
        ("shortlist", "candidates", "calibration"),
        ("impressions", "impressions", "calibration_impressions"),
    ):
        judged = run.metrics.get(name)
        if not judged or "calibration" not in judged:
            continue
        plots[file] = calibration_plot(judged["calibration"], what, judged["weight_from"])
        text = f"Expected and mean actual weight of {what}. {r.weight(judged['weight_from'])}"
        items: list[Plot | Table] = [plots[file], Table(*r.deciles(judged["calibration"], what))]
        if name == "shortlist":
            text += f" {_scale(run, judged)}" if run.positives else ""
        elif judged.get("systems"):
            text += f" {r.counted_orders(judged, what)}"
            items.append(Table(*r.orders(judged)))
        found.append(Section(f"On {what}", text, items, 3))
    if not found:
        return []
    text = "Is what the second stage expects what happens? All rows in ten equal parts, by what was expected."
    return [Section("Calibration", text), *found]


def _scale(run: Run, judged: Mapping[str, Any]) -> str:
    """Why odds may lie above or below what is found: they are those of where the ranker was trained."""
    if judged.get("learned_from_shown"):
        return (
            "The ranker learned what is watched of what is shown. Few of the candidates were shown, and one that was "
            "not counts as not watched: expect less here than the odds say."
        )
    there, here = run.positives["rank_train"], run.positives[run.metrics["split"]]
    return (
        f"The ranker learned on rank_train, where a shortlist holds {there:.1f} positives on average; in "
        f"{run.metrics['split']} it holds {here:.1f}: by so much the odds differ from the outset. Their order does not "
        "depend on it."
    )


def _training(run: Run) -> list[Section]:
    plots = [plot for name, history in run.histories.items() for plot in history_plots(name, history)]
    return [Section("Training", "What each model logged, by epoch.", plots, grid=True)] if plots else []


def _map(run: Run, plots: dict[str, Plot]) -> list[Section]:
    if run.map is None:
        return []
    points, share, source = run.map
    plots["map"] = map_plot(points, share, source)
    genres = " The colour is an item's first genre." if any(point.genre for point in points) else ""
    text = f"Items that the same users watch lie near each other, as far as two dimensions can show it.{genres}"
    return [Section("Item map", text, [plots["map"]])]


def _examples(run: Run) -> list[Section]:
    if not run.examples:
        return []
    text = (
        f"Drawn at random from the users measured; the order is that of {run.system}. Each item has the sources that "
        "proposed it with its rank there"
    )
    reasoned = any(item.similar for example in run.examples for item in example.items)
    text += ", and the watched item most similar to it by the first source's vectors. " if reasoned else ". "
    text += "Bold is what the user did watch next."
    sections = [Section(f"Recommendations for {counted(len(run.examples), 'user')}", text)]
    for example in run.examples:
        seen = f"Watched last: {'; '.join(example.last)}. {counted(example.watched, 'item')} in all."
        rows: list[list[Cell]] = []
        for n, item in enumerate(example.items, 1):
            by = ", ".join(f"{name} {rank}" for name, rank in item.proposed.items())
            row: list[Cell] = [str(n), item.title, by or (None if example.watched else "popularity")]
            rows.append(
                [*row, item.similar, None if item.cosine is None else f"{item.cosine:.2f}"] if reasoned else row
            )
        columns = ["", "recommended", "proposed by", *(["similar to", "cosine"] if reasoned else [])]
        marks = {n: "best" for n, item in enumerate(example.items) if item.target}
        text = seen if example.watched else "No history: the answer is what is popular."
        sections.append(Section(f"User {example.user}", text, [Table(columns, rows, marks=marks)], 3))
    return sections


def _data(run: Run) -> list[Section]:
    source, matrix = run.source, run.statistics["matrix"]
    facts: dict[str, Cell] = {
        "Rows": matrix["rows"],
        "Users": matrix["users"],
        "Items": matrix["items"],
        "Density": f"{matrix['density']:.2%}",
        "Rows a user, median": number(matrix["rows_per_user"]["quantiles"]["0.5"]),
        "Rows an item, median": number(matrix["rows_per_item"]["quantiles"]["0.5"]),
        "From": _day(matrix["first_timestamp"]),
        "To": _day(matrix["last_timestamp"]),
        "Share a time with another row": None if matrix["tied"] is None else f"{matrix['tied']:.0%}",
        "Duplicates dropped": source.get("duplicates_dropped", 0),
    }
    words = {"Licence": "licence", "Citation": "citation", "Source": "homepage"}
    about = " ".join(f"{name}: {str(source[key]).rstrip('.')}." for name, key in words.items() if source.get(key))
    rows: list[list[Cell]] = []
    for table, described in run.statistics["tables"].items():
        for name, column in described["columns"].items():
            ends = [_value(column.get(key), name) for key in ("minimum", "mean", "maximum")]
            rows.append([f"{table}.{name}", column["type"], column["nulls"], column["distinct"], *ends])
    columns = ["column", "type", "missing", "distinct values", "least", "mean", "greatest"]
    sections = [Section("Data", about, [Facts(facts), Table(columns, rows)])]
    if run.anomalies:
        listed = [[a["severity"], f"{a['table']}.{a['column']}", a["rows"], a["message"]] for a in run.anomalies]
        sections.append(Section("Anomalies", "", [Table(["severity", "column", "rows", "what"], listed)], 3))
    return sections


def _split(run: Run) -> list[Section]:
    rows: list[list[Cell]] = [
        [name, count, run.splits["users"].get(name)] for name, count in run.splits.get("rows", {}).items() if count
    ]
    items = [Table(["part", "rows", "users"], rows)] if rows else []
    guarantee, *rest = r.protocol(run.metrics, run.splits)
    return [Section("Split and protocol", guarantee, items), *(Section("", sentence) for sentence in rest)]


def _steps(run: Run) -> list[Section]:
    settings = "\n".join(line for step in run.steps for line in step.lines()).strip()
    rows: list[list[Cell]] = [
        [step.name, step.fingerprint[:16], step.started, f"{step.seconds:.1f} s"] for step in run.steps
    ]
    versions = {name: version for step in run.steps for name, version in step.versions.items()}
    text = (
        "Each step with the fingerprint of everything that it was made from: its code, its settings and its inputs. "
        "Equal fingerprints are equal artifacts."
    )
    return [
        Section("Settings", "All settings by step, the shipped ones included.", [Pre(settings)]),
        Section("Lineage", text, [Table(["step", "fingerprint", "begun", "took"], rows), Facts(versions)]),
    ]


def _day(timestamp: int | None) -> str | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, timezone.utc).strftime("%Y-%m-%d")


def _value(value: Any, column: str) -> Cell:
    if value is None or isinstance(value, str):
        return value if value is None else value[:40]
    if column == "year":
        return f"{value:.0f}"
    return _day(int(value)) if column in ("timestamp", "added") else number(value)
