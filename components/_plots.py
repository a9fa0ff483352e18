"""The base of every page with plots: one HTML file that needs no network, and the look of its charts and tables.

Past 400 lines because its style sheet and its two scripts stand here, beside what they belong to.
"""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import altair as alt

from shortlist.components._theme import DARK, FONT, LIGHT, variables

Cell: TypeAlias = str | bool | int | float | None
AnyChart: TypeAlias = alt.Chart | alt.LayerChart | alt.HConcatChart | alt.VConcatChart | alt.FacetChart

_NUMBER = re.compile(r"[+\-−±]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?( ?(%|s|min|h))?( \[.*\])?")
_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Plot:
    """A chart with the sentence that stands for it where it cannot be seen, and a line below it.

    Give the chart `width="container"` and a height. It carries no colour and no `configure_…` of its own: those come
    from the theme (`style="muted" | "faint" | "best" | "note" | "halo"`, the scales `category` and `ramp`), which is
    another one on a dark ground. Its data is best a `pyarrow.Table`: lists of rows are checked value by value.
    """

    chart: AnyChart
    label: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a head. A column of nothing but numbers is set right; `marks` names rows "best" or "failed"."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    marks: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """Names with their values, side by side."""

    values: Mapping[str, Cell]


@dataclass(frozen=True)
class Pre:
    """Text as it is, in a fixed width."""

    text: str


@dataclass(frozen=True)
class Section:
    """A heading (level 2 or 3, none if empty), a paragraph, and what follows them.

    With `grid` the plots stand side by side where there is room.
    """

    heading: str
    text: str = ""
    items: Sequence[Plot | Table | Facts | Pre] = ()
    level: int = 2
    grid: bool = False


def number(value: float, digits: int = 4) -> str:
    """A number as it is read: `1,204`, `0.003`, `1.2e-05`."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}g}"


def finite(value: Any) -> Any:
    """The value, or None where it is a float that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def config(colours: Mapping[str, Any] = LIGHT) -> dict[str, Any]:
    """The Vega-Lite configuration of the theme on a light or a dark ground."""
    ink, muted, line, category = colours["ink"], colours["muted"], colours["line"], colours["category"]
    return {
        "font": FONT,
        "background": "transparent",
        "autosize": {"contains": "padding"},
        "padding": 2,
        "view": {"stroke": None, "continuousHeight": 280},
        "axis": {
            "domain": False,
            "ticks": False,
            "gridColor": line,
            "labelColor": muted,
            "labelFontSize": 12,
            "labelPadding": 8,
            "titleColor": muted,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "titlePadding": 10,
        },
        "axisQuantitative": {"tickCount": 5},
        "axisX": {"labelFlush": True},
        "legend": {
            "orient": "top",
            "offset": 12,
            "labelColor": muted,
            "labelFontSize": 12,
            "titleColor": muted,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "titleOrient": "left",
            "symbolBaseFillColor": muted,
            "symbolBaseStrokeColor": muted,
            "gradientLength": 140,
            "gradientThickness": 8,
        },
        "title": {"anchor": "start", "color": ink, "fontSize": 13, "fontWeight": 600, "offset": 10, "limit": 240},
        "range": {
            "category": category,
            "ramp": colours["ramp"],
            "heatmap": colours["ramp"],
            "ordinal": colours["ramp"],
            "diverging": [category[2], colours["line"], category[0]],
        },
        "mark": {"color": category[0]},
        "point": {"filled": True, "size": 64},
        "line": {"strokeWidth": 2},
        "bar": {"cornerRadiusEnd": 3},
        "text": {"color": ink, "fontSize": 12},
        "style": {
            "muted": {"color": muted},
            "faint": {"color": colours["faint"]},
            "best": {"color": ink, "filled": False},
            "note": {"color": muted, "fontSize": 11},
            "halo": {"color": colours["card"], "stroke": colours["card"], "strokeWidth": 4, "fontSize": 11},
        },
    }


@alt.theme.register("shortlist", enable=False)
def _theme() -> alt.theme.ThemeConfig:
    return {"config": config()}  # type: ignore[typeddict-item]


def _spec(chart: AnyChart, theme: str) -> dict[str, Any]:
    with alt.theme.enable(theme), alt.data_transformers.enable("default", max_rows=None):
        return chart.to_dict()


def _vega_lite() -> str:
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def png(chart: AnyChart, path: Path, width: int = 760) -> None:
    """Writes the chart on a white ground, two pixels a point; `width` is for a chart as wide as its container."""
    import vl_convert

    spec = _spec(chart, "shortlist")
    if spec.get("width") == "container":
        spec |= {"width": width, "autosize": {"type": "fit-x", "contains": "padding"}}
    spec["background"] = "#ffffff"
    path.write_bytes(vl_convert.vegalite_to_png(spec, vl_version=_vega_lite(), scale=2))


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_vega_lite())
    return script.replace("</script", "<\\/script")


def _json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever text it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(title: str, sections: Sequence[Section]) -> str:
    """One HTML page that is complete: nothing is fetched, from the network or from beside it.

    While it draws, `data-plots` of the root element is absent; then it is the number of plots drawn. An error of a
    script is shown at the top, and `data-errors` of the root element counts them.
    """
    top = [section for section in sections if section.heading and section.level == 2]
    names = {id(section): f"s{i}" for i, section in enumerate(sections)}
    links = "".join(f'<li><a href="#{names[id(s)]}">{html.escape(s.heading)}</a></li>' for s in top)
    nav = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(top) > 2 else ""
    body = "\n".join(_section(section, names[id(section)]) for section in sections)
    plots = any(isinstance(item, Plot) for section in sections for item in section.items)
    themes = _json({"light": config(LIGHT), "dark": config(DARK)})
    scripts = f'<script>{_bundle()}</script>\n<script type="application/json" id="themes">{themes}</script>'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<style>{_css()}</style>
<script>{_ERRORS}</script>
</head>
<body>
<div id="errors" role="alert" hidden><strong>This page is incomplete: a script failed.</strong></div>
<noscript><div id="no-script">The plots need JavaScript. The tables do not.</div></noscript>
<main>
<h1>{html.escape(title)}</h1>
{nav}
{body}
</main>
{scripts if plots else ""}
<script>{_DRAW if plots else "document.documentElement.dataset.plots = 0;"}</script>
</body>
</html>
"""


