"""Where a model that begins warm finds the one of an earlier run."""

import json
from pathlib import Path
from typing import Any

from shortlist import ShortlistError
from shortlist.components.artifacts import LINEAGE, Model
from shortlist.components.pipeline import Node, Pipeline

WARM = ("biased_mf", "camf", "content_based", "two_tower", "wals")
"""Models with rows that are learned step by step. The others are counted, or solved for, anew."""


def warm_inputs(p: Pipeline, run: Path | None, step: str, model: str, config: Any) -> dict[str, Node]:
    """The inputs `start` and `earlier` of a `Trainer`, from an earlier run; none where there is none, or no such model.

    What learns from rows that its bases were trained without (`leave_out`) begins anew, and so do they.
    """
    if run is None or model not in WARM or config.leave_out:
        return {}
    found = _model_of(run, step, model, config)
    if found is None:
        return {}
    start, earlier = f"earlier.{step}", f"earlier.{step}.encoded"
    return {"start": p.given(start, found), "earlier": p.given(earlier, found.parents["encoded"])}


def _model_of(run: Path, step: str, model: str, config: Any) -> Model | None:
    """The model of a finished run that one of this step can begin with.

    Args:
      run: its folder.
      step: the name of a `Trainer`'s step; a refit begins with the refit of that run, or what was measured.
      model: the name of the model.
      config: its settings.

    Returns:
      None where that run has no such model.

    Raises:
      ShortlistError: if it is no finished run, or the model has other widths.
    """
    try:
        lineage = json.loads((run / "lineage.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise ShortlistError(
            f"`--warm-start` must be the folder of a finished run, which is kept. Received: {run}."
        ) from None
    for name in (step, step.removeprefix("refit.")):
        made = lineage.get(f"Trainer.{name}")
        if made is None:
            continue
        found = Model(run / "artifacts" / f"Trainer.{name}" / made["fingerprint"][:16], made["fingerprint"])
        if not (found / LINEAGE).exists():
            raise ShortlistError(f"`--warm-start` must be a run that is whole. Received: {run}, without {found.uri}.")
        if found.read_json("model.json")["model"] != model:
            continue
        theirs, ours = made["config"].get("embedding_dim"), getattr(config, "embedding_dim", None)
        if theirs != ours:
            raise ShortlistError(
                f"`{step}.embedding_dim` must be that of the run to start from, or no row fits: {theirs}. Set it so "
                f"(--set sources.{step}.embedding_dim={theirs}), or leave --warm-start out. Received: {ours}."
            )
        return found
    return None
