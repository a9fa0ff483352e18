"""The versions of a model on disk, the newest of them loaded as TF Serving loads it: a session on the saved graph."""

import contextlib
import gc
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shortlist import ShortlistError
from shortlist.components._catalogue import Catalogue
from shortlist.components._prediction_log import WARMUP, prediction_log
from shortlist.components._rest import INTERNAL, INVALID, NOT_FOUND, STATUS, TIMEOUT, RestError
from shortlist.components.pusher import versions

log = logging.getLogger("shortlist.serve")
SAVED = "saved_model.pb"
BACKGROUND = 10  # how much nicer than requests the loading of a version is

_CALLS = re.compile(r"\{\{function_node \S*\}\} ")
"""Where in a graph an error came from, which TF Serving doesn't say: its optimizer has written all calls out."""


class Graph:
    """A SavedModel's signatures, each called with arrays by the names of its inputs.

    Args:
      saved_model: the folder.

    Raises:
      Exception: of some kind, if it cannot be loaded.
    """

    def __init__(self, saved_model: Path):
        import tensorflow as tf

        tf.get_logger().setLevel(logging.ERROR)  # the loader of TF Serving's kind of session is deprecated, says TF
        self._options = tf.compat.v1.RunOptions
        config = tf.compat.v1.ConfigProto()
        # A signature's first answer would wait for the optimizer: with it, loading and warming up take nearly twice as
        # long, and the answers afterwards hardly less.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        config.intra_op_parallelism_threads = 1  # docs/decisions/0022-threads.md
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        with self._session.graph.as_default():
            meta = tf.compat.v1.saved_model.load(self._session, ["serve"], str(saved_model))
        self.definitions: dict[str, Any] = dict(meta.signature_def)
        self.types: dict[str, dict[str, np.dtype]] = {}
        self._feeds: dict[str, dict[str, str]] = {}
        self._fetches: dict[str, dict[str, str]] = {}
        for name, definition in self.definitions.items():
            if definition.inputs:
                kinds = {key: tf.as_dtype(info.dtype) for key, info in definition.inputs.items()}
                self.types[name] = {key: np.dtype(kind.as_numpy_dtype) for key, kind in kinds.items()}
            self._feeds[name] = {key: info.name for key, info in definition.inputs.items()}
            self._fetches[name] = {key: info.name for key, info in definition.outputs.items()}
        self._session.graph.finalize()

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray], seconds: float) -> dict[str, np.ndarray]:
        """The outputs by name, text as bytes.

        Raises:
          RestError: what TensorFlow says, or that it takes too long.
        """
        import tensorflow as tf

        feeds = {self._feeds[signature][name]: value for name, value in inputs.items()}
        options = self._options(timeout_in_ms=max(1, int(1000 * seconds)))
        try:
            found = self._session.run(self._fetches[signature], feeds, options=options)
        except tf.errors.DeadlineExceededError:
            raise RestError(TIMEOUT, f"The model did not answer within {seconds:g} seconds.") from None
        except tf.errors.OpError as error:
            told = (
                error.__context__ if isinstance(error.__context__, tf.errors.OpError) else error
            )  # before Python's part
            message = _CALLS.sub("", told.message.partition("\n")[0])
            raise RestError(STATUS.get(error.error_code, INTERNAL), message) from None
        except (ValueError, TypeError) as error:  # an input of another rank
            raise RestError(INVALID, " ".join(str(error).split())) from None
        return {name: np.asarray(value) for name, value in found.items()}

    def warm_up(self, saved_model: Path, seconds: float) -> None:
        """Answers what was recorded when the model was made, as TF Serving does before a version answers others."""
        if not (saved_model / WARMUP).exists():
            return
        import tensorflow as tf

        for data in tf.data.TFRecordDataset(str(saved_model / WARMUP)).as_numpy_iterator():
            request = prediction_log().FromString(data).predict_log.request
            inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
            self(request.model_spec.signature_name, inputs, seconds)

    def close(self) -> None:
        self._session.close()


@dataclass
class State:
    """Of a version, in TF Serving's words."""

    state: str
    code: str = "OK"
    message: str = ""


class Version:
    """A version that answers, until it was replaced and its last request is done.

    Args:
      number: the version.
      graph: what answers; none where another server does.
      catalogue: what the page shows; none if it was exported without.
    """

    def __init__(self, number: int, graph: Graph | None, catalogue: Catalogue | None):
        self.number, self.graph, self.catalogue = number, graph, catalogue
        self._users, self._lock = 1, threading.Lock()  # the first user is whoever serves it

    def hold(self) -> bool:
        """Takes part in it; False if it is over."""
        with self._lock:
            self._users += self._users > 0
            return self._users > 0

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            over = self._users == 0
        if over and self.graph:
            self.graph.close()


