"""Makes `SimilarUsers` of the vectors of another retriever."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pydantic

from shortlist.components._queries import NO_TIME, EncodedData, Rows
from shortlist.components.artifacts import Artifact
from shortlist.models._nested import described
from shortlist.models.similar_users import SimilarUsers
from shortlist.trainers._common import TrainerConfig, bases, known_positives, load, prepare, save, serving, with_vectors

BATCH, MOST = 64, 2000
"""Users described at a time, and the last of their events that this looks at."""


class Config(TrainerConfig):
    """Settings of similar users; see the model.

    Args:
      of: the source, baseline or model whose query vectors are compared.
      history_length: the last events of each user that can be proposed.
    """

    of: str = "wals"
    neighbours: int = pydantic.Field(100, ge=1)
    half_life_days: float | None = pydantic.Field(1500.0, gt=0)
    history_length: int = pydantic.Field(100, ge=1)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Describes every user of the training part as they are at its end.

    Raises:
      ShortlistError: if the other retriever has no vectors.
    """
    prepare(config)
    data, rows = load(config, inputs)
    base = with_vectors(bases(inputs))
    model = SimilarUsers(data.num_items, described(base), config.neighbours, config.half_life_days)
    model.fit(_queries(data, rows), base, config.history_length)
    save(model, serving(model, data), config, workdir)


def _queries(data: EncodedData, rows: Rows) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one query a user, of the time just after the last event, which says what that event's did."""
    keep = known_positives(rows) & (rows["timestamp"] < NO_TIME)
    kept = np.flatnonzero(keep)
    user, item, time = (rows[name][kept] for name in ("user", "item", "timestamp"))
    change = np.flatnonzero(np.concatenate([[True], user[1:] != user[:-1], [True]]))  # rows are sorted by user
    start, stop = np.maximum(change[:-1], change[1:] - MOST), change[1:]
    for batch in range(0, len(start), BATCH):
        first, end = start[batch : batch + BATCH], stop[batch : batch + BATCH]
        place = first[:, np.newaxis] + np.arange((end - first).max())  # [B, L]
        there = place < end[:, np.newaxis]
        place = np.where(there, place, 0)
        history, times = (np.where(there, values[place], 0) for values in (item, time))
        said = data.request(rows, kept[end - 1])
        yield {"user": user[first], "history": history, "history_time": times, "time": time[end - 1] + 1, **said}
