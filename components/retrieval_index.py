"""The catalogue of one retriever, indexed."""

import shutil
from pathlib import Path

from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Encoded, Index, Model
from shortlist.components.pipeline import Component


class RetrievalIndex(Component):
    """Puts a trained retriever's catalogue behind one interface: TFRS brute force where the score is a dot product."""

    output = Index

    def __init__(self, name: str = ""):
        super().__init__(None, name)

    def run(self, out: Path, model: Model, encoded: Encoded) -> None:
        """See `Index` for what is written.

        Raises:
          ShortlistError: if the model was not trained on `encoded`.
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

    def modules(self) -> list[str]:
        return [*super().modules(), "shortlist.models._index"]
