"""`shortlist serve` as a process, asked over HTTP."""

import contextlib
import http.client
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_run import command, environment


@dataclass
class Server:
    """A server that listens; what it said is whole once it has ended."""

    process: subprocess.Popen[str]
    url: str
    said: str = ""
    logged: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers, of a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, Any]:
        status, body, _ = self.send("GET", path)
        return status, json.loads(body)

    def post(self, path: str, request: Any) -> tuple[int, Any]:
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        status, found, _ = self.send("POST", path, body, {"Content-Type": "application/json"})
        return status, json.loads(found)

    def predict(self, request: Any, model: str = "shortlist") -> tuple[int, Any]:
        return self.post(f"/v1/models/{model}:predict", request)

    def stop(self) -> int:
        """Tells it to end, and waits for that; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        said, self.logged = self.process.communicate(timeout=60)
        self.said += said
        return self.process.returncode

    def memory(self) -> int:
        """Bytes that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Iterator[Server]:
    """The server of a model on a free port, until the block ends; it must then end well when it is told to."""
    arguments = command("serve", str(model), "--port", "0", *options)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stdout
    first = process.stdout.readline()
    found = re.match(r"Open (http://\S+:\d+)/ to try it", first)
    if not found:
        process.kill()
        raise AssertionError(f"{first}{process.communicate()[1]}")
    server = Server(process, found[1], first)
    try:
        yield server
        code = server.stop() if process.returncode is None else process.returncode
        assert code == 0, server.logged
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
