"""The plots of the trials of a sweep."""

import json
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import altair as alt
import numpy as np
import pyarrow as pa

from shortlist.components._plots import AnyChart, Plot, finite, number
from shortlist.components._tables import counted
from shortlist.components._trials import REPEATS, TrialRecord, kind_of

Row: TypeAlias = dict[str, Any]

STATUSES = ("completed", "early-stopped", "failed")
LOG_DECADES = 1.5
OFF = -0.22  # where an inactive setting stands, left of its scale from 0 to 1
TOOLTIP_SETTINGS = 12
TOP = 10  # trials, whose lines stay in front
MANY = 40  # trials, from which the lines behind grow fainter
FEW = 6  # values of a number that are marked each


class Stage:
    """The plots of the trials of one stage, at least one of them with an objective.

    The names of settings never become names of fields, so that no character of theirs can mean anything to Vega.
    """

    def __init__(self, records: Sequence[TrialRecord], best: TrialRecord, objective: str) -> None:
        self.records, self.best, self.objective = records, best, objective
        self.stage = f"{best.stage}: " if best.stage else ""  # what its plots are called by
        self.scored = [r for r in records if r.score is not None]
        scores = [r.score or 0.0 for r in self.scored]
        pad = (max(scores) - min(scores)) * 0.06 or abs(scores[0]) * 0.05 or 1.0
        self.domain = (min(scores) - pad, max(scores) + pad)
        self.settings = list(dict.fromkeys(name for r in records for name in r.settings))
        self.varied = [n for n in self.settings if len({r.settings.get(n) for r in self.scored}) > 1]
        self.rungs = any(r.parent for r in records)
        self.about = self.varied[:TOOLTIP_SETTINGS]

    def row(self, n: int, record: TrialRecord, **more: Any) -> Row:
        settings = {f"s{i}": shown_text(record.settings.get(name)) for i, name in enumerate(self.about)}
        shared = {
            "n": n,
            "ran": shown_text(record.epochs),
            "time": duration_text(record.seconds),
            "message": record.message or "–",
        }
        return self.short(record) | shared | settings | more

    def short(self, record: TrialRecord) -> Row:
        about = {"trial": record.trial, "status": record.status, "y": record.score, "epochs": record.epochs}
        return about | {"best": record is self.best}

    def tooltip(self, scored: bool = True) -> list[alt.Tooltip]:
        shown = [alt.Tooltip("trial:N"), alt.Tooltip("status:N")]
        shown += [alt.Tooltip("y:Q", title=_key(self.objective), format=".4f")] if scored else []
        shown += [alt.Tooltip("ran:N", title="epochs")] if any(r.epochs for r in self.records) else []
        shown += [alt.Tooltip(f"s{i}:N", title=_key(name)) for i, name in enumerate(self.about)]
        shown += [alt.Tooltip("message:N")] if any(r.message for r in self.records) else []
        return [*shown, alt.Tooltip("time:N")]

    def y(self, title: bool = True) -> alt.Y:
        name = self.objective if title else None
        return alt.Y("y:Q", title=name, scale=alt.Scale(domain=self.domain, nice=False, zero=False))

    def points(self, base: alt.Chart, setting: str = "") -> list[alt.Chart]:
        """The points of the trials that have an objective, and a ring around the best."""
        key = None if setting else alt.Legend(title=None)
        value = [alt.Tooltip("x", title=_key(setting))]
        domain = list(STATUSES)
        marks = base.mark_point(opacity=0.85, size=64 if len(self.scored) <= 3 * MANY else 28).encode(
            y=self.y(not setting),
            color=alt.Color("status:N", scale=alt.Scale(domain=domain), legend=key),
            shape=alt.Shape(
                "status:N", scale=alt.Scale(domain=domain, range=["circle", "diamond", "cross"]), legend=key
            ),
            tooltip=self.tooltip()[:3] + value if setting else self.tooltip(),
        )
        if self.rungs:
            marks = marks.encode(size=alt.Size("epochs:Q", scale=alt.Scale(range=[24, 160]), legend=None))
        ring = base.transform_filter("datum.best").mark_point(style="best", size=220).encode(y=self.y(not setting))
        return [ring, marks.transform_filter("isValid(datum.y)")]

    def lost(self, base: alt.Chart) -> list[alt.Chart]:
        """The trials without an objective, along the bottom."""
        if len(self.scored) == len(self.records):
            return []
        shape = alt.Scale(domain=list(STATUSES), range=["circle", "diamond", "cross"])
        marks = base.transform_filter("!isValid(datum.y)").mark_point(opacity=0.85)
        color, form = alt.Color("status:N", scale=alt.Scale(domain=list(STATUSES))), alt.Shape("status:N", scale=shape)
        return [marks.encode(y=alt.value({"expr": "height - 7"}), color=color, shape=form, tooltip=self.tooltip(False))]

    def over_trials(self) -> tuple[str, str, Plot]:
        rows, best = [], -math.inf
        for n, record in enumerate(self.records, 1):
            best = max(best, -math.inf if record.score is None else record.score)
            rows.append(self.row(n, record, so_far=finite(best)))
        axis = alt.Axis(format="d", tickMinStep=1, grid=False)
        base = alt.Chart(_data(rows)).encode(
            x=alt.X("n:Q", title="trial, in order", axis=axis, scale=_padded(rows, "n"))
        )
        steps = base.transform_filter("isValid(datum.so_far)").mark_line(style="faint", interpolate="step-after")
        layers = [steps.encode(y=alt.Y("so_far:Q")), *self.points(base), *self.lost(base)]
        lost = len(rows) - len(self.scored)
        caption = "The line is the best so far, the ring the best of all."
        caption += " The larger a point, the more epochs." if self.rungs else ""
        caption += f" {counted(lost, 'trial')} without an objective along the bottom." if lost else ""
        label = f"{self.objective} of {counted(len(rows), 'trial')} in order, with the best so far."
        return "Over trials", "", Plot(_layered(layers), f"{self.stage}{label}", caption)

    def over_time(self) -> tuple[str, str, Plot]:
        start = min(r.started for r in self.records)
        span = max(r.ended for r in self.records) - start
        unit, size = next(((u, s) for u, s in (("hours", 3600), ("minutes", 60)) if span > 2 * s), ("seconds", 1))
        rows, best = [], -math.inf
        for n, record in sorted(enumerate(self.records, 1), key=lambda pair: pair[1].ended):
            best = max(best, -math.inf if record.score is None else record.score)
            times = {"from": (record.started - start) / size, "x": (record.ended - start) / size}
            rows.append(self.row(n, record, so_far=finite(best), **times))
        axis = alt.Axis(grid=False)
        base = alt.Chart(_data(rows)).encode(x=alt.X("x:Q", title=unit, axis=axis, scale=alt.Scale(nice=False)))
        spans = base.transform_filter("isValid(datum.y)").mark_rule(style="faint", strokeWidth=1.5)
        steps = base.transform_filter("isValid(datum.so_far)").mark_line(style="faint", interpolate="step-after")
        layers = [
            spans.encode(x=alt.X("from:Q"), x2="x:Q", y=self.y()),
            steps.encode(y=alt.Y("so_far:Q")),
            *self.points(base),
            *self.lost(base),
        ]
        caption = "A trial is a line from its start to its end, where its point stands. The steps are the best so far."
        label = f"{self.objective} of {counted(len(rows), 'trial')} over {unit} of wall time, with the best so far."
        return "Over time", "", Plot(_layered(layers), f"{self.stage}{label}", caption)

    def parallel(self) -> Plot:
        scales = {self.objective: Scale([r.score for r in self.scored], self.objective)}
        scales |= {f"{n} ": Scale([r.settings.get(n) for r in self.scored]) for n in self.varied}  # may be its name too
        inactive = any(scale.inactive for scale in scales.values())
        ordered = sorted(self.scored, key=lambda r: r.score or 0.0)  # the best are drawn last
        rows = []
        for rank, record in enumerate(ordered):
            values = [record.score, *(record.settings.get(n) for n in self.varied)]
            for i, (axis, value) in enumerate(zip(scales, values, strict=True)):
                shown = score_text(record) if i == 0 else shown_text(value)
                place = {"i": i, "axis": axis, "x": scales[axis].place(value), "value": shown}
                about = {"trial": record.trial, "rank": rank, "y": record.score, "best": record is self.best}
                rows.append(about | {"top": rank >= len(ordered) - TOP} | place)
        names, low = list(scales), -0.24 if inactive else -0.02
        labels = [{"axis": axis} | label for axis, scale in scales.items() for label in scale.labels()]
        x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[low, 1.02], nice=False))
        y = alt.Y("axis:N", sort=names, axis=alt.Axis(grid=True, labels=False, labelPadding=0, title=None))
        hover = alt.selection_point(on="pointerover", clear="pointerout", fields=["trial"], empty=False, name="hover")
        scores = [r.score or 0.0 for r in ordered]
        floor, peak = float(np.quantile(scores, 0.25)), scores[-1]
        ramp = alt.Scale(domain=[floor, peak] if floor != peak else [peak - 1, peak], clamp=True)
        tooltip = [alt.Tooltip("trial:N"), alt.Tooltip("y:Q", title=_key(self.objective), format=".4f")]
        base = alt.Chart(_data(rows)).encode(
            x=x,
            y=y,
            color=alt.Color("y:Q", title=self.objective, scale=ramp, legend=alt.Legend(format=".3~f", tickCount=3)),
            detail="rank:O",
            order="i:O",
        )
        behind = base.transform_filter("!datum.top").mark_line(
            strokeWidth=1.5, opacity=max(0.1, min(1, MANY / len(ordered)))
        )
        before = base.transform_filter("datum.top").mark_line(strokeWidth=1.5)
        bold = base.transform_filter("datum.best").mark_line(strokeWidth=3.5, strokeJoin="round")
        followed = base.transform_filter(hover).mark_line(strokeWidth=4.5, strokeJoin="round")
        of_value = [*tooltip, alt.Tooltip("axis:N", title="setting"), alt.Tooltip("value:N")]
        dots = base.mark_point(size=44, opacity=1).encode(tooltip=of_value).add_params(hover)
        notes = alt.Chart(_data(labels)).encode(x=x, y=y, text="text:N")
        names_of = alt.Chart(_data([{"axis": n, "x": low + 0.02} for n in names])).encode(x=x, y=y, text="axis:N")
        texts = [
            layer
            for style in ("halo", "note")
            for layer in (
                names_of.mark_text(style=style, align="left", dy=-13, fontSize=12, fontWeight=600),
                *(
                    notes.transform_filter(f"datum.align == '{align}'").mark_text(
                        style=style, align=align, dy=14, limit=alt.ExprRef("width * datum.room")
                    )
                    for align in ("left", "center", "right")
                ),
            )
        ]
        chart = alt.layer(
            behind.encode(tooltip=tooltip), before.encode(tooltip=tooltip), bold, followed, dots, *texts
        ).properties(width="container", height=54 * len(scales))
        return Plot(
            chart,
            f"{self.stage}Parallel coordinates of {len(self.varied)} settings and {self.objective}, one line a trial.",
        )

    def setting(self, name: str) -> Plot:
        values = [r.settings.get(name) for r in self.scored]
        scale = Scale(values)
        rows = []
        for n, (record, value) in enumerate(zip(self.scored, values, strict=True)):
            shown = shown_text(value) if scale.order else finite(value)
            rows.append(self.short(record) | {"x": shown, "aside": n * 0.618 % 1})
        base = alt.Chart(_data([row for row in rows if row["x"] is not None]), title=name)
        if scale.order:
            angle = -40 if sum(map(len, scale.order)) > 24 else 0
            axis = alt.Axis(
                labelAngle=angle, labelLimit=90, labelOverlap=not angle, grid=False, title=None, labelFlush=False
            )
            base = base.encode(
                x=alt.X("x:N", sort=scale.order, axis=axis, scale=alt.Scale(padding=0.2)),
                xOffset=alt.XOffset("aside:Q", scale=alt.Scale(domain=[-0.5, 1.5])),
            )
        else:
            ticks = scale.ticks()
            axis = alt.Axis(values=ticks) if ticks else alt.Axis(tickCount=4, tickMinStep=scale.step)
            axis.format, axis.grid, axis.title, axis.labelOverlap = ".6~g", False, None, True
            base = base.encode(x=alt.X("x:Q", axis=axis, scale=scale.vega()))
        chart = alt.layer(*self.points(base, name)).properties(width="container", height=170)
        off = sum(v is None for v in values)
        caption = f"Inactive in {counted(off, 'trial')}." if off and not scale.order else ""
        return Plot(
            chart, f"{self.stage}{self.objective} against {name}, {counted(len(rows) - off, 'trial')}.", caption
        )


