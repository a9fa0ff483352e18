"""The hand-off between the stages: the shortlist of every query, with the ranker's features and labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from shortlist import ShortlistError
from shortlist.components._first_stage import ShortlistConfig, build_shortlist
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

BATCH = 64
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
        import tensorflow as tf

        from shortlist.models._base import ranking_spec
        from shortlist.models._layers import last_n

        data = EncodedData(encoded)
        first_stage = build_shortlist(data, sources, self.config, approximate=True)

        spec = ranking_spec(data.kinds)
        rows = tf.TensorSpec([None, None], tf.int32)
        length = self.config.history_length

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

        size, width = first_stage.size, len(first_stage.features.names)
        positives, missed = {}, {}
        for split in [name for name in Candidates.NAMES if name in encoded.names]:
            queries = build_queries(data, split)
            _refuse_weights(queries, data)
            none = {
                "items": np.zeros((0, size), np.int32),
                "fused": np.zeros((0, size), np.float32),
                "features": np.zeros((0, size, width), np.float32),
                "history": np.zeros((0, length), np.int32),
            }
            table = _each(f"candidates: {split}", queries, ask, none)
            label, weight, retrieved = label_candidates(queries, table["items"])
            arrays: dict[str, Any] = {"user_key": queries.user_key, "label": label, "weight": weight, **table}
            np.savez(out / f"{split}.npz", **arrays)
            positives[split] = len(queries.targets.values)
            missed[split] = positives[split] - retrieved
            if has_impressions(data):
                queries = build_queries(data, split, of_all=True)
                none = {"features": np.zeros((0, width), np.float32), "history": np.zeros((0, length), np.int32)}
                table = _each(f"impressions: {split}", queries, describe, none, queries.shown["item"])
                flat = {key: ragged.values for key, ragged in queries.shown.items()}
                owner = np.repeat(np.arange(len(queries), dtype=np.int32), np.diff(queries.shown["item"].offsets))
                arrays = {"user_key": queries.user_key, "owner": owner, **flat, **table}
                np.savez(out / f"{split}.shown.npz", **arrays)
        if positives["rank_train"] and positives["rank_train"] == missed["rank_train"]:
            raise ShortlistError(
                "`shortlist` holds no positive of rank_train, so there is nothing to learn a ranking from. Raise "
                f"`shortlist.quota` or train the sources longer. Received: quota={self.config.quota}, "
                f"{positives['rank_train']:,} positives."
            )
        info = {
            "feature_names": first_stage.features.names,
            "sources": list(sources),
            "shortlist": self.config.model_dump(mode="json"),
            "weight_from": weight_source(data),
            "positives": positives,
            "not_retrieved": missed,
        }
        (out / "candidates.json").write_text(json.dumps(info, indent=2))


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
