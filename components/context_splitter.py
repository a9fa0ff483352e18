"""ContextSplitter: what is rated differently in a context becomes two items, or two users."""

import shutil
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from shortlist.components.artifacts import Splits
from shortlist.components.context import (
    SIDES,
    SplitByContextConfig,
    apply_splits,
    find_splits,
    split_catalogue,
)
from shortlist.components.pipeline import Component


class ContextSplitterConfig(SplitByContextConfig):
    """Settings of `ContextSplitter`: those of a split, and what it is found in.

    Args:
      fit_on: "train", or "all" to look for splits in every part (for a model that is to be served and not measured).
    """

    fit_on: Literal["train", "all"] = "train"


class ContextSplitter(Component):
    """Puts split items, or users, in the place of those whose ratings differ by context, so that any model sees it.

    The splits are found in `train` alone and applied to every part; see `best_splits` for the test.

    Args:
      config: a `ContextSplitterConfig`.

    Raises:
      ShortlistError: if `train` has no rating or no column `context_<dimension>`.

    Example:
      >>> splits = pipeline.add(ContextSplitter(ContextSplitterConfig(side="user")), splits)
    """

    output = Splits

    def __init__(self, config: ContextSplitterConfig | None = None, name: str = ""):
        self.config: ContextSplitterConfig = config or ContextSplitterConfig()
        super().__init__(self.config, name)

    def run(self, out: Path, splits: Splits) -> None:
        """Writes `Splits` with `context_splits.parquet`."""
        parts = {name: pq.read_table(splits / f"{name}.parquet") for name in splits.names}
        fitted = pa.concat_tables(parts.values()) if self.config.fit_on == "all" else parts["train"]
        found = find_splits(fitted, self.config)
        pq.write_table(found, out / "context_splits.parquet")
        for name, part in parts.items():
            pq.write_table(apply_splits(part, found), out / f"{name}.parquet")
        for side in SIDES:
            table = pq.read_table(splits / f"{side}s.parquet")
            pq.write_table(split_catalogue(table, side, found), out / f"{side}s.parquet")
        for name in ("splits.json", "source.json"):
            shutil.copyfile(splits / name, out / name)
