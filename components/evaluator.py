"""Measures every system over the full catalogue, and blesses the two-stage order if it beats what is simpler."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from shortlist import ShortlistError
from shortlist.components import metrics as m
from shortlist.components._config import Config
from shortlist.components._first_stage import load_index, retrieve
from shortlist.components._folding import groups_of, overlap
from shortlist.components._judge import Judged, Lists, differences, figures
from shortlist.components._progress import progress
from shortlist.components._queries import EncodedData, Queries, build_queries
from shortlist.components._second_stage import by_odds, read_shortlists, read_shown, score_shortlists, score_shown
from shortlist.components._slices import slice_table, target_slices, user_slices
from shortlist.components._top_k import top_k
from shortlist.components.artifacts import Candidates, Encoded, Index, Model, ModelEvaluation
from shortlist.components.pipeline import Component

METRICS = ("ndcg", "hr", "recall", "precision", "mrr", "map")
LISTS = ("weighted_ndcg", "novelty", "diversity", "popularity_bias", "untouched")
"""What is measured besides on the split of the table, where the data allows it."""
TWO_STAGE, UNION = "two_stage", "union"
LEAST_USERS = 20
"""Fewer users of `validation` bless nothing: the interval of one user has no width at all."""


class EvaluationConfig(Config):
    """What is measured.

    Args:
      split: the part that the table is about. Blessing always happens on `validation`.
      cutoffs: the k of every metric.
      samples: of the bootstrap over users.
      cold_user: a history shorter than this is short, where users are told apart by it.
      cold_item: fewer training watches than this are few.
      groups: "genres" or a category of the items: how much of a list is of groups that its user never touched, and how
        far the groups lie on top of each other in the sources' vectors, is measured too; None leaves it out.
      seed: of the bootstrap; `run_seed` is only reported.
      run_seed: the seed of the run.
    """

    split: Literal["rank_train", "validation", "test"] = "test"
    cutoffs: tuple[int, ...] = (10, 100)
    samples: int = pydantic.Field(2000, ge=100, le=1_000_000)
    cold_user: int = pydantic.Field(5, ge=1)
    cold_item: int = pydantic.Field(5, ge=1)
    groups: str | None = None
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
        data, split = EncodedData(encoded), self.config.split
        self._check(data, baselines, sources, candidates, ranker)
        groups = None if self.config.groups is None else groups_of(data, self.config.groups)
        splits: dict[str, None] = dict.fromkeys((split, "validation") if ranker is not None else (split,))
        queries = {name: build_queries(data, name) for name in splits}
        if not len(queries[split]):
            raise ShortlistError(
                f"`evaluation.split` must have a positive. Received: {split}, which has none. Give it a "
                f"share, such as --set split.{split}=0.1."
            )
        queries = {name: q for name, q in queries.items() if len(q)}
        tables = {} if candidates is None else {name: read_shortlists(candidates, name) for name in queries}
        scores = {} if ranker is None else score_shortlists(ranker, tables)
        odds = {name: own["odds"] for name, own in scores.items()}
        ranked = self._rank(queries, {**baselines, **sources}, tables, odds)
        found = {
            name: {
                system: m.find_targets(own, q.targets.offsets, q.targets.values) for system, own in ranked[name].items()
            }
            for name, q in queries.items()
        }
        cutoffs = sorted({*self.config.cutoffs, 10})
        values = {name: {s: own.metrics(cutoffs) for s, own in by.items()} for name, by in found.items()}
        comparisons = [c for name in queries for c in self._compare(name, values[name], baselines, sources)]
        blessed, reasons = self._bless(comparisons, ranker is not None)

        lists = Lists(data, queries[split], self.config.cutoffs, groups)
        for system, by_user in values[split].items():
            by_user |= lists.of_users(ranked[split][system], found[split][system])
        wanted = [f"{metric}@{k}" for metric in (*METRICS, *LISTS) for k in self.config.cutoffs]
        shown = {s: {name: own[name] for name in wanted if name in own} for s, own in values[split].items()}
        systems = figures(shown, self.config.samples, self.config.seed)
        for system, of_all in systems.items():
            of_all |= lists.of_all(ranked[split][system])
        metrics = {
            "data": encoded.read_json("source.json").get("source"),
            "split": split,
            "seed": self.config.run_seed,
            "blessed": blessed,
            "reasons": reasons,
            "systems": systems,
            "comparisons": comparisons,
            "protocol": _protocol(data, queries[split], sources, candidates, ranker),
        }
        if groups is not None:
            metrics["folding"] = {"groups": self.config.groups, **_folding(lists, ranked[split], groups, sources)}
        if ranker is not None and candidates is not None and split in scores:
            about, unit = _learned(ranker, candidates)
            judged = self._judge_shortlist(values[split], tables[split], scores[split], unit)
            metrics["shortlist"] = {**about, **judged}
            if (candidates / f"{split}.shown.npz").exists():
                judged = self._judge_shown(values[split], queries[split], candidates, ranker, unit)
                metrics["impressions"] = {**about, **judged}
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2))
        blessing = {"blessed": blessed, "reasons": reasons, "comparisons": comparisons}
        (out / "blessing.json").write_text(json.dumps(blessing, indent=2))
        _write_per_user(out / "per_user.parquet", data, queries[split], values[split])
        slices = slice_table(
            user_slices(data, queries[split], self.config.cold_user),
            target_slices(data, queries[split], lists.counts, self.config.cold_item),
            found[split],
            self.config.cutoffs,
            self.config.samples,
            self.config.seed,
        )
        pq.write_table(slices, out / "slices.parquet")

    def _check(
        self,
        data: EncodedData,
        baselines: Mapping[str, Index],
        sources: Mapping[str, Index],
        candidates: Candidates | None,
        ranker: Model | None,
    ) -> None:
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
            candidates.refuse_unless_made_from(data.artifact, *sources.values())
        for index in {**baselines, **sources}.values():
            index.refuse_unless_made_from(data.artifact)

    def _rank(
        self,
        queries: Mapping[str, Queries],
        systems: Mapping[str, Index],
        tables: Mapping[str, Mapping[str, np.ndarray]],
        odds: Mapping[str, np.ndarray],
    ) -> dict[str, dict[str, np.ndarray]]:
        """By split and system, the best items; one index is loaded at a time, and once."""
        depth = max(*self.config.cutoffs, 10)
        lists: dict[str, dict[str, np.ndarray]] = {split: {} for split in queries}
        for name, index in systems.items():
            loaded = load_index(index)
            for split, q in queries.items():
                lists[split][name] = best_items(loaded, q, depth, name)
        for split, table in tables.items():
            lists[split][UNION] = table["items"][:, :depth]
            if split in odds:
                lists[split][TWO_STAGE] = by_odds(table["items"], odds[split])[:, :depth]
        return lists

    def _judge_shortlist(
        self,
        values: dict[str, dict[str, np.ndarray]],
        table: Mapping[str, np.ndarray],
        scores: Mapping[str, np.ndarray],
        unit: float | None,
    ) -> dict[str, Any]:
        """The figures of both orders of the shortlists, each a page; those of users join `values`."""
        there, queries = table["items"] >= 2, len(table["items"])
        user = np.nonzero(there)[0]
        judged = Judged(user, user, table["label"][there], table["weight"][there])
        orders = {UNION: table["fused"][there], TWO_STAGE: scores["odds"][there]}
        own, systems = judged.orders(orders, queries, self.config.samples, self.config.seed)
        for name, found in own.items():
            values[name] |= found
        ranker = judged.of_ranker({name: value[there] for name, value in scores.items()}, unit, TWO_STAGE)
        return {**ranker, "systems": systems}

    def _judge_shown(
        self,
        values: dict[str, dict[str, np.ndarray]],
        queries: Queries,
        candidates: Candidates,
        ranker: Model,
        unit: float | None,
    ) -> dict[str, Any]:
        """The figures of the ranker's order of what was shown; those of users join `values`, as `shown_…`."""
        table = read_shown(candidates, queries.split)
        scores, users = score_shown(ranker, table), len(table["user_key"])
        _, page = np.unique(np.stack([table["owner"], table["time"]]), axis=1, return_inverse=True)
        judged = Judged(table["owner"], page.reshape(-1), table["watched"], table["weight"])
        own, systems = judged.orders({TWO_STAGE: scores["odds"]}, users, self.config.samples, self.config.seed)
        rows = np.searchsorted(table["user_key"], queries.user_key)  # whoever has a query has a row
        values[TWO_STAGE] |= {f"shown_{name}": value[rows] for name, value in own[TWO_STAGE].items()}
        return {"users": users, **judged.of_ranker(scores, unit, TWO_STAGE), "systems": systems}

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

        pairs: list[tuple[str, str, str]] = []
        popularity = [name for name in baselines if name == "popularity"]
        if TWO_STAGE in values:
            rivals = [name for name in baselines if not name.startswith("popularity")]
            simple = best("ndcg@10", [*rivals, *sources])
            pairs += [("ndcg@10", TWO_STAGE, against) for against in (*popularity, simple, UNION)]
        if UNION in values:
            recall = f"recall@{max(self.config.cutoffs)}"
            pairs += [(recall, UNION, against) for against in (*popularity, best(recall, list(sources)))]
        named = [{"split": split, "metric": a, "system": b, "against": c} for a, b, c in pairs]
        return differences(named, values, self.config.samples, self.config.seed)

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


