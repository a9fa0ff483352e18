"""Files that are never seen half-written, and folders that one process has at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from shortlist import ShortlistError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what is there when the block ends takes the place of the file, at once and to stay,
    even if the machine stops the next moment. A block that fails leaves the file as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def replace_file(path: Path, text: str) -> None:
    """Puts `text` in the place of the file; see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8")


def sync(path: Path) -> None:
    """Makes a file or a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(lock: Path, busy: str = "", shared: bool = False) -> Iterator[None]:
    """Has a file's lock for as long as the block lasts; a killed process gives it back.

    Args:
      lock: the file; made where it is missing.
      busy: what to say if another process has it. Without, this one waits.
      shared: with others who have it shared.

    Raises:
      ShortlistError: `busy`.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise ShortlistError(busy) from None
        yield