def find(path: Path) -> Callable[[], dict[int, Path]]:
    """What finds the versions of a model: a folder of versions, a Bundle artifact or a SavedModel.

    Raises:
      ShortlistError: if it is none of them.
    """
    single = next((folder for folder in (path, path / "saved_model") if (folder / SAVED).is_file()), None)
    if single:
        number = int(path.name) if path.name.isascii() and path.name.isdecimal() else 1
        return lambda: {number: single}

    def newest() -> dict[int, Path]:
        try:
            return versions(path)
        except OSError:
            return {}

    if not newest():
        raise ShortlistError(
            "`shortlist serve` takes the folder of a finished run, of a pushed model's versions, of a bundle or of a "
            f"SavedModel. Received: {path}."
        )
    return newest


class Versions:
    """The newest version of a model, loaded, and replaced when there is another: the old one answers until then.

    Args:
      find: the versions on disk.
      answers: whether versions answer here; else only their catalogues are read.
      seconds: the most that one recorded request may take.
    """

    def __init__(self, find: Callable[[], dict[int, Path]], answers: bool = True, seconds: float = 60.0):
        self._find, self._answers, self._seconds = find, answers, seconds
        self._served: Version | None = None
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._failed: tuple[int, float] | None = None
        self.states: dict[int, State] = {}

    @contextlib.contextmanager
    def using(self, model: str, number: int | None = None) -> Iterator[Version]:
        """The served version, for the length of the block.

        Raises:
          RestError: if it is not served.
        """
        while True:
            version = self._served
            if version is None or number not in (None, version.number):
                of = f"Latest({model})" if number is None else f"Specific({model}, {number})"
                raise RestError(NOT_FOUND, f"Servable not found for request: {of}")
            if version.hold():
                break
        try:
            yield version
        finally:
            version.release()

    def refresh(self) -> None:
        """Loads the newest version, if it is not the one that is served, and then serves it.

        Raises:
          ShortlistError: if it cannot be loaded. The version before is served on.
        """
        with self._lock:
            found = self._find()
            if not found:
                return
            number = max(found)
            folder = found[number]
            if self._served and number == self._served.number:
                self._failed = None
                self._only({number: State("AVAILABLE")})
                return
            known = {} if self._served is None else {self._served.number: State("AVAILABLE")}
            try:
                made = (number, (folder / SAVED).stat().st_mtime)
            except OSError:
                made = (number, 0.0)
            if made == self._failed:
                return
            self._only({**known, number: State("LOADING")})
            try:
                version = self._load(number, folder)
            except Exception as error:  # whatever is wrong with a file ends here, as an error of some kind
                self._failed = made
                text = " ".join(str(error).split())[:300]
                self._only({**known, number: State("END", "UNKNOWN", f"The version cannot be loaded: {text}")})
                raise ShortlistError(
                    f"A version must be a SavedModel that TensorFlow can load: {text}. Received: {folder}."
                ) from None
            before, self._served = self._served, version
            self._only({number: State("AVAILABLE")})
            self._failed = None
        if before:
            before.release()
            del before
            gc.collect()  # a graph of Python's has cycles

    def _load(self, number: int, folder: Path) -> Version:
        graph = Graph(folder) if self._answers else None
        try:
            if graph:
                graph.warm_up(folder, self._seconds)
            return Version(number, graph, Catalogue.read(folder))
        except BaseException:
            if graph:
                graph.close()
            raise

    def _only(self, states: dict[int, State]) -> None:
        self.states = states  # a new dictionary: whoever reads the old one goes on with it

    def watch(self, seconds: float = 1.0) -> None:
        """Looks for another version from time to time, in a thread of its own, until `close`."""

        def look() -> None:
            with contextlib.suppress(OSError, AttributeError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND)
            while not self._stop.wait(seconds):
                before = self._served
                try:
                    self.refresh()
                except ShortlistError as error:
                    log.warning("%s", error)
                if before is not None and self._served is not before and self._served is not None:
                    log.info("Version %d answers, in place of %d.", self._served.number, before.number)
                del before

        self._thread = threading.Thread(target=look, name="versions", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops looking, and gives the version back."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        with self._lock:
            version, self._served = self._served, None
        if version:
            version.release()
