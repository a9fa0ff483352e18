"""The font and the colours of every page, on a light and on a dark ground."""

from collections.abc import Mapping
from typing import Any

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
# Hues of Okabe and Ito, told apart with any kind of colour vision; lighter where the ground is dark.
LIGHT = {
    "ground": "#f6f7f8",
    "card": "#ffffff",
    "ink": "#16191d",
    "muted": "#59616b",
    "line": "#dfe3e8",
    "edge": "#87919c",
    "faint": "#b3bcc6",
    "category": ["#0069aa", "#c27d00", "#b42318", "#00866a", "#a8568f", "#2a8ec6", "#59616b"],
    "ramp": ["#d3dee9", "#8fb8d9", "#2f83be", "#00497a"],
}
DARK = {
    "ground": "#111418",
    "card": "#191d22",
    "ink": "#e9ecef",
    "muted": "#9ba5b0",
    "line": "#2d333a",
    "edge": "#6b7681",
    "faint": "#5b6570",
    "category": ["#5fb4ee", "#f0b040", "#ff7a6e", "#3cc7a3", "#db92c3", "#9bd3f5", "#9ba5b0"],
    "ramp": ["#364657", "#3a6c97", "#5fb4ee", "#d4ecff"],
}


def variables() -> str:
    """The colours as variables of a style sheet, light or dark by what the reader prefers."""

    def declared(colours: Mapping[str, Any]) -> str:
        hues = colours["category"]
        named = {name: colours[name] for name in ("ground", "card", "ink", "muted", "line", "edge")}
        named |= {"accent": hues[0], "failed": hues[2], **{f"hue{n}": hue for n, hue in enumerate(hues[:6])}}
        return "".join(f"--{name}:{value};" for name, value in named.items())

    return f":root {{ {declared(LIGHT)} }} @media (prefers-color-scheme: dark) {{ :root {{ {declared(DARK)} }} }}"
