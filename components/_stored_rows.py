"""Encoded rows that stay on disk: pieces of whole users, read when they are wanted."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shortlist.components._queries import EncodedData, Rows, arrays, in_order


class StoredRows:
    """The rows of some parts of an `Encoded`, in pieces: users whose keys follow each other.

    A piece is a row group of the largest part, which ends where a user does, and what the other parts have of its
    users. Where row groups don't end so, those that share a user are one piece.

    Args:
      data: the encoded data.
      splits: the parts.
      keep: of the rows of some users, which are wanted, bool `[N]`; None is all.

    Attributes:
      sizes: int64 `[P]`, the rows of each piece, before `keep`.
      num_items: I, of the encoded data.
    """

    def __init__(self, data: EncodedData, splits: Sequence[str], keep: Callable[[Rows], np.ndarray] | None = None):
        self.keep, self.num_items = keep, data.num_items
        self.files = [pq.ParquetFile(data.artifact / f"{name}.parquet") for name in splits]
        groups = [_groups(file) for file in self.files]
        largest = max(groups, key=lambda group: group[:, 2].sum())
        low, high, *_ = largest.T
        new = np.append(True, low[1:] > np.maximum.accumulate(high)[:-1])[: len(low)]
        self.starts = np.append(low[new], np.iinfo(np.int32).max)  # [P + 1] keys; the last piece has all that follow
        self.starts[0] = 0
        self.groups, sizes = groups, np.zeros(len(self.starts) - 1, np.int64)
        for first, _, rows, _ in np.concatenate(groups):
            sizes[np.searchsorted(self.starts, first, "right") - 1] += rows
        self.sizes = sizes

    def __len__(self) -> int:
        """How many pieces there are."""
        return len(self.sizes)

    def read(self, pieces: np.ndarray) -> Rows:
        """The rows of some pieces, sorted by user, then time, ties in the order of the parts."""
        wanted = np.zeros(len(self), bool)
        wanted[pieces] = True
        parts = [self._of_file(*both, wanted) for both in zip(self.files, self.groups, strict=True)]
        rows = in_order([arrays(part) for part in parts])
        if self.keep is None:
            return rows
        keep = self.keep(rows)
        return {name: values[keep] for name, values in rows.items()}

    def windows(self, size: int, rng: np.random.Generator | None = None) -> Iterator[np.ndarray]:
        """All pieces, once each, so many at a time that they have about `size` rows; in an order drawn by `rng`."""
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        ends = np.cumsum(self.sizes[order])
        count = max(round(ends[-1] / size), 1)
        yield from (w for w in np.split(order, np.searchsorted(ends, ends[-1] / count * np.arange(1, count))) if len(w))

    def _of_file(self, file: pq.ParquetFile, groups: np.ndarray, wanted: np.ndarray) -> pa.Table:
        first, last = (np.searchsorted(self.starts, end, "right") - 1 for end in groups[:, :2].T)
        touched = np.append(0, np.cumsum(wanted))
        chosen = groups[touched[last + 1] > touched[first], 3]
        table = file.read_row_groups(chosen.tolist())
        piece = np.searchsorted(self.starts, table["user_key"].to_numpy(), "right") - 1
        inside = wanted[piece]
        return table if inside.all() else table.filter(pa.array(inside))


def _groups(file: pq.ParquetFile) -> np.ndarray:
    """The lowest and the highest key of each row group, its rows and its number, int64 `[G, 4]`; no empty ones."""
    about, column = file.metadata, file.schema_arrow.get_field_index("user_key")
    found = []
    for number in range(about.num_row_groups):
        group = about.row_group(number)
        if group.num_rows:
            keys = group.column(column).statistics
            found.append((keys.min, keys.max, group.num_rows, number))
    return np.array(found, np.int64).reshape(-1, 4)
