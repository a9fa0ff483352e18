"""The hand-off between the stages: the shortlist of every query, with the ranker's features and labels."""

import contextlib
import json
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shortlist import ShortlistError
from shortlist.components._engine import Each
from shortlist.components._first_stage import ShortlistConfig, build_shortlist, describe_catalogue
from shortlist.components._progress import progress
from shortlist.components._queries import (
    EncodedData,
    Queries,
    Ragged,
    build_queries,
    has_impressions,
    weight_source,
)
from shortlist.components.artifacts import Candidates, Encoded, Index
from shortlist.components.pipeline import Component

if TYPE_CHECKING:
    from shortlist.models._ranking_features import Catalogue
    from shortlist.models._shortlist import Shortlist

BATCH = 64
USERS = 2048  # of one task, a multiple of BATCH
CELLS = 50_000  # items described at a time


class CandidateGenerator(Component):
    """Asks the sources for the candidates of `rank_train`, `validation` and `test`, one query a user and split.

    The sources were trained on `train`; each query uses all of that user's earlier events. The label of a candidate is
    whether it was watched in the split. A positive that no source retrieved is counted, and never added: the missing
    score would give it away. Of a log with impressions, what was shown in each split is described alike, each item as
    if it were asked for beside the shortlist: there the ranker learns what is watched of what is shown.

    A source with an approximate index (`index.kind`) is asked through it, and scores what is proposed alone.
    """

    output = Candidates

    def __init__(self, config: ShortlistConfig | None = None, name: str = ""):
        self.config: ShortlistConfig = config or ShortlistConfig()
        super().__init__(self.config, name)

    def modules(self) -> list[str]:
        return [*super().modules(), "shortlist.models._shortlist"]

    def run(self, out: Path, encoded: Encoded, sources: dict[str, Index]) -> None:
        """See `Candidates` for what is written.

        Raises:
          ShortlistError: if a source was made for another catalogue, or none retrieves a positive of `rank_train`.
        """
        data = EncodedData(encoded)
        catalogue = describe_catalogue(data, self.config.recent_years)
        splits = [name for name in Candidates.NAMES if name in encoded.names]
        tasks = [task for split in splits for task in _tasks(data, split, out)]
        asker = Asker(encoded, sources, self.config, catalogue)
        told = self.engine.run(out, Each(tasks, asker))[0]
        positives, retrieved = dict.fromkeys(splits, 0), dict.fromkeys(splits, 0)
        files: dict[str, list[Path]] = {}
        for task, found in zip(tasks, told, strict=True):
            files.setdefault(task.table, []).append(task.shard)
            if not task.shown:
                positives[task.queries.split] += len(task.queries.targets.values)
                retrieved[task.queries.split] += found["retrieved"]
        for table, shards in files.items():
            join_tables(out / f"{table}.npz", shards)
        missed = {split: positives[split] - retrieved[split] for split in splits}
        if positives["rank_train"] and positives["rank_train"] == missed["rank_train"]:
            raise ShortlistError(
                "`shortlist` holds no positive of rank_train, so there is nothing to learn a ranking from. Raise "
                f"`shortlist.quota` or train the sources longer. Received: quota={self.config.quota}, "
                f"{positives['rank_train']:,} positives."
            )
        info = {
            "feature_names": told[0]["feature_names"],
            "sources": list(sources),
            "shortlist": self.config.model_dump(mode="json"),
            "weight_from": weight_source(data),
            "positives": positives,
            "not_retrieved": missed,
        }
        (out / "candidates.json").write_text(json.dumps(info, indent=2))


@dataclass(frozen=True)
class Task:
    """Some queries of a split that follow each other, the first of which is number `start`; of what was `shown`, or of
    the shortlist."""

    queries: Queries
    start: int
    shown: bool
    out: Path

    @property
    def table(self) -> str:
        """The name of the table that these are a part of."""
        return f"{self.queries.split}.shown" if self.shown else self.queries.split

    @property
    def shard(self) -> Path:
        """The file of this part."""
        return self.out / f"{self.table}.{self.start:012d}.shard.npz"


def _tasks(data: EncodedData, split: str, out: Path) -> Iterator[Task]:
    for shown in (False, True) if has_impressions(data) else (False,):
        queries = build_queries(data, split, of_all=shown)
        if not shown:
            _refuse_weights(queries, data)
        for start in range(0, max(len(queries), 1), USERS):
            yield Task(queries[start : start + USERS], start, shown, out)