def _folding(
    lists: Lists, ranked: Mapping[str, np.ndarray], groups: np.ndarray, sources: Mapping[str, Index]
) -> dict[str, Any]:
    """The least that `untouched` could be, by system, and the overlap of the groups in each source's vectors."""
    least = {s: {n: float(np.nanmean(v)) for n, v in lists.untouched(own)[1].items()} for s, own in ranked.items()}
    found: dict[str, dict[str, float]] = {}
    for name, index in sources.items():
        loaded = load_index(index)
        if hasattr(loaded, "item_vectors"):
            value, chance = overlap(loaded.item_vectors().numpy(), groups)
            found[name] = {"value": value, "chance": chance}
    return {"least": least, "overlap": {name: own for name, own in found.items() if np.isfinite(own["value"])}}


def _learned(ranker: Model, candidates: Candidates) -> tuple[dict[str, Any], float | None]:
    """What the odds mean: of what they were learned, and their unit in that of the data; None without weights."""
    weight_from, info = candidates.read_json("candidates.json")["weight_from"], ranker.read_json("model.json")
    about = {key: info.get(key) for key in ("expected_watch_time", "learned_from_shown")}
    config = info.get("config", {})
    unit = config.get("watch_time_unit", 1.0) if weight_from == "watch_time" else 1.0
    return {"weight_from": weight_from, **about}, unit if config.get("weighted", True) else None


