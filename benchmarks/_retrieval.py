"""What the benchmarks that train two-towers do alike: the encoded data, a fitted model, its figures by user."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.pop("OPENBLAS_CORETYPE", None)  # a wrong one makes NumPy's products slow; it is read at the first import
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf

from shortlist.components._examples import NextItemExamples
from shortlist.components._first_stage import retrieve
from shortlist.components._progress import quiet
from shortlist.components._queries import EncodedData, Queries
from shortlist.components.metrics import bootstrap_means, find_targets
from shortlist.models.two_tower import TwoTower
from shortlist.trainers import two_tower
from shortlist.trainers._common import next_item_batches
from shortlist.trainers.two_stage import defaults, load_config, retrieval_only

CUTOFFS = (10, 100)
FURTHER = ("recall@10", "ndcg@10", "difference", "users")


def encoded(source: str, archive: Path | None, workdir: Path, **changes: Any) -> EncodedData:
    """The data of `source`, split and encoded by the shipped pipeline, but for the changes of its settings."""
    name = re.sub(r"[^A-Za-z0-9._]+", "-", source.removeprefix("tfds:"))
    given = {"data.source": source, "workdir": str(workdir / name), **changes}
    given |= {"data.archive_dir": str(archive)} if archive and source.startswith("tfds:") else {}
    with quiet():
        return EncodedData(retrieval_only(load_config(None, given)).run(until=["Transform"])["Transform"])


def settings(**changes: Any) -> two_tower.Config:
    """The shipped settings, but for the changes."""
    return two_tower.Config(**{**defaults("two_tower"), **changes})


def fitted(config: two_tower.Config, data: EncodedData, history: bool = True) -> TwoTower:
    """A two-tower, fitted to `train` as its trainer does; without `history` nobody has watched anything before."""
    tf.keras.utils.set_random_seed(config.seed)
    examples = two_tower.make_examples(config, data, data.rows("train"))
    if not history:
        examples.stop = examples.start
    model = two_tower.make_model(config, data, examples)
    fit(model, config, examples)
    return model


def fit(model: TwoTower, config: two_tower.Config, examples: NextItemExamples) -> None:
    batches, steps = next_item_batches(examples, config, 0)
    model.fit(batches, epochs=config.epochs, steps_per_epoch=steps, verbose=0)


def figures(
    score: Callable[..., Any], queries: Queries, cutoffs: tuple[int, ...] = CUTOFFS, name: str = "model"
) -> dict[str, np.ndarray]:
    """The metrics of every user over the full catalogue, what was seen removed."""
    with quiet():
        ranked = retrieve(score, queries, max(cutoffs), name)
    return find_targets(ranked, queries.targets.offsets, queries.targets.values).metrics(cutoffs)


def kept(file: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `make` gives, kept in a file, where the same benchmark finds it after it was stopped."""
    if file.exists():
        with np.load(file) as found:
            return dict(found)
    made, partial = make(), file.with_suffix(".partial.npz")
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(partial, **made)
    partial.rename(file)
    return made


def mean_over(found: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The mean of each figure of a user over the seeds."""
    return {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}


def paired_row(case: str, ours: dict[str, np.ndarray], peer: dict[str, np.ndarray], bar: str = "") -> dict[str, Any]:
    """A row of the table, about Recall@100.

    `bar`: "reaches" asks that the interval of ours − peer reach 0 or more, "above" that it lie above 0, "not above"
    that it reach 0 or less; "" that the row only inform. It is shown as a bound of the ratio.
    """
    difference, low, high = (
        float(v[0]) for v in bootstrap_means((ours["recall@100"] - peer["recall@100"])[:, np.newaxis], 2000, 0)
    )
    mean, other = (float(np.nanmean(figure["recall@100"])) for figure in (ours, peer))
    bound = {
        "reaches": (1 - (high - difference) / other, high >= 0),
        "above": (1 + (difference - low) / other, low > 0),
        "not above": (1 + (difference - low) / other, low <= 0),
        "": (None, True),
    }[bar]
    return {
        "case": case,
        "ours": round(mean, 4),
        "peer": round(other, 4),
        "ratio": round(mean / other, 4),
        "bar": bound[0] if bound[0] is None else round(bound[0], 4),
        "ok": bound[1],
        "recall@10": round(float(np.nanmean(ours["recall@10"])), 4),
        "ndcg@10": round(float(np.nanmean(ours["ndcg@10"])), 4),
        "difference": f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]",
        "users": int((~np.isnan(ours["recall@100"])).sum()),
    }
