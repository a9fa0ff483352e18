"""Trials of a sweep whose answers are known."""

from typing import Any

import numpy as np

from shortlist.components._trials import TrialRecord


def trial(n: int, objective: float | None, settings: dict[str, Any] | None = None, **more: Any) -> TrialRecord:
    status = more.pop("status", "failed" if objective is None else "completed")
    times = {"started": 1_764_000_000.0 + 10 * n, "seconds": 8.0}
    return TrialRecord(trial=f"{n:03}", objective=objective, status=status, settings=settings or {}, **(times | more))


def sweep(trials: int, stage: str = "", seed: int = 0) -> list[TrialRecord]:
    """A sweep in which `l2` is all that matters, the rest of it being of every kind."""
    draw = np.random.default_rng(seed)
    records = []
    for n in range(trials):
        l2 = float(10 ** draw.uniform(-4, 0))
        settings: dict[str, Any] = {
            "embedding_dim": int(draw.choice([16, 32, 64, 128])),
            "l2": l2,
            "solver": str(draw.choice(["cholesky", "cg", "block"])),
            "hidden_units": str(draw.choice(["[]", "[64]", "[128, 64]"])),
            "weighted": bool(draw.integers(2)),
            "dropout": float(draw.choice([0, 0.0003, 0.03, 0.3])),
            "seed": 0,
        }
        settings |= {"cg_steps": int(draw.integers(2, 6))} if settings["solver"] == "cg" else {}
        objective = 0.1 - 0.01 * (np.log10(l2) + 2) ** 2
        failed = n % 9 == 5
        more = {"status": "early-stopped"} if n % 9 == 7 else {"message": "out of memory"} if failed else {}
        records.append(trial(n, None if failed else float(objective), settings, stage=stage, epochs=8, **more))
    return records
