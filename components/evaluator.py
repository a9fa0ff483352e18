"""Measures every system over the full catalogue, and blesses the two-stage order if it beats what is simpler."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from shortlist import ShortlistError
from shortlist.components._config import Config
from shortlist.components._first_stage import load_index, retrieve
from shortlist.components._metrics import bootstrap_mean, coverage, paired_bootstrap, ranking_metrics
from shortlist.components._queries import EncodedData, Queries, build_queries
from shortlist.components._report import write_report
from shortlist.components.artifacts import Candidates, Encoded, Index, Model, ModelEvaluation
from shortlist.components.pipeline import Component

METRICS = ("ndcg", "hr", "recall", "precision", "mrr", "map")
TWO_STAGE, UNION = "two_stage", "union"
LEAST_USERS = 20
"""Fewer users of `validation` bless nothing: the interval of one user has no width at all."""


class EvaluationConfig(Config):
    """What is measured.

    Args:
      split: the part that the table is about. Blessing always happens on `validation`.
      cutoffs: the k of every metric.
      samples: of the bootstrap over users.
      seed: of the bootstrap; `run_seed` is only reported.
      run_seed: the seed of the run.
    """

    split: Literal["rank_train", "validation", "test"] = "test"
    cutoffs: tuple[int, ...] = (10, 100)
    samples: int = pydantic.Field(2000, ge=100, le=1_000_000)
    seed: int = pydantic.Field(0, ge=0)
    run_seed: int = 0

    @pydantic.field_validator("cutoffs")
    @classmethod
    def _positive(cls, cutoffs: tuple[int, ...]) -> tuple[int, ...]:
        if not cutoffs or min(cutoffs) < 1:
            raise ValueError(f"`cutoffs` must be at least one number from 1 up. Received: {cutoffs}.")
        return tuple(sorted(set(cutoffs)))


class Evaluator(Component):
    """Ranks the full catalogue without the seen items, with every system, and compares them by user.

    The two-stage order is blessed if the 95 % interval of its paired difference in NDCG@10 on `validation` (bootstrap
    over users) lies above 0 against popularity, against the better of ItemKNN and the best source's own order, and
    against the fusion of the sources.
    """

    output = ModelEvaluation

    def __init__(self, config: EvaluationConfig | None = None, name: str = ""):
        self.config: EvaluationConfig = config or EvaluationConfig()
        super().__init__(self.config, name)

    def run(
        self,
        out: Path,
        encoded: Encoded,
        baselines: dict[str, Index],
        sources: dict[str, Index],
        candidates: Candidates | None = None,
        ranker: Model | None = None,
    ) -> None:
        """See `ModelEvaluation` for what is written. Without candidates and ranker, only retrieval is measured.

        Raises:
          ShortlistError: if artifacts of different models are mixed, a score is NaN, a name is taken twice, a cut-off
            exceeds the catalogue, or the split has no query.
        """
        data = EncodedData(encoded)
        clash = (set(baselines) & set(sources)) | ({TWO_STAGE, UNION} & {*baselines, *sources})
        if clash:
            raise ShortlistError(
                f"`sources` and `baselines` need names of their own, and neither may be {TWO_STAGE} or {UNION}. "
                f"Received: {', '.join(sorted(clash))} twice."
            )
        if max(self.config.cutoffs) > data.num_items - 2:
            raise ShortlistError(
                f"`evaluation.cutoffs` must be at most the {data.num_items - 2:,} items of the catalogue. "
                f"Received: {max(self.config.cutoffs)}."
            )
        if ranker is not None and candidates is not None:
            ranker.refuse_unless_made_from(candidates)
        if candidates is not None:
            candidates.refuse_unless_made_from(encoded, *sources.values())
        systems = {**baselines, **sources}
        for index in systems.values():
            index.refuse_unless_made_from(encoded)
        splits = dict.fromkeys((self.config.split, "validation") if ranker is not None else (self.config.split,))
        queries = {split: build_queries(data, split) for split in splits}
        if not len(queries[self.config.split]):
            raise ShortlistError(
                f"`evaluation.split` must have a positive. Received: {self.config.split}, which has none. Give it a "
                f"share, such as --set split.{self.config.split}=0.1."
            )
        depth = max(*self.config.cutoffs, 10)
        ranked = {split: self._rank(q, depth, systems, candidates, ranker) for split, q in queries.items() if len(q)}
        values = {
            split: {name: self._measure(items, queries[split]) for name, items in lists.items()}
            for split, lists in ranked.items()
        }
        comparisons = [c for split in ranked for c in self._compare(split, values[split], baselines, sources)]
        blessed, reasons = self._bless(comparisons, ranker is not None)
        metrics = {
            "data": encoded.read_json("source.json").get("source"),
            "split": self.config.split,
            "seed": self.config.run_seed,
            "blessed": blessed,
            "reasons": reasons,
            "systems": self._summary(values[self.config.split], ranked[self.config.split], data.num_items - 2),
            "comparisons": comparisons,
            "protocol": _protocol(data, queries[self.config.split], sources, candidates, ranker),
        }
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2))
        blessing = {"blessed": blessed, "reasons": reasons, "comparisons": comparisons}
        (out / "blessing.json").write_text(json.dumps(blessing, indent=2))
        _write_per_user(out / "per_user.parquet", data, queries[self.config.split], values[self.config.split])
        write_report(out / "report.md", metrics, encoded.read_json("source.json"), encoded.read_json("splits.json"))

    def _rank(
        self,
        queries: Queries,
        depth: int,
        systems: Mapping[str, Index],
        candidates: Candidates | None,
        ranker: Model | None,
    ) -> dict[str, np.ndarray]:
        lists = {}
        for name, index in systems.items():
            loaded = load_index(index)
            lists[name] = retrieve(loaded.scores, queries, depth, name)
        if candidates is not None:
            with np.load(candidates / f"{queries.split}.npz") as table:
                items, features = table["items"], table["features"]
            lists[UNION] = items[:, :depth]
            if ranker is not None:
                lists[TWO_STAGE] = rank_candidates(ranker, items, features)[:, :depth]
        return lists

    def _measure(self, items: np.ndarray, queries: Queries) -> dict[str, np.ndarray]:
        cutoffs = sorted({*self.config.cutoffs, 10})
        return ranking_metrics(items, queries.targets.offsets, queries.targets.values, cutoffs)

    def _summary(
        self, values: Mapping[str, Mapping[str, np.ndarray]], ranked: Mapping[str, np.ndarray], num_items: int
    ) -> dict[str, dict[str, dict[str, float]]]:
        systems: dict[str, dict[str, dict[str, float]]] = {}
        for name, metrics in values.items():
            rows: dict[str, dict[str, float]] = {}
            for metric in (f"{m}@{k}" for m in METRICS for k in self.config.cutoffs):
                mean, low, high = bootstrap_mean(metrics[metric], self.config.samples, self.config.seed)
                users = int(np.isfinite(metrics[metric]).sum())
                rows[metric] = {"value": mean, "low": low, "high": high, "users": users}
            for k in self.config.cutoffs:
                rows[f"coverage@{k}"] = {"value": coverage(ranked[name], k, num_items)}
            systems[name] = rows
        return systems

    def _compare(
        self,
        split: str,
        values: Mapping[str, Mapping[str, np.ndarray]],
        baselines: Mapping[str, Index],
        sources: Mapping[str, Index],
    ) -> list[dict[str, Any]]:
        """Paired differences of the two-stage order in NDCG@10, and of the union in the deepest recall."""

        def best(metric: str, names: list[str]) -> str:
            return max(names, key=lambda name: np.nanmean(values[name][metric]))

        def pair(system: str, against: str, metric: str) -> dict[str, Any]:
            a, b = values[system][metric], values[against][metric]
            mean, low, high = paired_bootstrap(a, b, self.config.samples, self.config.seed)
            users = int(np.isfinite(a - b).sum())
            found = {"split": split, "metric": metric, "system": system, "against": against}
            return {**found, "difference": mean, "low": low, "high": high, "users": users}

        found = []
        popularity = [name for name in baselines if name == "popularity"]
        if TWO_STAGE in values:
            rivals = [name for name in baselines if not name.startswith("popularity")]
            simple = best("ndcg@10", [*rivals, *sources])
            found += [pair(TWO_STAGE, against, "ndcg@10") for against in (*popularity, simple, UNION)]
        if UNION in values:
            recall = f"recall@{max(self.config.cutoffs)}"
            found += [pair(UNION, against, recall) for against in (*popularity, best(recall, list(sources)))]
        return found

    @staticmethod
    def _bless(comparisons: list[dict[str, Any]], ranked: bool) -> tuple[bool, list[str]]:
        if not ranked:
            return False, ["There is no ranker, so there is nothing to bless."]
        deciding = [c for c in comparisons if c["split"] == "validation" and c["system"] == TWO_STAGE]
        if not deciding:
            return False, ["There is no positive in validation, which decides. Give it a share: split.validation."]
        reasons = [
            f"NDCG@10 on validation is not above that of {c['against']}: {c['difference']:+.4f} "
            f"[{c['low']:+.4f}, {c['high']:+.4f}], {c['users']} users."
            for c in deciding
            if not c["low"] > 0
        ]
        if (users := deciding[0]["users"]) < LEAST_USERS:
            reasons.append(f"A bootstrap over {users} users says little: at least {LEAST_USERS} must have a positive.")
        if "popularity" not in {c["against"] for c in deciding}:
            reasons.append("There is no baseline `popularity` to compare with.")
        return not reasons, reasons


def rank_candidates(ranker: Model, items: np.ndarray, features: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """The candidates `[Q, K]` by the ranker's odds, best first, ties in the order of the candidates.

    Raises:
      ShortlistError: if an odds is not a number.
    """
    import tensorflow as tf

    served = tf.saved_model.load(str(ranker / "serving"))
    parts = [
        served.score(tf.constant(features[start : start + batch_size])).numpy()
        for start in range(0, len(items), batch_size)
    ]
    odds = np.concatenate(parts) if parts else np.zeros(items.shape, np.float32)
    if np.isnan(odds).any():
        raise ShortlistError(
            "`ranker` scores candidates with NaN, so they have no order. Lower --set ranker.learning_rate. "
            f"Received: NaN for {int(np.isnan(odds).any(axis=1).sum()):,} of {len(odds):,} queries."
        )
    order = np.argsort(np.where(items >= 2, -odds, np.inf), axis=1, kind="stable")
    return np.take_along_axis(items, order, axis=1)


def _protocol(
    data: EncodedData,
    queries: Queries,
    sources: Mapping[str, Index],
    candidates: Candidates | None,
    ranker: Model | None,
) -> dict[str, Any]:
    """What a reader has to know to trust the figures."""
    splits = data.artifact.read_json("splits.json")
    histories = np.diff(queries.history.offsets)
    found: dict[str, Any] = {
        "strategy": splits["strategy"],
        "guarantee": splits["guarantee"],
        "positive_threshold": splits["positive_threshold"],
        "catalogue": data.num_items - 2,
        "users": len(queries),
        "users_with_history": int((histories > 0).sum()),
        "targets": len(queries.targets.values),
        "targets_outside_catalogue": float((queries.targets.values < 2).mean()),
    }
    if candidates is not None:
        info = candidates.read_json("candidates.json")
        found |= {key: info[key] for key in ("weight_from", "positives", "not_retrieved")}
    models = [*sources.values(), *([] if ranker is None else [ranker])]
    found["notes"] = [note for model in models for note in model.read_json("model.json")["notes"]]
    return found


def _write_per_user(
    path: Path, data: EncodedData, queries: Queries, values: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    users = pa.array(data.users["id"][queries.user_key], pa.string())
    tables = [
        pa.table({"user": users, "system": pa.array([name] * len(users), pa.string()), **metrics})
        for name, metrics in values.items()
    ]
    pq.write_table(pa.concat_tables(tables), path)
