"""Processes of one search on this machine: KerasTuner's chief, its workers, and who starts them again."""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shortlist import ShortlistError

IP, PORT, TUNER_ID = "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT", "KERASTUNER_TUNER_ID"
SUPERVISOR = "SHORTLIST_SUPERVISOR"
"""The process id of who started this one."""
CHIEF = "chief"
PAUSE = 0.2
MOST_DEATHS = 5
"""Deaths one after the other with nothing achieved in between, before the search is given up."""


@dataclass
class _Process:
    name: str
    log: Path
    child: subprocess.Popen[bytes] | None = None
    deaths: int = field(default=0)

    def start(self, command: Sequence[str], environment: dict[str, str]) -> None:
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def code(self) -> int | None:
        return self.child.poll() if self.child else None

    def last_words(self) -> str:
        lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"


def supervise(command: Sequence[str], workers: int, logs: Path, progress: Callable[[], object]) -> None:
    """Runs a chief and workers until the workers find nothing left to do.

    A process that dies is started again under its id, to which the chief gives the trial that it had; the chief goes on
    from its file. They listen on loopback only.

    Args:
      command: what each of them runs; KerasTuner's environment variables tell it which one it is.
      workers: their number.
      logs: folder of what they print.
      progress: something that changes whenever a trial began or ended.

    Raises:
      ShortlistError: if they die again and again without any progress.
    """
    logs.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        IP: "127.0.0.1",
        PORT: str(_free_port()),
        SUPERVISOR: str(os.getpid()),
        "no_grpc_proxy": "127.0.0.1",  # the way to a chief on this machine is never through a proxy
    }
    names = [CHIEF, *(f"worker{number}" for number in range(workers))]
    processes = [_Process(name, logs / f"{name}.log") for name in names]
    with _ended(processes):
        for process in processes:
            process.start(command, {**environment, TUNER_ID: process.name})
        seen = progress()
        while any(process.code() != 0 for process in processes[1:]):
            time.sleep(PAUSE)
            for process in processes:
                code = process.code()
                if code is None or (code == 0 and process.name != CHIEF):
                    continue
                if code == 0:  # the chief has told everybody that it is over; who is still asking waits in vain
                    _wait(processes[1:], 10)
                    return
                now = progress()
                process.deaths, seen = (1 if now != seen else process.deaths + 1), now
                if process.deaths >= MOST_DEATHS:
                    raise ShortlistError(
                        f"`--workers` die again and again: {process.name} with exit code {code}. See {process.log}. "
                        f"Received: {process.last_words()}"
                    )
                process.start(command, {**environment, TUNER_ID: process.name})


class _ended:
    """Ends the processes that are still there when the block does."""

    def __init__(self, processes: Sequence[_Process]):
        self.processes = processes

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.child and process.child.poll() is None:
                process.child.terminate()
        _wait(self.processes, 10)
        for process in self.processes:
            if process.child and process.child.poll() is None:
                process.child.kill()
                process.child.wait()


def _wait(processes: Sequence[_Process], seconds: float) -> None:
    end = time.time() + seconds
    for process in processes:
        if process.child:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.child.wait(max(0.0, end - time.time()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_with_supervisor() -> None:
    """Has this process end soon after the one that supervises it, if there is one and it is killed.

    Else a sweep that is resumed would find the chief and the workers of the killed one beside its own.
    """
    supervisor = int(os.environ.get(SUPERVISOR, 0))

    def watch() -> None:
        while os.getppid() == supervisor:
            time.sleep(PAUSE)
        os._exit(1)

    if supervisor:
        threading.Thread(target=watch, name="supervisor", daemon=True).start()


def keep_asking(client: Any) -> None:
    """Has KerasTuner's client of a chief ask once more where the chief died with the question.

    It waits for a chief that isn't there, but takes a broken connection for the failure of a trial.
    """
    import grpc
    from keras_tuner.src import protos

    again = {
        "maxAttempts": 5,
        "initialBackoff": "1s",
        "maxBackoff": "10s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    options = [("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": again}]}))]
    channel = grpc.insecure_channel(f"{os.environ[IP]}:{os.environ[PORT]}", options)
    client.stub = protos.get_service_grpc().OracleStub(channel)


def role() -> str | None:
    """Which process of a search KerasTuner's environment variables make this one: its id, or None for a lone one.

    Raises:
      ShortlistError: if only some of them are set.
    """
    found = {name: os.environ.get(name) for name in (IP, PORT, TUNER_ID)}
    if not any(found.values()):
        return None
    if not all(found.values()):
        missing = ", ".join(name for name, value in found.items() if not value)
        raise ShortlistError(f"`{IP}`, `{PORT}` and `{TUNER_ID}` belong together. Set {missing} too, or none of them.")
    return found[TUNER_ID]


def is_chief(identity: str | None) -> bool:
    """As KerasTuner tells it."""
    return identity is not None and CHIEF in identity
