"""The command line in this process, and what a refusal looks like."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from shortlist.cli import app


def cli(*arguments: str | Path) -> Any:
    """Runs the command in this process; what it doesn't handle itself is raised here."""
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="shortlist", catch_exceptions=False)


def refused(*arguments: str | Path) -> str:
    """The one line with which the command refuses."""
    result = cli(*arguments)
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2, result.output
    assert [n for n, line in enumerate(lines) if line.startswith("Error:")] == [len(lines) - 1], result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return lines[-1].removeprefix("Error: ")


def flat(text: str) -> str:
    return " ".join(text.split())


def whole(workdir: Path) -> set[str]:
    """The steps that look finished in a run's folder."""
    found = workdir.glob("artifacts/*/*/lineage.json")
    return {path.parent.parent.name for path in found if path.parent.suffix != ".partial"}


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())
