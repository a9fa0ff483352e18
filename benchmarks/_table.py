"""What the benchmarks that compare by user do alike: their table, and the JSON file of its rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KEYS = ("case", "ours", "peer", "ratio", "bar", "ok")  # of a row in the JSON file


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text(json.dumps([{key: row[key] for key in KEYS} for row in rows], indent=2))


def print_table(rows: Sequence[dict[str, Any]], further: Sequence[str]) -> None:
    """The rows in columns, `further` being the names of those that follow `KEYS`."""
    table = [[*KEYS, *further]]
    for row in rows:
        cells = {k: f"{v:.4f}" if isinstance(v, float) else "" if v is None else str(v) for k, v in row.items()}
        table.append([*{**cells, "ok": "yes" if row["ok"] else "NO"}.values()])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
