"""Paired differences between runs: the same users, the same targets, another model."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shortlist import ShortlistError
from shortlist.components._config import nearest
from shortlist.components._judge import differences

KEYS = ("user", "system")  # of `per_user.parquet`; its other columns are metrics
SAME = {"data": "data", "split": "split"}
SAME_PROTOCOL = {
    "strategy": "strategy of the split",
    "positive_threshold": "positive threshold",
    "targets": "number of targets",
    "targets_digest": "targets",
}
"""What must be equal, and its name in words. An evaluation that does not hold one of them is not asked for it."""


def compare(
    runs: Mapping[str, Path],
    pairs: Sequence[tuple[str, str]] = (),
    metrics: Sequence[str] = (),
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Paired differences between systems of any runs, over their common users.

    Each has its 95 % interval (`bootstrap_means` of `shortlist.components.metrics`) and a two-sided p-value
    (`sign_flip_p`), plain and corrected by Holm's rule for all differences that the call returns: ask for what you want
    to know, not for everything.

    Args:
      runs: by name, the folder of a `ModelEvaluation`, or its `per_user.parquet`; `metrics.json` lies beside it.
      pairs: (system, rival), each written `run/system`. Without any: every system that all runs have, between each two
        runs, the later against the earlier; of one run, its last system (the two-stage order) against the others.
      metrics: columns of `per_user.parquet`; NDCG@10 and the deepest recall if none are named.
      samples: of the bootstrap.
      seed: of the bootstrap and the p-values.

    Returns:
      `{"data", "split", "users", "runs": [names], "differences": [{"metric", "system", "against", "difference", "low",
      "high", "p", "p_holm", "users"}]}`, difference = system − against. A difference that no user has is absent.

    Raises:
      ShortlistError: if the runs differ in data, split, targets or users, or a run, system or metric is unknown.
    """
    if not runs:
        raise ShortlistError("`runs` must name at least one evaluated run. Received: none.")
    folders = {name: path if path.is_dir() else path.parent for name, path in runs.items()}
    about = {name: _about(name, folder) for name, folder in folders.items()}
    first, *others = about
    for other in others:
        _refuse_unlike(first, about[first], other, about[other])
    tables = {name: pq.read_table(folder / "per_user.parquet") for name, folder in folders.items()}
    columns = [c for c in tables[first].column_names if c not in KEYS]
    chosen = list(dict.fromkeys(metrics)) or [
        "ndcg@10",
        max(columns, key=lambda c: (c.startswith("recall@"), _cutoff(c))),
    ]
    for name, table in tables.items():
        known = [c for c in table.column_names if c not in KEYS]
        for metric in chosen:
            _refuse_unknown("metrics", metric, known, f"the metrics of {name}")
    values: dict[str, dict[str, np.ndarray]] = {}
    users: list[str] = []
    for name, table in tables.items():
        for system in pc.unique(table["system"]).to_pylist():
            own = table.filter(pc.equal(table["system"], system)).sort_by("user")
            found = own["user"].to_pylist()
            if users and found != users:
                raise ShortlistError(
                    f"`runs` must be of the same users. Received: {len(users):,} in {first}, {len(found):,} in {name}, "
                    f"{len(set(users) & set(found)):,} of them in both. Evaluate both on the same split."
                )
            users = found
            values[f"{name}/{system}"] = {metric: own[metric].to_numpy() for metric in chosen}
    for label in [label for pair in pairs for label in pair]:
        _refuse_unknown("pairs", label, list(values), "the systems")
    asked = list(dict.fromkeys(pairs)) or _usual(list(tables), list(values))
    if not asked:
        raise ShortlistError(f"`runs` must have two systems to compare. Received: {', '.join(values)}.")
    wanted = [{"metric": metric, "system": a, "against": b} for metric in chosen for a, b in asked]
    judged = [p for p in wanted if not np.isnan(_difference(values, p)).all()]
    return {
        "data": about[first]["data"],
        "split": about[first]["split"],
        "users": len(users),
        "runs": list(runs),
        "differences": differences(judged, values, samples, seed),
    }


def _about(name: str, folder: Path) -> dict[str, Any]:
    for file in ("per_user.parquet", "metrics.json"):
        if not (folder / file).exists():
            raise ShortlistError(
                f"`runs` must be evaluated: {name} has no {file}. Run `shortlist evaluate` on it first. "
                f"Received: {folder}."
            )
    return json.loads((folder / "metrics.json").read_text())


def _refuse_unlike(first: str, a: Mapping[str, Any], other: str, b: Mapping[str, Any]) -> None:
    facts = [(word, a.get(key), b.get(key)) for key, word in SAME.items()]
    held = [key for key in SAME_PROTOCOL if key in a["protocol"] and key in b["protocol"]]
    facts += [(SAME_PROTOCOL[key], a["protocol"][key], b["protocol"][key]) for key in held]
    for word, one, two in facts:
        if one != two:
            raise ShortlistError(
                f"`runs` must have the same {word}, or their users' figures are no pairs. Received: {one} in {first}, "
                f"{two} in {other}."
            )


def _refuse_unknown(argument: str, name: str, known: Sequence[str], what: str) -> None:
    if name not in known:
        raise ShortlistError(f"`{argument}` must be among {what}. Received: {name}. {nearest(name, known)}")


def _usual(runs: list[str], labels: list[str]) -> list[tuple[str, str]]:
    if len(runs) == 1:
        *others, last = labels
        return [(last, other) for other in others]
    systems = [label.removeprefix(f"{runs[0]}/") for label in labels if label.startswith(f"{runs[0]}/")]
    common = [system for system in systems if all(f"{run}/{system}" in labels for run in runs)]
    return [(f"{b}/{system}", f"{a}/{system}") for system in common for a, b in itertools.combinations(runs, 2)]


def _difference(values: Mapping[str, Mapping[str, np.ndarray]], pair: Mapping[str, str]) -> np.ndarray:
    return values[pair["system"]][pair["metric"]] - values[pair["against"]][pair["metric"]]


def _cutoff(metric: str) -> int:
    return int(metric.rpartition("@")[2]) if "@" in metric else 0
