"""The plots of a run's report. Names of systems, genres and columns are values in them, never names of fields."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pyarrow as pa

from shortlist.components._plots import AnyChart, Plot, finite
from shortlist.components._report_data import Point
from shortlist.components._tables import counted

COLOURS = 7
"""What can be told apart."""
OTHER = "other"
_COLUMNS = alt.ExprRef("width < 480 ? 3 : 7")
_LEGEND: dict[str, Any] = {
    "title": None,
    "labelLimit": 96,
    "columnPadding": 12,
    "columns": _COLUMNS,
    "symbolOpacity": 1,
}
_LABELS: dict[str, Any] = {"grid": False, "title": None, "labelLimit": 130}
WEIGHTS = {"watch_time": "mean watch time, seconds", "rating": "mean rating, 0 if not watched"}


def headline_plot(metrics: Mapping[str, Any], metric: str) -> Plot:
    """One metric of every system, with its interval."""
    rows = [{"name": s, **own[metric]} for s, own in metrics["systems"].items() if metric in own]
    title = metric.partition("@")[0].upper() + "@" + metric.partition("@")[2]
    caption = "Points are means over users, lines their 95 % intervals."
    return Plot(interval_chart(rows, title), f"{title} of {counted(len(rows), 'system')} with intervals.", caption)


def gain_plot(comparisons: Sequence[Mapping[str, Any]], metric: str) -> Plot:
    """Paired differences in one metric, a colour a split."""
    shown = [c for c in comparisons if c["metric"] == metric]
    system = shown[0]["system"]
    rows = [
        {"name": c["against"], "group": c["split"], "value": c["difference"]}
        | {n: c[n] for n in ("low", "high", "users")}
        for c in shown
        if c["system"] == system
    ]
    caption = f"Right of the line {system} is better than the system named, by so much. Lines are 95 % intervals."
    title = f"difference in {metric}"
    return Plot(
        interval_chart(rows, title, zero=True), f"Paired differences of {system} in {metric}, with intervals.", caption
    )


def slice_plot(name: str, rows: Sequence[Mapping[str, Any]], metric: str) -> Plot:
    """A metric in the parts of one slice, a colour a system."""
    shown = [
        {"name": r["part"], "group": r["system"], **{n: r[n] for n in ("value", "low", "high", "users")}} for r in rows
    ]
    return Plot(interval_chart(shown, metric, heading=name), f"{metric} by {name}, with intervals.")


def recall_plot(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Plot:
    """Recall against the length of the list, a line a system."""
    rows: list[dict[str, Any]] = [{"system": name, **point} for name, points in curves.items() for point in points]
    ticks: list[float] = []
    for length in sorted({row["length"] for row in rows}, reverse=True):
        if not ticks or length <= ticks[-1] / 2:  # closer ones would overlap
            ticks.append(length)
    axis = alt.Axis(values=ticks[::-1], tickCount=len(ticks), grid=False, format=",d", labelFlush=False)
    x = alt.X("length:Q", title="length of the list", axis=axis, scale=alt.Scale(type="log", nice=False, padding=12))
    base = alt.Chart(_data(rows)).encode(
        x=x,
        y=alt.Y("value:Q", title="recall", scale=alt.Scale(zero=True)),
        color=alt.Color("system:N", scale=alt.Scale(domain=list(curves)), legend=alt.Legend(**_LEGEND)),
        tooltip=[alt.Tooltip("system:N"), alt.Tooltip("length:Q", format=",d"), *_figures()],
    )
    chart = alt.layer(base.mark_line(), base.mark_point(size=40)).properties(width="container", height=320)
    caption = "A logarithmic scale of lengths."
    caption += " The union is the shortlist, in the order of the fusion." if "union" in curves else ""
    return Plot(chart, f"Recall of {counted(len(curves), 'list')} against their length.", caption)


def calibration_plot(calibration: Mapping[str, Sequence[Any]], what: str, weight_from: str) -> Plot:
    """Expected and actual value by decile of what is expected."""
    rows = [
        {"decile": bucket + 1, "series": series, "value": value, "rows": n}
        for series in ("expected", "actual")
        for bucket, value, n in zip(calibration["bucket"], calibration[series], calibration["rows"], strict=True)
    ]
    deciles = sorted({row["decile"] for row in rows})
    axis = alt.Axis(format="d", values=deciles, tickCount=len(deciles), grid=False, labelFlush=False)
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("decile:Q", title="decile of the prediction", axis=axis, scale=alt.Scale(nice=False, padding=12)),
        y=alt.Y("value:Q", title=WEIGHTS.get(weight_from, "share watched"), scale=alt.Scale(zero=True)),
        color=alt.Color("series:N", scale=alt.Scale(domain=["expected", "actual"]), legend=alt.Legend(**_LEGEND)),
        tooltip=[
            alt.Tooltip("series:N"),
            alt.Tooltip("decile:Q", format="d"),
            alt.Tooltip("value:Q", format=".4~g"),
            alt.Tooltip("rows:Q", title=what, format=",d"),
        ],
    )
    chart = alt.layer(base.mark_line(), base.mark_point(size=48)).properties(width="container", height=280)
    return Plot(chart, f"Expected against actual value of {what}, by decile of the prediction.")


def history_plots(name: str, history: Mapping[str, Sequence[float]]) -> list[Plot]:
    """What a model's training logged by epoch: one plot a metric, its value on validation beside it.

    What is 0 throughout, or the same as a metric before it, is left out.
    """
    measured: dict[str, list[dict[str, Any]]] = {}
    logged: dict[tuple[float, ...], str] = {}
    for key, values in history.items():
        if not any(values) or logged.setdefault(tuple(values), key) != key:
            continue
        metric, split = key.removeprefix("val_"), "validation" if key.startswith("val_") else "training"
        points = [{"epoch": n, "split": split, "value": finite(float(v))} for n, v in enumerate(values, 1)]
        measured.setdefault(metric, []).extend(p for p in points if p["value"] is not None)
    plots = []
    for metric, rows in measured.items():
        if not rows:
            continue
        splits = list(dict.fromkeys(row["split"] for row in rows))
        axis = alt.Axis(format="d", tickMinStep=1, tickCount=6, grid=False, labelFlush=False)
        base = alt.Chart(_data(rows), title=f"{name}: {metric}").encode(
            x=alt.X("epoch:Q", axis=axis, scale=alt.Scale(nice=False, padding=10)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
            color=alt.Color(
                "split:N",
                scale=alt.Scale(domain=["training", "validation"]),
                legend=alt.Legend(**_LEGEND) if len(splits) > 1 else None,
            ),
            tooltip=[alt.Tooltip("split:N"), alt.Tooltip("epoch:Q"), alt.Tooltip("value:Q", format=".5~g")],
        )
        chart = alt.layer(base.mark_line(), base.mark_point(size=30)).properties(width="container", height=160)
        plots.append(Plot(chart, f"{metric} of {name} over {counted(max(r['epoch'] for r in rows), 'epoch')}."))
    return plots


def map_plot(points: Sequence[Point], share: tuple[float, float], source: str) -> Plot:
    """The items where their vectors lie, coloured by their first genre if they have any."""
    many: dict[str, int] = {}
    for point in points:
        if point.genre:
            many[point.genre] = many.get(point.genre, 0) + 1
    names = sorted(many, key=lambda genre: (-many[genre], genre))
    fits = len(names) <= COLOURS and sum(many.values()) == len(points)
    kept = names if fits else names[: COLOURS - 1]
    domain = kept if fits else [*kept, OTHER]
    rows = [
        {
            "x": p.x,
            "y": p.y,
            "title": p.title,
            "genres": p.genres or "–",
            "watches": p.watches,
            "group": p.genre if p.genre in kept else OTHER,
        }
        for p in points
    ]
    axis, scale = alt.Axis(labels=False, grid=True, tickCount=6), alt.Scale(nice=False, padding=8)
    x, y = (
        alt.X("x:Q", title=f"first component, {share[0]:.0%} of the variance", axis=axis, scale=scale),
        alt.Y("y:Q", title=f"second component, {share[1]:.0%}", axis=axis, scale=scale),
    )
    chart = alt.Chart(_data(rows), width="container", height=460).mark_point(size=26, opacity=0.75)
    chart = chart.encode(
        x=x,
        y=y,
        tooltip=[alt.Tooltip("title:N"), alt.Tooltip("genres:N"), alt.Tooltip("watches:Q", format=",d")],
    )
    if many:
        colour = alt.Color("group:N", scale=alt.Scale(domain=domain), legend=alt.Legend(**_LEGEND))
        chart = chart.encode(color=colour)
    caption = f"{counted(len(points), 'item')} by the vectors of {source}; point at one to see its title."
    return Plot(chart, f"Map of the {counted(len(points), 'most watched item')} by the vectors of {source}.", caption)


def interval_chart(rows: Sequence[Mapping[str, Any]], title: str, heading: str = "", zero: bool = False) -> AnyChart:
    """Names with a point and a line from low to high; a colour and a line of its own for each group."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    groups = list(dict.fromkeys(row["group"] for row in rows if "group" in row))
    shown = [{"group": "", "low": None, "high": None, "users": None, **row} for row in rows]
    base = alt.Chart(_data(shown)) if not heading else alt.Chart(_data(shown), title=heading)
    tooltip = [alt.Tooltip("name:N"), *([alt.Tooltip("group:N")] if groups else []), *_figures(users=True)]
    base = base.encode(y=alt.Y("name:N", sort=names, axis=alt.Axis(**_LABELS)), tooltip=tooltip)
    if len(groups) > 1:
        base = base.encode(
            yOffset=alt.YOffset("group:N", sort=groups, scale=alt.Scale(paddingOuter=0.6)),
            color=alt.Color("group:N", scale=alt.Scale(domain=groups), legend=alt.Legend(**_LEGEND)),
        )
    axis = alt.Axis(format=".3~f", tickCount=4, labelOverlap=True, labelFlush=False)
    scale = alt.Scale(zero=True, nice=True)
    lines = base.mark_rule(style="muted", strokeWidth=2, opacity=0.55).encode(
        x=alt.X("low:Q", title=title, axis=axis, scale=scale)
    )
    layers: list[alt.Chart] = [lines.encode(x2="high:Q"), base.mark_point(size=56, opacity=1).encode(x="value:Q")]
    if zero:
        layers.insert(0, alt.Chart(_data([{"zero": 0.0}])).mark_rule(style="muted").encode(x="zero:Q"))
    return alt.layer(*layers).properties(width="container", height=len(names) * (20 + 10 * max(len(groups), 1)))


def _figures(users: bool = False) -> list[alt.Tooltip]:
    names = [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("value", "low", "high")]
    return [*names, alt.Tooltip("users:Q", format=",d")] if users else names


def _data(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(map(dict, rows)))
