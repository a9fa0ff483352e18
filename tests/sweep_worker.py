"""What a chief or a worker of the tests runs: `python -c "import sweep_worker; sweep_worker.main(FOLDER, PLAN)"`.

A trial takes a moment and leaves a line in FOLDER/runs.jsonl when it begins and when it has been measured.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from shortlist.components import _workers
from shortlist.components._oracles import Durable, make_oracle
from shortlist.components._search_space import SearchSpace, parse_space
from shortlist.components.tuner import STATE, Outcome, Tuner

DEFAULTS = {"x": 0.5, "deep": False, "drop": 0.25}
SPACE: SearchSpace = parse_space(
    {
        "x": {"type": "float", "range": [0.0, 1.0]},
        "deep": {"type": "bool"},
        "drop": {"type": "float", "range": [0.0, 0.5], "condition": {"deep": [True]}},
    },
    lambda name, changes: {**DEFAULTS, **changes}[name],
    "space",
)


def value(settings: dict[str, float]) -> float:
    return 1 - abs(settings["x"] - 0.8) + settings.get("drop", 0.0)


def lines(folder: Path) -> list[dict[str, object]]:
    file = folder / "runs.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(
    folder: Path,
    trials: int = 8,
    algorithm: str = "random",
    seconds: float = 0.5,
    kill: str = "",
    dies: bool = False,
) -> None:
    """Be the chief or the worker that the environment names.

    Args:
      folder: of the search.
      trials: the most.
      algorithm: of the oracle.
      seconds: that a trial takes.
      kill: the name of a trial that kills its process whenever it is run.
      dies: whether the chief is killed twice while a worker waits for its answer: with the third trial made and not yet
        written, and with the end of the fifth written and not yet told.
    """
    identity = _workers.role()
    assert identity is not None
    file = STATE if _workers.is_chief(identity) else f".{identity}.json"
    oracle = make_oracle(
        algorithm,
        folder / file,
        "v",
        SPACE.hyperparameters(),
        trials or None,
        1,
        9 if algorithm == "hyperband" else None,
    )

    if dies and _workers.is_chief(identity):
        _dying(oracle, folder)

    def measure(settings: dict[str, float], rungs: tuple[int, ...]) -> Outcome:
        trial = next(t for t in sorted((folder / "trials").glob("*.json")) if _mine(t, identity))
        note = {"trial": trial.stem, "worker": identity, "pid": os.getpid(), "settings": settings, "rungs": rungs}
        _write(folder, {**note, "event": "begins"})
        if trial.stem == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
        _write(folder, {**note, "event": "measured"})
        return Outcome(value(settings))

    Tuner(oracle, measure, SPACE, folder).search()


def _dying(oracle: Durable, folder: Path) -> None:
    write = oracle.commit

    def once(name: str) -> None:
        if not (folder / name).exists():
            (folder / name).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def commit() -> None:
        if len(oracle.trials) == 3:
            once("unwritten")
        write()
        if len(oracle.end_order) == 5:
            once("untold")

    oracle.commit = commit


def _mine(file: Path, identity: str) -> bool:
    """Whether the record is that of the trial that this worker runs."""
    record = json.loads(file.read_text())
    return record["worker"] == identity and "seconds" not in record


def _write(folder: Path, note: dict[str, object]) -> None:
    with (folder / "runs.jsonl").open("a") as file:
        file.write(json.dumps(note) + "\n")


def command(folder: Path, **options: object) -> list[str]:
    arguments = ", ".join(f"{name}={option!r}" for name, option in options.items())
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; "
    return [sys.executable, "-c", f"{code}import sweep_worker; sweep_worker.main(Path({str(folder)!r}), {arguments})"]
