"""Processes that train together, at addresses that nobody takes meanwhile, and what they said where one fails."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

LINES = 25
"""Of what each process said, where one fails."""


def tf_config(jobs: Mapping[str, list[str]], job: str, index: int) -> str:
    return json.dumps({"cluster": jobs, "task": {"type": job, "index": index}})


class Processes:
    """A cluster whose processes end with the block.

    A port is held by a socket that is bound and never listens, so nobody else is given it; TensorFlow's servers share
    it, which `TF_GRPC_REUSE_PORT` allows them to.

    Args:
      roles: how many processes have each role.
      folder: of what they say.
      environment: of each, beside TF_CONFIG.
    """

    def __init__(self, roles: Mapping[str, int], folder: Path, environment: Mapping[str, str] | None = None):
        self.folder, self.environment = folder, {**os.environ, **(environment or {}), "TF_GRPC_REUSE_PORT": "1"}
        self._open = ExitStack()
        self.jobs = {job: [f"127.0.0.1:{self._held()}" for _ in range(number)] for job, number in roles.items()}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def _held(self) -> int:
        held = self._open.enter_context(socket.socket())
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
        self._open.close()

    def start(self, command: Sequence[str], job: str, index: int = 0) -> None:
        """Starts a process, or starts it again."""
        name = f"{job}{index}"
        environment = {**self.environment, "TF_CONFIG": tf_config(self.jobs, job, index)}
        with (self.folder / f"{name}.out").open("ab") as out, (self.folder / f"{name}.err").open("ab") as err:
            self.running[name] = subprocess.Popen(command, stdout=out, stderr=err, env=environment)

    def start_all(self, command: Sequence[str]) -> None:
        for job, addresses in self.jobs.items():
            for index in range(len(addresses)):
                self.start(command, job, index)

    def kill(self, name: str) -> None:
        self.running[name].send_signal(signal.SIGKILL)
        self.running[name].wait()

    def ended(self, name: str, timeout: float, code: int = 0) -> str:
        """What a process printed, when it has ended as it should."""
        try:
            found = self.running[name].wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} did not end within {timeout:g} seconds.\n{self.said()}") from None
        assert found == code, f"{name} ended with {found}.\n{self.said()}"
        return (self.folder / f"{name}.out").read_text()

    def errors(self, name: str) -> str:
        """What a process said on standard error."""
        return (self.folder / f"{name}.err").read_text()

    def said(self) -> str:
        """The end of what each process said, and how it ended."""
        parts = []
        for name, process in self.running.items():
            lines = [*self.errors(name).splitlines(), *(self.folder / f"{name}.out").read_text().splitlines()]
            own = [line for line in lines if not line.startswith(("I0000", "W0000"))][-LINES:]
            parts.append("\n".join([f"--- {name}, exit code {process.poll()} ---", *own]))
        return "\n".join(parts)
