"""Makes `Table` of a file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from shortlist import ShortlistError
from shortlist.components._progress import console
from shortlist.components._sources import read_ranking
from shortlist.components._tables import counted, listed, show
from shortlist.components.artifacts import Artifact
from shortlist.models._base import FIRST_ID
from shortlist.models.table import Table
from shortlist.trainers._common import TrainerConfig, load, prepare, save, serving


class Config(TrainerConfig):
    """Settings of a table; see the model.

    Args:
      path: a CSV or, by its suffix, a Parquet file with the columns item, score and, if it has rows of single users,
        user, which is empty in those of everybody. What is in the file belongs to the step: another content is another
        model. A source's `model = "table:PATH"` says the same.
    """

    path: Path | None = None
    most: int | None = pydantic.Field(None, ge=1)


def train(config: Config, inputs: Mapping[str, Artifact], workdir: Path) -> None:
    """Reads the file. Rows of items or users that the catalogue does not have are left out, and counted in the notes.

    Raises:
      ShortlistError: if no file is named, it can't be read, or none of its items is in the catalogue.
    """
    prepare(config)
    data, _ = load(config, inputs)
    if config.path is None:
        raise ShortlistError('`path` must name a file, as model = "table:news.csv" does for a source. Received: none.')
    path = config.path.expanduser()
    ranking = read_ranking(path)
    item = _rows(ranking["item"], data.items["id"])
    key = _rows(ranking["user"], data.users["id"])
    general = ranking["user"].is_null().to_numpy()
    user = np.where(general, 0, np.where(key >= 0, data.users["user"][key], -1))
    known = (item >= FIRST_ID) & (general | (user >= FIRST_ID))
    if not known.any():
        raise ShortlistError(
            f"`path` must have items of the catalogue. Received: {path}, none of whose {counted(len(item), 'row')} is "
            f"of one, such as {show(ranking['item'][0].as_py())}. Write ids as the data has them."
        )
    notes = []
    for name, missing in (("item", item < FIRST_ID), ("user", ~general & (user < FIRST_ID))):
        if missing.any():
            values = pc.unique(ranking[name].filter(pa.array(missing))).to_pylist()
            notes.append(
                f"{path.name}: {counted(int(missing.sum()), 'row')} left out, of {counted(len(values), name)} that the "
                f"training part does not have, such as {listed(values[:3])}."
            )
            console.print(f"          {notes[-1]}", style="dim", highlight=False, markup=False)
    model = Table(data.num_items, config.most)
    model.fit(item[known], ranking["score"].to_numpy()[known], user[known])
    save(model, serving(model, data), config, workdir, notes=notes)


def _rows(values: pa.ChunkedArray, ids: np.ndarray) -> np.ndarray:
    """Where each value stands among `ids`, −1 for what is not there or null."""
    found = pc.index_in(values, value_set=pa.array(ids, pa.string()), skip_nulls=True)
    return found.fill_null(-1).to_numpy()
