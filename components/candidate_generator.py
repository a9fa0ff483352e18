"""The hand-off between the stages: the shortlist of every query, with the ranker's features and labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from shortlist import ShortlistError
from shortlist.components._first_stage import ShortlistConfig, build_shortlist
from shortlist.components._progress import progress
from shortlist.components._queries import EncodedData, Queries, build_queries, weight_source
from shortlist.components.artifacts import Candidates, Encoded, Index
from shortlist.components.pipeline import Component

BATCH = 64


class CandidateGenerator(Component):
    """Asks the sources for the candidates of `rank_train`, `validation` and `test`, one query a user and split.

    The sources were trained on `train`; each query uses all of that user's earlier events. The label of a candidate is
    whether it was watched in the split. A positive that no source retrieved is counted, and never added: the missing
    score would give it away.
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

        from shortlist.models._base import QUERY_SPEC

        data = EncodedData(encoded)
        first_stage = build_shortlist(data, sources, self.config)

        @tf.function(input_signature=[QUERY_SPEC, tf.TensorSpec([None, None], tf.int32)], autograph=False)
        def ask(query: dict[str, tf.Tensor], exclude: tf.Tensor) -> dict[str, tf.Tensor]:
            answer = first_stage(query, exclude)
            return {key: answer[key] for key in ("items", "fused", "features")}

        positives, missed = {}, {}
        for split in [name for name in Candidates.NAMES if name in encoded.names]:
            queries = build_queries(data, split)
            parts: list[dict[str, np.ndarray]] = []
            with progress(f"candidates: {split}", len(queries)) as advance:
                for _, batch in queries.batches(BATCH):
                    exclude = batch.pop("exclude")
                    answer = ask({key: tf.constant(value) for key, value in batch.items()}, tf.constant(exclude))
                    parts.append({key: value.numpy() for key, value in answer.items()})
                    advance(len(exclude))
            size, width = first_stage.size, len(first_stage.features.names)
            none = {
                "items": np.zeros((0, size), np.int32),
                "fused": np.zeros((0, size), np.float32),
                "features": np.zeros((0, size, width), np.float32),
            }
            table = {key: np.concatenate([empty, *(p[key] for p in parts)]) for key, empty in none.items()}
            label, weight, retrieved = label_candidates(queries, table["items"])
            arrays: dict[str, Any] = {"user_key": queries.user_key, "label": label, "weight": weight, **table}
            np.savez(out / f"{split}.npz", **arrays)
            positives[split] = len(queries.targets.values)
            missed[split] = positives[split] - retrieved
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
