"""Trains `WALS`."""

from collections.abc import Mapping
from pathlib import Path

import pydantic

from shortlist.components.artifacts import Artifact
from shortlist.models.wals import WALS
from shortlist.trainers._common import (
    EpochsConfig,
    callbacks,
    interaction_matrix,
    load,
    prepare,
    save,
    serving,
    start_of,
    validate_retriever,
)


class Config(EpochsConfig):
    """Settings of WALS; see the model."""

    embedding_dim: int = pydantic.Field(64, ge=1)
    unobserved_weight: float = pydantic.Field(0.2, ge=0)
    l2: float = pydantic.Field(0.01, ge=0)
    frequency_exponent: float = pydantic.Field(1.0, ge=0)
    init_stddev: float = pydantic.Field(0.1, ge=0)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Factorizes the matrix of the training part's positives."""
    prepare(config)
    data, rows = load(config, inputs)
    arguments = ("embedding_dim", "unobserved_weight", "l2", "frequency_exponent", "init_stddev", "seed")
    start, first = start_of(inputs)
    model = start or WALS(**{name: getattr(config, name) for name in arguments})
    validate = validate_retriever(model, data, "wals", config.patience)
    history = model.fit(
        interaction_matrix(rows, data.num_users, data.num_items),
        epochs=config.epochs,
        initial_epoch=first,
        verbose=0,
        callbacks=callbacks("wals: epochs", config.epochs, workdir, config.patience, validate),
    )
    save(model, serving(model, data), config, workdir, history.history)
