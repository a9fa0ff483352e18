"""A finished run on a small log with structure, made once for all tests that look at one, and how to make another."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

USERS, ITEMS, EVENTS, TASTES = 120, 60, 20, 4
SYSTEMS = ["popularity", "popularity_recent", "item_knn", "wals", "two_tower", "ease", "union", "two_stage"]
STEPS = 25
# Sources too small to find the tastes, and a ranker that sees the genres: it is better by far, so it is blessed.
SETTINGS = (
    "sources.wals.embedding_dim=2",
    "sources.wals.epochs=1",
    "sources.two_tower.embedding_dim=4",
    "sources.two_tower.epochs=1",
    "sources.ease.neighbours=1",
    "baselines.item_knn.neighbours=1",
    f"shortlist.size={ITEMS}",
    f"shortlist.quota={ITEMS}",
    "ranker.hidden_units=[16]",
    "evaluation.cutoffs=[10, 20]",
    "evaluation.samples=500",
)


def write_log(folder: Path) -> None:
    """Every user watches mostly items of one taste, item i being of taste i mod 4, the low ones more often."""
    rng = np.random.default_rng(0)
    taste = np.arange(ITEMS) % TASTES
    chance = np.where(taste == rng.integers(0, TASTES, USERS)[:, np.newaxis], 20.0, 1.0)
    chance = chance / (2 + np.arange(ITEMS) // TASTES)
    picked = np.argsort(-np.log(chance) - rng.gumbel(size=chance.shape), axis=1)[:, :EVENTS]
    times = 1_600_000_000 + 1000 * np.arange(USERS)[:, np.newaxis] + 86_400 * np.arange(EVENTS)
    users = np.char.add("u", np.repeat(np.arange(USERS), EVENTS).astype(str))
    items = np.char.add("i", picked.ravel().astype(str))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"user": users, "item": items, "timestamp": times.ravel()}), folder / "log.parquet")
    genres = np.array(["Drama", "Comedy", "Crime", "War"])[taste]
    rows = [f"i{item},Film {item},{genre}\n" for item, genre in enumerate(genres)]
    (folder / "items.csv").write_text("item,title,genres\n" + "".join(rows))


def run_arguments(log: Path, workdir: Path) -> list[str]:
    """`shortlist run` on what `write_log` wrote to the folder `log`."""
    settings = (f"data.items={log / 'items.csv'}", *SETTINGS)
    arguments = ["run", "--data", f"parquet:{log / 'log.parquet'}", "--workdir", str(workdir)]
    return arguments + [word for setting in settings for word in ("--set", setting)]


def command(*arguments: str) -> list[str]:
    """The installed command, as a process."""
    return [str(Path(sys.executable).with_name("shortlist")), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "120"}


def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with log.parquet, items.csv, the finished run/, and stdout and stderr of the process that made it.

    Test processes beside this one share it, so a test that changes the run copies it first.
    """
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "small_run"
    home.mkdir(exist_ok=True)
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "stdout").exists():
            write_log(home)
            arguments = run_arguments(home, home / "run")
            done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), timeout=280)
            (home / "stderr").write_text(done.stderr)
            (home / "stdout").write_text(f"{done.stdout}exit code {done.returncode}\n")
    return home


def steps(stderr: str) -> dict[str, bool]:
    """The steps that a run names, and whether each was run and not taken from the cache."""
    lines = re.findall(r"^\s+\d+/\d+\s+(\S+)(  cached)?$", stderr, re.MULTILINE)
    return {name: not cached for name, cached in lines}


def copied(home: Path, workdir: Path) -> Path:
    """A copy of the finished run that a test may change, without what was pushed."""
    return shutil.copytree(home / "run", workdir, ignore=shutil.ignore_patterns("pushed", ".lock"))
