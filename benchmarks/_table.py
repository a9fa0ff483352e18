"""What the benchmarks do alike: their arguments, their table, the JSON file of its rows, and memory."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shortlist import ShortlistError

KEYS = ("case", "ours", "peer", "ratio", "bar", "ok")  # of a row in the JSON file


def plain_parser(text: str | None, quick: Mapping[str, Any]) -> argparse.ArgumentParser:
    """The arguments of every benchmark."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"a small task, within a minute: {quick}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of the table there")
    return parser


def parser_of(text: str | None, quick: Mapping[str, Any], data: Sequence[str], workdir: str) -> argparse.ArgumentParser:
    """The arguments of a benchmark that compares by user, on sources of data."""
    parser = plain_parser(text, quick)
    parser.add_argument("--data", nargs="+", default=list(data), metavar="SOURCE", help=f"({' '.join(data)})")
    parser.add_argument("--archive-dir", type=Path, metavar="DIR", help="holds the official archive of a tfds: set")
    parser.add_argument("--workdir", type=Path, default=Path(workdir), help=f"({workdir})")
    return parser


def add_numbers(parser: argparse.ArgumentParser, *numbers: tuple[str, int, str]) -> None:
    """Whole numbers: the name, the default, and what it is."""
    for name, value, text in numbers:
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} ({value:,})")


def parsed(parser: argparse.ArgumentParser, argv: list[str], quick: Mapping[str, Any]) -> argparse.Namespace:
    """The arguments; with --quick, those of the small task where nothing else is given."""
    a = parser.parse_args(argv)
    if a.quick:
        vars(a).update({key: value for key, value in quick.items() if getattr(a, key) == parser.get_default(key)})
    return a


def memory_of(program: str, argv: Sequence[str], name: str) -> int:
    """What the benchmark prints with `--memory NAME`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, program, *argv, "--memory", name], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"The memory of {name} could not be measured:\n{done.stderr}")
    return int(done.stdout)


def start_peak() -> None:
    """Lets `peak` count anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak(process: Path = Path("/proc/self")) -> float:
    """GB that a process held at most."""
    (line,) = (x for x in (process / "status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


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


def ended(rows: Sequence[dict[str, Any]], text: str, further: Sequence[str] = (), file: Path | None = None) -> int:
    """Prints the rows, `text` above them, and writes them to `file`, if there is one; the exit code."""
    if file:
        write_rows(file, rows)
    print(f"\n{text}\n")
    print_table(rows, further)
    return 0 if all(row["ok"] for row in rows) else 1


def tell(
    a: argparse.Namespace,
    of_source: Callable[[str, argparse.Namespace], Sequence[dict[str, Any]]],
    text: str,
    further: Sequence[str],
) -> int:
    """Prints the rows of each source, `text` above them, and writes them down as they come; the exit code."""
    rows: list[dict[str, Any]] = []
    try:
        for source in a.data:
            rows += of_source(source, a)
            if a.json:
                write_rows(a.json, rows)
    except ShortlistError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return ended(rows, text, further)
