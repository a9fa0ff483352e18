"""The catalogue of one retriever, indexed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from shortlist.components._ann import ABOUT, ANN, Approximate, IndexConfig, compare
from shortlist.components._progress import console
from shortlist.components._queries import EncodedData, build_queries
from shortlist.components.artifacts import Encoded, Index, Model
from shortlist.components.pipeline import Component

SAMPLE = 500
"""Queries that an approximate index is compared with the exact one by."""


class RetrievalIndex(Component):
    """Puts a trained retriever's catalogue behind one interface: TFRS brute force where the score is a dot product.

    With an approximate `IndexConfig` such a retriever gets an index of faiss beside it, outside the graph, by which the
    candidates are found; a note of the model says how many of the exact answers it finds.
    """

    output = Index

    def __init__(self, name: str = "", config: IndexConfig | None = None):
        self.config: IndexConfig = config or IndexConfig()
        super().__init__(self.config, name)

    def run(self, out: Path, model: Model, encoded: Encoded) -> None:
        """See `Index` for what is written.

        Raises:
          ShortlistError: if the model was not trained on `encoded`, or faiss is asked for and not there.
        """
        import tensorflow as tf

        from shortlist.models._index import FactorizedIndex
        from shortlist.models._index import Index as ScoredIndex

        model.refuse_unless_made_from(encoded)
        retriever = tf.saved_model.load(str(model / "serving"))
        data = EncodedData(encoded)
        ids = tf.constant(data.items["id"].astype(str))
        cls = FactorizedIndex if hasattr(retriever, "item_vectors") else ScoredIndex
        index = cls(retriever, ids, data.kinds)
        tf.saved_model.save(index, str(out / "index"))
        shutil.copy(model / "model.json", out / "model.json")
        if self.config.kind != "exact" and cls is FactorizedIndex:
            note = self._approximate(out, retriever, data)
            about = model.read_json("model.json")
            about["notes"] = [*about["notes"], note]
            (out / "model.json").write_text(json.dumps(about, indent=2))

    def _approximate(self, out: Path, retriever: Any, data: EncodedData) -> str:
        ann = Approximate(retriever.item_vectors().numpy(), self.config)
        ann.save(out / ANN)
        found = compare(ann, _queries(retriever, data, ann.vectors))
        about = {"config": self.config.model_dump(mode="json"), **found}
        (out / ABOUT).write_text(json.dumps(about, indent=2))
        console.print(
            f"          {self.config.kind}: recall@{found['k']} {found['recall']:.3f} of the exact search, "
            f"{found['milliseconds']:.2f} ms a query against {found['exact_milliseconds']:.2f}, "
            f"{found['megabytes']:.0f} MB",
            style="dim",
            highlight=False,
            markup=False,
        )
        return (
            f"The candidates of {self.name.partition('.')[2] or 'this source'} are found by {self.config.kind}, which "
            f"has {found['recall']:.3f} of the {found['k']} best of the exact search; what is served is exact."
        )

    def modules(self) -> list[str]:
        return [*super().modules(), "shortlist.models._index"]


def _queries(retriever: Any, data: EncodedData, vectors: np.ndarray) -> np.ndarray:
    """Vectors of requests of `rank_train`, or where there are none those of items, float32 `[Q, D]`."""
    parts = []
    for _, batch in build_queries(data, "rank_train").batches(100):
        parts.append(retriever.embed_query({n: v for n, v in batch.items() if n != "exclude"}).numpy())
        if sum(map(len, parts)) >= SAMPLE:
            break
    return np.concatenate(parts)[:SAMPLE] if parts else vectors[2 : 2 + SAMPLE]
