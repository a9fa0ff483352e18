"""Writing files that are never seen half-written."""

import os
from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Puts `text` in the place of the file, at once and to stay, even if the machine stops the next moment."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
