"""Items that nobody watched in training: does their content find them?

A seventh of the items with at least three rows in `train` are cold: their rows are taken out of every part but `test`,
while the catalogue keeps them. Of each model the figure is Recall@100 on `test` of the cold items alone, ranked among
the whole catalogue with what was seen removed. Which items are cold is drawn anew with each seed; a user's figure is
the mean of the seeds' in which a cold item is among what he watched.

ours is a content-based model, or the two-tower with an id dropout of .5 and the words of titles; peer a random order
(its expected recall; the bar is 3 ×), or the nearest items to the last ten watched by genre alone (the bar: the paired
95 % interval over users lies above 0).
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from _retrieval import encoded
from _table import parsed, parser_of, tell

from shortlist.components._first_stage import retrieve
from shortlist.components._progress import quiet
from shortlist.components._queries import EncodedData, Queries, build_queries
from shortlist.components.artifacts import Encoded
from shortlist.components.metrics import bootstrap_means, ranking_metrics
from shortlist.models._content import weighted_content
from shortlist.models.content_based import ContentBased
from shortlist.trainers import content_based, two_tower
from shortlist.trainers.two_stage import defaults

K, COLD, LEAST = 100, 7, 3
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "network": (content_based, {"form": "network"}),
    "profile": (content_based, {"form": "profile"}),
    "two_tower": (two_tower, {"id_dropout": 0.5, "title": True}),
}
QUICK = {"seeds": [0], "models": ["profile"]}


def without(encoded: Encoded, cold: np.ndarray, folder: Path) -> EncodedData:
    """The same data, but in every part except `test` without the rows of cold items, bool `[I]`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(encoded.uri, folder)
    for name in ("train", "rank_train", "validation"):
        table = pq.read_table(folder / f"{name}.parquet")
        pq.write_table(table.filter(pa.array(~cold[table["item"].to_numpy()])), folder / f"{name}.parquet")
    return EncodedData(Encoded(folder, "cold"))


def by_genre(data: EncodedData) -> ContentBased:
    content = weighted_content({"genres": data.items["genres"]}, {})
    model = ContentBased(*content.shape, form="profile")
    model.set_content(content)
    return model


def recall(score: Any, queries: Queries, cold: np.ndarray) -> np.ndarray:
    """Of the cold items of every user's targets; NaN where there is none."""
    keep = cold[queries.targets.values]
    offsets = np.concatenate([[0], np.cumsum(keep)])[queries.targets.offsets]
    with quiet():
        ranked = retrieve(score, queries, K, "cold")
    return ranking_metrics(ranked, offsets, queries.targets.values[keep], (K,))[f"recall@{K}"]


def of_seed(data: EncodedData, seed: int, models: list[str], folder: Path) -> dict[str, np.ndarray]:
    """The figure of every user."""
    often = np.flatnonzero(np.bincount(data.rows("train")["item"], minlength=data.num_items) >= LEAST)
    often = often[often >= 2]
    cold = np.zeros(data.num_items, bool)
    cold[np.random.default_rng(seed).choice(often, len(often) // COLD, replace=False)] = True
    data = without(data.artifact, cold, folder / "encoded")
    queries = build_queries(data, "test", of_all=True)
    found = {"genres": recall(by_genre(data).score_items, queries, cold)}
    left = data.num_items - 2 - np.diff(queries.seen.offsets)
    found["random"] = np.where(np.isnan(found["genres"]), np.nan, np.minimum(K / left, 1))
    for name in models:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
        trainer, changes = MODELS[name]
        shipped = defaults(trainer.__name__.rpartition(".")[2])
        config = trainer.Config(**{**shipped, **changes, "seed": seed, "deterministic": False})
        with quiet():
            trainer.train(config, {"encoded": data.artifact}, folder / name)
        served = tf.saved_model.load(str(folder / name / "serving"))
        found[name] = recall(served.score_items, queries, cold)
        print(f"seed {seed}, {name}: {np.nanmean(found[name]):.4f}", file=sys.stderr)
    return found


def row(source: str, form: str, peer_name: str, ours: np.ndarray, peer: np.ndarray) -> dict[str, Any]:
    difference, low, high = (float(v[0]) for v in bootstrap_means((ours - peer)[:, np.newaxis], 2000, 0))
    ratio = float(np.nanmean(ours) / np.nanmean(peer))
    return {
        "case": f"{source.removeprefix('tfds:')}, {form} against {peer_name}",
        "ours": round(float(np.nanmean(ours)), 4),
        "peer": round(float(np.nanmean(peer)), 4),
        "ratio": round(ratio, 4),
        "bar": 3.0 if peer_name == "random" else 1.0,
        "ok": ratio >= 3 if peer_name == "random" else low > 0,
        "difference": f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]",
        "users": int((~np.isnan(ours)).sum()),
    }


def mean_of_seeds(values: list[np.ndarray]) -> np.ndarray:
    """Over the seeds that have a figure, NaN where none has."""
    table = np.stack(values)
    count = (~np.isnan(table)).sum(axis=0)
    return np.divide(np.nansum(table, axis=0), count, out=np.full(table.shape[1], np.nan), where=count > 0)


def on_data(source: str, a: argparse.Namespace) -> list[dict[str, Any]]:
    data = encoded(source, a.archive_dir, a.workdir)
    found = [of_seed(data, seed, a.models, a.workdir / "cold") for seed in a.seeds]
    figures = {name: mean_of_seeds([seed[name] for seed in found]) for name in found[0]}
    return [row(source, name, peer, figures[name], figures[peer]) for name in a.models for peer in ("random", "genres")]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, QUICK, ["demo"], "runs/cold_items")
    names = list(MODELS)
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    return parsed(parser, argv, QUICK)


def main(argv: list[str]) -> int:
    text = f"Recall@{K} of cold items on test; difference: paired, with its 95 % interval over users."
    return tell(parse(argv), on_data, text, ["difference", "users"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