def _section(section: Section, name: str) -> str:
    level = section.level
    heading = f'<h{level} id="{name}">{html.escape(section.heading)}</h{level}>' if section.heading else ""
    text = f"<p>{html.escape(section.text)}</p>" if section.text else ""
    items = "\n".join(map(_item, section.items))
    items = f'<div class="grid">{items}</div>' if section.grid and items else items
    return f'<section class="level{level}">{heading}{text}\n{items}</section>'


def _item(item: Plot | Table | Facts | Pre) -> str:
    if isinstance(item, Plot):
        spec = _spec(item.chart, "none") | {"description": item.label}  # which Vega makes the label of what it draws
        caption = f"<figcaption>{html.escape(item.caption)}</figcaption>" if item.caption else ""
        return (
            f'<figure class="card"><div class="plot" role="img" aria-label="{html.escape(item.label)}"></div>'
            f'<script type="application/json">{_json(spec)}</script>{caption}</figure>'
        )
    if isinstance(item, Facts):
        pairs = (
            f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(_text(v))}</dd></div>" for k, v in item.values.items()
        )
        return f'<dl class="card">{"".join(pairs)}</dl>'
    if isinstance(item, Pre):
        return f'<pre class="card" tabindex="0">{html.escape(item.text)}</pre>'
    return _table(item)


