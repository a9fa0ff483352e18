"""Which process of several this one is, by the standard variable TF_CONFIG, and whether the others are there."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic

from shortlist import ShortlistError
from shortlist.components._config import Config

TF_CONFIG = "TF_CONFIG"
Strategy = Literal["none", "mirrored", "multi_worker", "parameter_server"]
JOBS = {"multi_worker": ("chief", "worker"), "parameter_server": ("chief", "worker", "ps")}
"""The roles that a process can have, by the strategies that several processes share."""
EXAMPLE = '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}'
PAUSE = 0.2
"""Seconds between two looks at what another process does."""


class ClusterConfig(Config):
    """What training on several devices or machines needs beside a strategy. None of it changes what is learned.

    Args:
      timeout: seconds that a process waits for another one that is not there, at the start or after it was lost.
      devices: on a machine without a GPU, how many logical devices its CPU is divided into, each a replica.
      min_shard_bytes: of a table, that each parameter server takes at least.
    """

    timeout: float = pydantic.Field(600.0, gt=0)
    devices: int = pydantic.Field(1, ge=1, le=64)
    min_shard_bytes: int = pydantic.Field(256 << 10, ge=1)


@dataclass(frozen=True)
class Cluster:
    """The processes that train together.

    Args:
      strategy: "multi_worker" or "parameter_server".
      jobs: addresses `host:port` by role.
      job, index: the role of this process, and its number among those that have it.
      config: see there.
    """

    strategy: str
    jobs: Mapping[str, list[str]]
    job: str
    index: int
    config: ClusterConfig

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what they make: the chief, or worker 0 where no process has that role."""
        return (self.job, self.index) == self.chief

    @property
    def chief(self) -> tuple[str, int]:
        """Role and number of the chief."""
        return ("chief" if "chief" in self.jobs else "worker", 0)

    @property
    def trains(self) -> bool:
        """Whether this process runs the trainer; workers and servers of a chief that does all of it don't."""
        return self.strategy == "multi_worker" or self.is_chief

    def name(self, job: str, index: int) -> str:
        """What messages call a process."""
        return f"{job} {index} at {self.jobs[job][index]}"

    def absent(self) -> list[str]:
        """The names of the other processes that accept no connection."""
        found = []
        for job, addresses in self.jobs.items():
            for index, address in enumerate(addresses):
                host, _, port = address.rpartition(":")
                if (job, index) == (self.job, self.index):
                    continue
                try:
                    socket.create_connection((host, int(port)), timeout=2).close()
                except OSError:
                    found.append(self.name(job, index))
        return found

    def missing(self, found: list[str]) -> ShortlistError:
        """What is said when others did not come in time."""
        others = ", ".join(found) or "the others"
        return ShortlistError(
            f"`{TF_CONFIG}` names {others}, which did not come within {self.config.timeout:g} seconds. Start the same "
            "command there, or wait longer: --set cluster.timeout=3600. What is finished is kept. Received: this is "
            f"{self.name(self.job, self.index)}."
        )

    def wait_for_chief(self, there: Callable[[], bool], workdir: Path) -> None:
        """Waits until `there`, for as long as the chief has the run's folder.

        Raises:
          ShortlistError: if the chief is gone, or never comes.
        """
        last = time.monotonic()
        while not there():
            if _is_held(workdir / CHIEF_LOCK):
                last = time.monotonic()
            elif time.monotonic() > last + self.config.timeout and not there():
                raise self.missing([self.name(*self.chief)])
            time.sleep(PAUSE)


CHIEF_LOCK = ".chief"
"""The file in the run's folder that the chief has locked as long as it runs."""


def _is_held(lock: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), lock.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_cluster(strategy: str, config: ClusterConfig | None = None) -> Cluster | None:
    """The cluster of a strategy, as `TF_CONFIG` describes it; None where one process is all there is.

    "multi_worker" without the variable, or with one process in it, is that too, so that a configuration of a cluster
    runs on a laptop.

    Raises:
      ShortlistError: for a variable that is missing or says anything else.
    """
    if strategy not in JOBS:
        return None
    text = os.environ.get(TF_CONFIG, "").strip()
    if not text:
        if strategy == "multi_worker":
            return None
        raise ShortlistError(
            f"`{TF_CONFIG}` must name the chief, the workers and the servers of parameter_server. Set it in each "
            "process, or take --strategy none. Received: nothing."
        )
    jobs, job, index = _parsed(text, strategy)
    if strategy == "multi_worker" and sum(map(len, jobs.values())) == 1:
        return None
    return Cluster(strategy, jobs, job, index, config or ClusterConfig())


def _parsed(text: str, strategy: str) -> tuple[dict[str, list[str]], str, int]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise _refused(f"must be JSON, such as {EXAMPLE}: {error}", text) from None
    jobs, task = (values.get(key) for key in ("cluster", "task")) if isinstance(values, dict) else (None, None)
    lists = isinstance(jobs, dict) and all(isinstance(a, list) and a for a in jobs.values()) and len(jobs) > 0
    if not lists or not isinstance(task, dict) or not isinstance(task.get("type"), str):
        rule = "must have `cluster`, the addresses of each role, and `task`, the type and index of this process"
        raise _refused(f"{rule}, such as {EXAMPLE}", text)
    assert isinstance(jobs, dict)
    known = JOBS[strategy]
    for job in (*jobs, task["type"]):
        if job not in known:
            raise _refused(f"can have the roles {', '.join(known)} with --strategy {strategy}", job)
    for address in (a for addresses in jobs.values() for a in addresses):
        host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise _refused("must have addresses of the form host:port", address)
    every = [a for addresses in jobs.values() for a in addresses]
    if len(set(every)) < len(every):
        raise _refused("must give each process an address of its own", next(a for a in every if every.count(a) > 1))
    for job, most in (("chief", 1), ("worker", 2**16), ("ps", 2**16)):
        least = int(strategy == "parameter_server")
        if not least <= len(jobs.get(job, ())) <= most:
            rule = "needs one chief, and at least one worker and one ps" if least else "can have one chief"
            raise _refused(f"{rule} with --strategy {strategy}", {name: len(a) for name, a in jobs.items()})
    job, index = task["type"], task.get("index", 0)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(jobs.get(job, ())):
        rule = f"must hold the address of this process, number `task.index` of `cluster.{job}`"
        raise _refused(rule, f"index {index!r} of {len(jobs.get(job, ()))} addresses")
    return jobs, job, index


def _refused(rule: str, received: Any) -> ShortlistError:
    return ShortlistError(f"`{TF_CONFIG}` {rule}. Received: {received}.")