@dataclass(frozen=True)
class Asker:
    """Asks the first stage, and writes down what it answers to a task."""

    encoded: Encoded
    sources: dict[str, Index]
    config: ShortlistConfig
    catalogue: "Catalogue"

    @cached_property
    def functions(self) -> tuple["Shortlist", Any, Any]:
        """The first stage, what asks it for the shortlist, and what has it describe other items."""
        import tensorflow as tf

        from shortlist.models._base import ranking_spec
        from shortlist.models._layers import last_n

        data = EncodedData(self.encoded)
        first_stage = build_shortlist(data, self.sources, self.config, approximate=True, catalogue=self.catalogue)
        spec, rows, length = ranking_spec(data.kinds), tf.TensorSpec([None, None], tf.int32), self.config.history_length

        @tf.function(input_signature=[spec, rows], autograph=False)
        def ask(query: dict[str, tf.Tensor], exclude: tf.Tensor) -> dict[str, tf.Tensor]:
            answer = first_stage(query, exclude)
            found = {key: answer[key] for key in ("items", "fused", "features")}
            return {**found, "history": last_n(query["history"], length)[0]}

        @tf.function(input_signature=[spec, rows, rows], autograph=False)
        def describe(query: dict[str, tf.Tensor], exclude: tf.Tensor, items: tf.Tensor) -> dict[str, tf.Tensor]:
            proposals = first_stage.propose(query, exclude)
            features, _ = first_stage.describe(query, proposals, items, first_stage.cut(proposals)[0])
            return {"features": features[items > 0], "history": last_n(query["history"], length)[0]}

        return first_stage, ask, describe

    def __call__(self, task: Task) -> dict[str, Any]:
        first_stage, ask, describe = self.functions
        queries, width = task.queries, len(first_stage.features.names)
        size, length = first_stage.size, self.config.history_length
        none = {"history": np.zeros((0, length), np.int32)}
        arrays: dict[str, Any] = {"user_key": queries.user_key}
        retrieved = 0
        if task.shown:
            none["features"] = np.zeros((0, width), np.float32)
            shown = queries.shown["item"]
            owner = np.repeat(np.arange(task.start, task.start + len(queries), dtype=np.int32), np.diff(shown.offsets))
            arrays |= {"owner": owner, **{key: ragged.values for key, ragged in queries.shown.items()}}
            arrays |= _each(f"impressions: {queries.split}", queries, describe, none, shown)
        else:
            none["items"] = np.zeros((0, size), np.int32)
            none["fused"] = np.zeros((0, size), np.float32)
            none["features"] = np.zeros((0, size, width), np.float32)
            arrays |= _each(f"candidates: {queries.split}", queries, ask, none)
            arrays["label"], arrays["weight"], retrieved = label_candidates(queries, arrays["items"])
        partial = task.shard.with_name(f".{task.shard.name}.{uuid.uuid4().hex}.npz")
        np.savez(partial, **arrays)
        partial.rename(task.shard)
        return {"retrieved": retrieved, "feature_names": first_stage.features.names}


def join_tables(out: Path, shards: Sequence[Path]) -> None:
    """Puts the arrays of some `.npz` behind each other into one, a part at a time, and removes them."""
    if len(shards) == 1:
        shards[0].rename(out)
        return
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(np.load(shard)) for shard in shards]
        target = stack.enter_context(zipfile.ZipFile(out, "w"))
        for name in parts[0].files:
            shapes = [part[name].shape for part in parts]
            whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
            kind = np.lib.format.dtype_to_descr(parts[0][name].dtype)
            with target.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_2_0(file, {"descr": kind, "fortran_order": False, "shape": whole})
                for part in parts:
                    file.write(np.ascontiguousarray(part[name]).data)
    for shard in shards:
        shard.unlink()


def _each(
    label: str, queries: Queries, function: Any, none: dict[str, np.ndarray], items: Ragged | None = None
) -> dict[str, np.ndarray]:
    """What a function of batches answers to all queries; `none` is what it answers to none."""
    import tensorflow as tf

    parts: list[dict[str, np.ndarray]] = []
    widest = 1 if items is None else int(np.diff(items.offsets).max(initial=1))
    with progress(label, len(queries)) as advance:
        for rows, batch in queries.ranking_batches(max(1, min(BATCH, CELLS // widest))):
            exclude = batch.pop("exclude")
            further = [] if items is None else [tf.constant(items.padded(rows.start, rows.stop))]
            answer = function({k: tf.constant(v) for k, v in batch.items()}, tf.constant(exclude), *further)
            parts.append({key: value.numpy() for key, value in answer.items()})
            advance(len(exclude))
    return {key: np.concatenate([empty, *(p[key] for p in parts)]) for key, empty in none.items()}


def _refuse_weights(queries: Queries, data: EncodedData) -> None:
    """A weight of 0 would drop its positive, a negative one turn it round, an infinite one drown all others."""
    weight = queries.target_weight.values
    wrong = weight[~((weight > 0) & (weight < np.inf))]
    if len(wrong):
        name = weight_source(data)
        raise ShortlistError(
            f"`{name}` must be finite and above 0 for every positive, as it is what a positive weighs. Leave such rows "
            "out of the log, make them impressions, or raise --positive-threshold. Received: "
            f"{', '.join(f'{w:g}' for w in np.unique(wrong)[:3])} in {len(wrong):,} of {len(weight):,} positives of "
            f"{queries.split}."
        )


def label_candidates(queries: Queries, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Which candidates `[Q, K]` are targets of their query, what each such positive weighs (0 elsewhere), and how many
    targets are among the candidates.

    A target that occurs more than once in a split weighs what its first occurrence does, and counts as often.
    """
    items = items.astype(np.int64)
    targets = queries.targets.values
    width = int(max(items.max(initial=0), targets.max(initial=0))) + 1
    owner = np.repeat(np.arange(len(queries)), np.diff(queries.targets.offsets))
    keys, first, times = np.unique(owner * width + targets, return_index=True, return_counts=True)
    wanted = np.arange(len(queries))[:, np.newaxis] * width + items  # [Q, K]
    if not len(keys):
        return np.zeros(items.shape, bool), np.zeros(items.shape, np.float32), 0
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    label = (keys[place] == wanted) & (items >= 2)
    weight = np.where(label, queries.target_weight.values[first][place], 0).astype(np.float32)
    return label, weight, int(times[place][label].sum())
