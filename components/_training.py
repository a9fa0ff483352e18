"""A trainer that runs with others, in a process of its own.

TensorFlow joins a cluster once a process, before anything else, and leaves it with the process. So each process of a
cluster starts another one for the training of a model, and starts it again where a peer is lost: it goes on from the
last epoch that all have finished.
"""

import contextlib
import importlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortlist import ShortlistError
from shortlist.components._cluster import PAUSE, Cluster
from shortlist.components._progress import console

LOST = 75
"""Exit code of a training process that lost another one."""
GRACE = 10.0
"""Seconds for the chief to give a model its place after the process that trained it has ended."""
MOST_LOSSES = 10
"""How often a training begins again."""
TASK, READY, DONE, ERROR = "task", "ready", "done", "error"


@dataclass(frozen=True)
class Together:
    """What a training process knows of the others.

    Args:
      strategy: a `tf.distribute.Strategy`, in whose scope a model is made.
      cluster: the processes.
      backup: folder of what an interrupted training goes on from; all processes see it.
      folder: of what this process tells the one that started it.
    """

    strategy: Any
    cluster: Cluster
    backup: Path
    folder: Path

    def leave_the_rest_to_the_chief(self) -> None:
        """Never returns in a process that is not the chief: when a model is trained, it has done its part."""
        if not self.cluster.is_chief:
            (self.folder / DONE).touch()
            threading.Event().wait()


_together: Together | None = None


def together() -> Together | None:
    """What this process trains with; None if it trains alone."""
    return _together


def train_together(
    run_fn: str, config: Any, inputs: Mapping[str, Any], out: Path, backup: Path, cluster: Cluster
) -> None:
    """Runs a trainer with the other processes, as the chief.

    Raises:
      ShortlistError: if another process does not come, or again and again is lost, and whatever the trainer refuses.
    """
    _again(run_fn, config, inputs, out, backup, cluster, lambda: False, None)
    shutil.rmtree(backup, ignore_errors=True)


def help_training(
    run_fn: str,
    config: Any,
    inputs: Mapping[str, Any],
    backup: Path,
    cluster: Cluster,
    there: Callable[[], bool],
    workdir: Path,
) -> None:
    """Takes part in a training whose chief is elsewhere, until `there`: until it has written the model down.

    Raises:
      ShortlistError: as `train_together`.
    """
    with tempfile.TemporaryDirectory() as out:
        _again(run_fn, config, inputs, Path(out), backup, cluster, there, workdir)


def _again(
    run_fn: str,
    config: Any,
    inputs: Mapping[str, Any],
    out: Path,
    backup: Path,
    cluster: Cluster,
    there: Callable[[], bool],
    workdir: Path | None,
) -> None:
    for _ in range(MOST_LOSSES):
        with tempfile.TemporaryDirectory() as folder:
            task = {"run_fn": run_fn, "config": config, "inputs": dict(inputs), "out": out, "backup": backup}
            (Path(folder) / TASK).write_bytes(pickle.dumps({**task, "cluster": cluster}))
            code = _run(Path(folder), cluster, there, workdir)
            if code == 0 or there():
                return
            with contextlib.suppress(FileNotFoundError):
                raise ShortlistError((Path(folder) / ERROR).read_text("utf-8"))
        if 0 < code != LOST:
            raise RuntimeError(f"The training process ended with exit code {code}; what it said stands above.")
        console.print("          another process was lost: going on from the last epoch", highlight=False)
    raise ShortlistError(
        f"`{cluster.strategy}` lost a process {MOST_LOSSES} times in one training. See what the others say. "
        "The same command goes on from the last epoch."
    )


def _run(folder: Path, cluster: Cluster, there: Callable[[], bool], workdir: Path | None) -> int:
    """The exit code of a training process; 0 too if it was ended because the model is `there`."""
    command = [sys.executable, "-m", "shortlist.components._training", str(folder)]
    started = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:  # who ends when this pipe does
        try:
            if not cluster.trains:
                assert workdir is not None
                cluster.wait_for_chief(lambda: there() or process.poll() is not None, workdir)
            while process.poll() is None and not there():
                if not (folder / READY).exists() and time.monotonic() > started + cluster.config.timeout:
                    raise cluster.missing(cluster.absent())
                if (folder / DONE).exists() and cluster.name(*cluster.chief) in cluster.absent():
                    _wait(there, GRACE)  # it has written the model down, or was lost before
                    break
                time.sleep(PAUSE)
            code = process.poll()
            return (0 if there() else LOST) if code is None else code
        finally:
            process.kill()


def _wait(there: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not there() and time.monotonic() < end:
        time.sleep(PAUSE)


def _end_with_parent() -> None:
    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_loss(error: Exception) -> bool:
    import tensorflow as tf

    lost = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
    )
    return isinstance(error, lost) or (
        isinstance(error, tf.errors.OpError) and "ollective ops is aborted" in str(error)
    )


def main(folder: Path) -> int:
    """The training process."""
    global _together
    _end_with_parent()
    task = pickle.loads((folder / TASK).read_bytes())
    cluster: Cluster = task["cluster"]
    try:
        strategy = _joined(cluster, folder)
        (folder / READY).touch()
        _together = Together(strategy, cluster, task["backup"], folder)
        module, _, function = task["run_fn"].partition(":")
        getattr(importlib.import_module(module), function)(task["config"], task["inputs"], task["out"])
    except ShortlistError as error:
        (folder / ERROR).write_text(str(error), "utf-8")
        return 2
    except Exception as error:
        if _is_loss(error):
            return LOST
        traceback.print_exc()
        return 1
    return 0


def _joined(cluster: Cluster, folder: Path) -> Any:
    """The strategy of this process; does not return in one that only serves the chief."""
    import tensorflow as tf

    divide_cpu(cluster.config.devices)
    if cluster.strategy == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if not cluster.is_chief:
        server = tf.distribute.Server(resolver.cluster_spec(), cluster.job, cluster.index, protocol="grpc")
        (folder / READY).touch()
        server.join()
    # Keras says so once an epoch of a model whose loss is the last step's, which it is under every strategy.
    tf.get_logger().addFilter(lambda record: "Could not get Model metric results" not in record.getMessage())
    partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(
        cluster.config.min_shard_bytes, max_shards=len(cluster.jobs["ps"])
    )
    return tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)


def divide_cpu(devices: int) -> None:
    """Divides the CPU into logical devices, where there is no GPU; before TensorFlow has done anything.

    Raises:
      ShortlistError: afterwards.
    """
    import tensorflow as tf

    (cpu,), gpus = tf.config.list_physical_devices("CPU"), tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # several processes share it
    if devices > 1 and not gpus:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
        except RuntimeError:
            raise ShortlistError(
                f"`cluster.devices` must be set before TensorFlow has begun. Received: {devices}, afterwards."
            ) from None


if __name__ == "__main__":
    from shortlist.components import _training

    code = _training.main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a server that waits for others would hold the end up
