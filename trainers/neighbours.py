"""Makes `Neighbours` of the item vectors of another retriever."""

from collections.abc import Mapping
from pathlib import Path

import pydantic

from shortlist.components.artifacts import Artifact
from shortlist.models.neighbours import Neighbours
from shortlist.trainers._common import TrainerConfig, bases, load, prepare, save, serving, with_vectors


class Config(TrainerConfig):
    """Settings of neighbours; see the model.

    Args:
      of: the source, baseline or model whose item vectors are compared.
    """

    of: str = "wals"
    history_length: int = pydantic.Field(50, ge=1)
    decay: float = pydantic.Field(0.9, gt=0, le=1)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Copies the vectors.

    Raises:
      ShortlistError: if the other retriever has none.
    """
    prepare(config)
    data, _ = load(config, inputs)
    base = with_vectors(bases(inputs))
    model = Neighbours(data.num_items, config.history_length, config.decay)
    model.fit(base.item_vectors().numpy())
    save(model, serving(model, data), config, workdir)
