"""Processes that train together on this machine, for the benchmarks: their start, their steps, and what they send."""

import itertools
import json
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import tensorflow as tf
from cluster_cases import Processes

from shortlist.components import _training
from shortlist.components._cluster import Cluster, ClusterConfig, read_cluster
from shortlist.trainers._common import ALONE, Share

RECEIVED, SENT = 128, 200
"""Where `struct tcp_info` of Linux holds the bytes that came in and that went out."""
Batches = Callable[[Share], tf.data.Dataset]


def together(program: str, arguments: Sequence[str], roles: Mapping[str, int], timeout: float) -> list[Any]:
    """What the processes that train print as JSON in their last line, the chief first.

    Each runs `program` with TF_CONFIG, the arguments and, last, a folder that all share.
    """
    with tempfile.TemporaryDirectory() as folder, Processes(roles, Path(folder)) as processes:
        processes.start_all([sys.executable, program, *arguments, folder])
        first = "chief" if "chief" in roles else "worker"
        names = [f"{first}{index}" for index in range(roles[first])]
        return [json.loads(processes.ended(name, timeout).splitlines()[-1]) for name in names]


def joined(strategy: str, folder: Path, config: ClusterConfig) -> tuple[Any, Cluster]:
    """The strategy of this process and its cluster; one that only serves the chief does not return."""
    cluster = read_cluster(strategy, config)
    assert cluster is not None
    return _training._joined(cluster, folder), cluster


def say(found: Any) -> None:
    """Prints the last line, and ends: a server that waits for others would hold the end up."""
    print(json.dumps(found), flush=True)
    os._exit(0)


def through(step: Callable[[Any], Any], ready: Sequence[Any]) -> Callable[[], float]:
    """Goes through batches that are ready, a step each; returns seconds a step."""

    def run() -> float:
        started = time.perf_counter()
        for one in ready:
            step(one)
        return (time.perf_counter() - started) / len(ready)

    return run


def replica_steps(strategy: Any, model: tf.keras.Model, batches: Batches, steps: int) -> Callable[[], float]:
    """Takes that many steps with the other replicas, on batches that are ready; returns seconds a step."""

    def part(context: tf.distribute.InputContext) -> tf.data.Dataset:
        replicas, local = context.num_replicas_in_sync, context.num_replicas_in_sync // context.num_input_pipelines
        return batches(Share(local * context.input_pipeline_id, local, replicas)).repeat()

    parts = iter(strategy.distribute_datasets_from_function(part))
    step = tf.function(lambda one: strategy.run(model.train_step, args=(one,)), reduce_retracing=True)
    return through(step, [next(parts) for _ in range(steps)])


def server_steps(strategy: Any, model: tf.keras.Model, batches: Batches, steps: int) -> Callable[[], float]:
    """As `replica_steps`, of the workers of parameter servers, which share the steps and hold the batches."""
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    ready = list(itertools.islice(batches(ALONE).repeat().as_numpy_iterator(), steps))
    stacked = tf.nest.map_structure(lambda *values: np.stack(values), *ready)
    each = iter(
        coordinator.create_per_worker_dataset(lambda: tf.data.Dataset.from_tensor_slices(stacked).cache().repeat())
    )
    step = tf.function(lambda worker: strategy.run(model.train_step, args=(next(worker),)))

    def run() -> float:
        started = time.perf_counter()
        for _ in range(steps):
            coordinator.schedule(step, args=(each,))
        coordinator.join()
        return (time.perf_counter() - started) / steps

    return run


def traffic() -> np.ndarray:
    """Bytes that came in through the TCP connections of this process, and that went out, int64 `[2]`."""
    total = np.zeros(2, np.int64)
    for link in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(link).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(link.name))) as own:
                info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # it is gone by now, or not TCP
            continue
        total += [struct.unpack_from("Q", info, place)[0] for place in (RECEIVED, SENT)]
    return total