class Scale:
    """Where the values of a setting stand between 0 and 1: by size, by its logarithm, or one beside the other."""

    def __init__(self, values: Sequence[Any], objective: str = "") -> None:
        known = [v for v in values if finite(v) is not None]
        self.objective, self.inactive = objective, len(known) < len(values)
        self.numbers = sorted(float(v) for v in known) if all(kind_of(v) in (int, float) for v in known) else []
        self.order = [] if self.numbers else sorted(set(map(shown_text, known)), key=_natural)
        if self.order and self.inactive:
            self.order.append(shown_text(None))
        self.step = 1 if all(kind_of(v) is int for v in known) else 0
        positive = [v for v in self.numbers if v > 0]
        wide = bool(positive) and math.log10(positive[-1] / positive[0]) > LOG_DECADES and not objective
        self.kind = "linear" if not wide or self.numbers[0] < 0 else "log" if self.numbers[0] > 0 else "symlog"
        self.least = positive[0] if positive else 1.0

    def _bent(self, value: float) -> float:
        if self.kind == "log":
            return math.log(value)
        return math.log1p(value / self.least) if self.kind == "symlog" else value

    def place(self, value: Any) -> float | None:
        if value is None and not self.order:
            return OFF
        if self.order:
            return self.order.index(shown_text(value)) / max(len(self.order) - 1, 1)
        low, high = self._bent(self.numbers[0]), self._bent(self.numbers[-1])
        return 0.5 if low == high else (self._bent(float(value)) - low) / (high - low)

    def labels(self) -> list[Row]:
        """The texts under the scale: its ends, or all of its values where they are few enough."""
        if not self.order:
            ends = self.numbers[:1] + self.numbers[-1:] * (self.numbers[0] != self.numbers[-1])
            texts = [f"{v:.4f}" if self.objective else shown_text(int(v) if self.step else v) for v in ends]
            places = [0.0, 1.0][: len(ends)] if len(ends) > 1 else [0.5]
            off = [{"x": OFF, "text": "inactive", "align": "left", "room": 0.17}] if self.inactive else []
        else:
            texts, off = self.order, []
            places = [i / max(len(texts) - 1, 1) for i in range(len(texts))]
        apart = 0.75 / max(len(texts) - 1, 1)
        aligned = ["left" if x == 0 else "right" if x == 1 else "center" for x in places]
        rows = zip(places, texts, aligned, strict=True)
        return off + [
            {"x": x, "text": text, "align": align, "room": apart * (0.9 if align == "center" else 0.5)}
            for x, text, align in rows
        ]

    def vega(self) -> alt.Scale:
        if self.kind == "symlog":
            return alt.Scale(type="symlog", constant=self.least, nice=False)
        if self.kind == "log":
            ratio = (self.numbers[-1] / self.numbers[0]) ** 0.04
            return alt.Scale(type="log", domain=[self.numbers[0] / ratio, self.numbers[-1] * ratio], nice=False)
        pad = (self.numbers[-1] - self.numbers[0]) * 0.04
        return alt.Scale(domain=[self.numbers[0] - pad, self.numbers[-1] + pad], nice=False, zero=False)

    def ticks(self) -> list[float]:
        """Where the scale is marked: at its values if they are few, else at powers of ten if it is logarithmic."""
        values = sorted(set(self.numbers))
        if len(values) <= FEW or self.kind == "linear":
            return values if len(values) <= FEW else []
        low, high = math.floor(math.log10(self.least)), math.floor(math.log10(self.numbers[-1]))
        powers = [10.0**k for k in range(low, high + 1)]
        marks = powers if high - low > 2 else [m * p for p in powers for m in (1, 3)]
        zero = [0.0] if self.kind == "symlog" else []
        return zero + [float(f"{m:.1g}") for m in marks if self.least * 0.9 <= m <= self.numbers[-1] * 1.1]