def _table(table: Table) -> str:
    texts = [[_text(cell) for cell in row] for row in table.rows]
    right = [
        any(map(_NUMBER.fullmatch, column)) and all(text in ("", "–") or _NUMBER.fullmatch(text) for text in column)
        for column in zip(*texts, strict=True)
    ] or [False] * len(table.columns)

    kinds = ["number" if r else "long" if any(len(row[i]) > 40 for row in texts) else "" for i, r in enumerate(right)]

    def cells(tag: str, row: Sequence[str]) -> str:
        opened = (f'<{tag} class="{kind}">' if kind else f"<{tag}>" for kind in kinds)
        return "".join(f"{start}{html.escape(text)}</{tag}>" for start, text in zip(opened, row, strict=True))

    rows = "\n".join(
        f'<tr class="{html.escape(table.marks.get(i, ""))}">{cells("td", row)}</tr>' for i, row in enumerate(texts)
    )
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    label = html.escape(table.caption or "Table")
    return (
        f'<div class="card scroll" tabindex="0" role="region" aria-label="{label}"><table>{caption}'
        f"<thead><tr>{cells('th', list(table.columns))}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _text(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return cell if isinstance(cell, str) else number(cell)


def _css() -> str:
    return f"{variables()} body {{ font: 1rem/1.55 {FONT} }} {_STYLE}"


_STYLE = """
:root { color-scheme: light dark; --small: .8125rem; --gap: clamp(1rem, 3vw, 1.5rem); }
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--ground); color: var(--ink); }
main { max-width: 70rem; margin: 0 auto; padding: clamp(1.5rem, 5vw, 3.5rem) clamp(1rem, 4vw, 2.5rem) 5rem; }
h1, h2, h3 { line-height: 1.2; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; text-wrap: balance; }
h1 { font-size: clamp(1.625rem, 4.5vw, 2.125rem); font-weight: 700; }
h2 { font-size: 1.375rem; font-weight: 650; }
h3 { font-size: 1.0625rem; font-weight: 650; }
p { margin: .5rem 0 0; max-width: 42rem; color: var(--muted); overflow-wrap: anywhere; text-wrap: pretty; }
nav ul { display: flex; flex-wrap: wrap; gap: .375rem 1.25rem; list-style: none; margin: 1rem 0 0; padding: 0; }
a { color: var(--accent); text-underline-offset: .2em; text-decoration-thickness: 1px; }
a:focus-visible, [tabindex]:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
section { margin-top: 1.5rem; }
section.level2:has(> h2) { margin-top: 3.5rem; }
section.level3 { margin-top: 2.25rem; }
.card { margin: 1rem 0 0; padding: var(--gap); background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; min-width: 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18.5rem), 1fr)); gap: 1rem;
  margin-top: 1rem; }
.grid > .card { margin: 0; padding: 1rem; }
.plot.vega-embed { display: block; width: 100%; overflow: hidden; }
.plot:empty { min-height: 12rem; }
figcaption { margin-top: .75rem; font-size: var(--small); color: var(--muted); max-width: 42rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 11.5rem), 1fr)); gap: 1rem var(--gap); }
dt { font-size: var(--small); color: var(--muted); }
dd { margin: .125rem 0 0; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
pre, .scroll { overflow: auto; max-height: min(36rem, 80vh); }
pre { font: var(--small)/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.scroll { padding: 0; width: fit-content; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .75rem 1.25rem 0; color: var(--muted); font-size: var(--small); }
th, td { padding: .5rem 1.25rem; text-align: left; vertical-align: top; white-space: nowrap; }
th { position: sticky; top: 0; z-index: 1; background: var(--card); color: var(--muted); font-weight: 500;
  font-size: var(--small); border-bottom: 1px solid var(--line); }
td { border-top: 1px solid var(--line); }
tbody tr:first-child td { border-top: 0; }
td.long { white-space: normal; min-width: 20rem; }
.number { text-align: right; }
tr.best td { font-weight: 650; background: color-mix(in srgb, var(--accent) 9%, var(--card)); }
tr.failed td { color: var(--muted); }
#errors, #no-script { margin: 0; padding: .875rem clamp(1rem, 4vw, 2.5rem); background: var(--card);
  border-bottom: 3px solid var(--failed); overflow-wrap: anywhere; }
#errors div { font-size: var(--small); margin-top: .25rem; }
#vg-tooltip-element.vg-tooltip { max-width: min(24rem, 90vw); padding: .625rem .75rem; border: 1px solid var(--line);
  border-radius: 8px; background: var(--card); color: var(--ink); font: var(--small)/1.4 inherit; font-family: inherit;
  box-shadow: 0 6px 24px rgb(0 0 0 / .16); }
#vg-tooltip-element.vg-tooltip td { border: 0; padding: .0625rem .25rem; white-space: normal; max-width: 14rem;
  overflow: visible; overflow-wrap: anywhere; text-align: left; }
#vg-tooltip-element.vg-tooltip td.key { color: var(--muted); text-align: left;
  max-width: 12rem; min-width: 5rem; }
@media (max-width: 40rem) { th, td { padding: .5rem .75rem; } caption { padding: .75rem .75rem 0; }
  td.long { min-width: 11rem; }
  dl { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); } }
@media print { .scroll, pre { max-height: none; overflow: visible; } .card { break-inside: avoid; } }
"""

_ERRORS = """
(() => {
  const root = document.documentElement, waiting = [];
  window.pageError = (text) => {
    root.dataset.errors = Number(root.dataset.errors || 0) + 1;
    waiting.push(text);
    const box = document.getElementById("errors");
    if (!box) return;
    for (const line of waiting.splice(0)) box.appendChild(document.createElement("div")).textContent = line;
    box.hidden = false;
  };
  window.addEventListener("error", (event) => window.pageError(event.message || "a part could not be loaded"), true);
  window.addEventListener("unhandledrejection", (event) => window.pageError(String(event.reason)));
})();
"""

_DRAW = """
(() => {
  const root = document.documentElement, dark = window.matchMedia("(prefers-color-scheme: dark)");
  const themes = JSON.parse(document.getElementById("themes").textContent);
  let drawn = [], queue = Promise.resolve();
  const draw = async () => {
    delete root.dataset.plots;
    drawn.splice(0).forEach((plot) => plot.finalize());
    for (const place of document.querySelectorAll(".plot")) {
      const spec = JSON.parse(place.nextElementSibling.textContent);
      const options = { actions: false, renderer: "svg", config: dark.matches ? themes.dark : themes.light };
      try {
        drawn.push(await vegaEmbed(place, spec, options));
      } catch (error) {
        place.textContent = "This plot could not be drawn.";
        window.pageError(`${place.getAttribute("aria-label")}: ${error.message}`);
      }
    }
    root.dataset.plots = drawn.length;
  };
  const redraw = () => { queue = queue.then(draw); };
  dark.addEventListener("change", redraw);
  redraw();
})();
"""
