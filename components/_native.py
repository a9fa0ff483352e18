"""The C program that replays a bundle, `_replay.c`, compiled where there is a compiler."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from shortlist.components._files import replacing

SOURCE = Path(__file__).with_name("_replay.c")
LIBRARIES = ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2")
SECONDS = 300.0


class CannotCompile(Exception):
    """Why there is no program, in one line."""


def replay_program() -> Path:
    """The compiled program, made once for a TensorFlow and kept in the user's cache folder.

    Raises:
      CannotCompile: if there is no compiler, TensorFlow lacks what it needs, or the compiler fails.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if not compiler:
        raise CannotCompile("there is no C compiler")
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.origin is None:
        raise CannotCompile("TensorFlow is not installed")
    home = Path(spec.origin).parent
    for needed in (home / "include" / "tensorflow" / "c" / "c_api.h", *(home / name for name in LIBRARIES)):
        if not needed.exists():
            raise CannotCompile(f"this TensorFlow has no {needed.name}")
    library = home / LIBRARIES[0]
    made_of = f"{library}{library.stat().st_size}{library.stat().st_mtime_ns}{SOURCE.read_text('utf-8')}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shortlist"
    program = cache / f"replay-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    try:
        if not program.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with replacing(program) as partial:
                _compile(compiler, home, partial)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompile(str(error)) from None
    return program


def _compile(compiler: str, home: Path, program: Path) -> None:
    libraries = [f"-L{home}", *(f"-l:{name}" for name in LIBRARIES), f"-Wl,-rpath,{home}", "-lm"]
    command = [compiler, "-O1", f"-I{home / 'include'}", str(SOURCE), "-o", str(program), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    if done.returncode:
        last = " ".join((done.stderr.strip().splitlines() or ["no message"])[-1].split())
        raise CannotCompile(f"the compiler ended with code {done.returncode}: {last[:200]}")