def best_items(index: Any, queries: Queries, k: int, name: str, batch_size: int = 1024) -> np.ndarray:
    """The k best unseen items of every query, int32 `[Q, k]`, 0 where none is left.

    Of a loaded index whose scores are dot products, by blocks of them (`_top_k.py`), which may differ from its own
    scores in the last bit; of any other by those.
    """
    embed = getattr(getattr(index, "retriever", None), "embed_query", None)
    if embed is None or not hasattr(index, "item_vectors"):
        return retrieve(index.scores, queries, k, name)
    parts = []
    with progress(f"{name}: {queries.split}", len(queries)) as advance:
        for _, batch in queries.batches(batch_size):
            parts.append(embed({key: batch[key] for key in batch if key != "exclude"}).numpy())
            advance(len(parts[-1]))
    vectors = np.concatenate(parts)  # [Q, D]
    return top_k(vectors, index.item_vectors().numpy(), k, queries.seen.offsets, queries.seen.values, name=name)


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
        "targets_digest": _digest(data, queries),
    }
    if candidates is not None:
        info = candidates.read_json("candidates.json")
        found |= {key: info[key] for key in ("weight_from", "positives", "not_retrieved")}
    models = [*sources.values(), *([] if ranker is None else [ranker])]
    found["notes"] = [note for model in models for note in model.read_json("model.json")["notes"]]
    return found


def _digest(data: EncodedData, queries: Queries) -> str:
    """Stands for who was asked for what: runs with the same one can be compared."""
    digest = hashlib.sha256(queries.targets.offsets.astype(np.int64).tobytes())
    for ids in (data.users["id"][queries.user_key], data.items["id"][queries.targets.values]):
        digest.update("\n".join(ids).encode())
    return digest.hexdigest()[:16]


def _write_per_user(
    path: Path, data: EncodedData, queries: Queries, values: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    users = pa.array(data.users["id"][queries.user_key], pa.string())
    names = dict.fromkeys(metric for own in values.values() for metric in own)
    none = np.full(len(users), np.nan)
    tables = [
        pa.table({"user": users, "system": [system] * len(users), **{name: own.get(name, none) for name in names}})
        for system, own in values.items()
    ]
    pq.write_table(pa.concat_tables(tables), path)