def importance_plot(found: Sequence[tuple[str, float, float]], stage: str = "") -> Plot:
    rows = [{"name": n, "mean": m, "std": s, "low": m - s, "high": m + s} for n, m, s in found]
    tooltip = [
        alt.Tooltip("name:N", title="setting"),
        alt.Tooltip("mean:Q", format=".3f"),
        alt.Tooltip("std:Q", format=".3f"),
    ]
    axis = alt.Axis(labelLimit=150, grid=False, title=None)
    y = alt.Y("name:N", sort=[n for n, _, _ in found], axis=axis)
    base = alt.Chart(_data(rows)).encode(y=y, tooltip=tooltip)
    bars = base.mark_bar(height=12).encode(
        x=alt.X("mean:Q", title="loss of R² when shuffled", scale=alt.Scale(nice=False))
    )
    spread = base.mark_rule(style="muted", strokeWidth=1.5).encode(x="low:Q", x2="high:Q")
    chart = alt.layer(bars, spread).properties(width="container", height=28 * len(rows))
    caption = f"Bars are means over {REPEATS} shufflings, lines one standard deviation to either side."
    return Plot(chart, f"{stage}Importance of settings, first {found[0][0]}.", caption)


def _layered(layers: Sequence[alt.Chart]) -> AnyChart:
    return alt.layer(*layers).properties(width="container", height=300)


def _data(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows))


def _padded(rows: Sequence[Row], name: str) -> alt.Scale:
    low, high = min(row[name] for row in rows), max(row[name] for row in rows)
    return alt.Scale(domain=[low - 0.5, high + 0.5], nice=False, zero=False)


def _key(name: str) -> str:
    """A name as the key in a tooltip, which Vega-Lite makes a string of an expression: it escapes quotes only."""
    return " ".join(name.split()).replace("\\", "\\\\")


def _natural(text: str) -> tuple[Any, ...]:
    """Lists of numbers by their length and numbers, other text by itself."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return (1, text)
    numbers = isinstance(parsed, list) and all(isinstance(v, int | float) for v in parsed)
    return (0, len(parsed), parsed) if numbers else (1, text)


def score_text(record: TrialRecord) -> str | None:
    return None if record.score is None else f"{record.score:.4f}"


def shown_text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else number(value)


def duration_text(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
