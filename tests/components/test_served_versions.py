"""The server of a bundle: its own client, another server behind it, another version, and the end."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import refused
from half_model import Half
from server_process import Server, serving

from shortlist.components._serving_files import serving_files
from shortlist.components.pusher import publish, rollback


@pytest.fixture(scope="module")
def versions(served: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of versions as the Pusher leaves it."""
    bundle = served["Exporter"]
    files = serving_files("shortlist", bundle.read_json("requests.json"), (bundle / "signatures.md").read_text("utf-8"))
    home = tmp_path_factory.mktemp("pushed") / "shortlist"
    publish(bundle / "saved_model", home, 5, files)
    return home


@pytest.fixture(scope="module")
def bundle_server(versions: Path) -> Iterator[Server]:
    with serving(versions) as server:
        yield server


def test_the_bundles_client_works_unchanged(bundle_server: Server, versions: Path, served: dict[str, Any]) -> None:
    host = bundle_server.url.removeprefix("http://")
    done = subprocess.run(
        [sys.executable, str(versions / "client.py"), "--host", host], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    records = served["Exporter"].read_json("requests.json")
    first = {r["signature_name"]: r["outputs"] for r in reversed(records["requests"])}
    assert sorted(found) == records["signatures"]
    for name, outputs in first.items():
        for key, values in outputs.items():
            assert same(found[name][key], values), (name, key)


def same(got: Any, expected: Any) -> bool:
    """Text and counts exactly, numbers to 1e-6 of their size."""
    wanted, found = np.array(expected), np.array(got)
    if wanted.dtype.kind == "f":
        return found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-6, atol=0)
    return got == expected


def test_every_recorded_request_is_answered_as_recorded(bundle_server: Server, served: dict[str, Any]) -> None:
    for record in served["Exporter"].read_json("requests.json")["requests"]:
        request = {key: record[key] for key in ("signature_name", "inputs")}
        status, answer = bundle_server.predict(request)
        assert status == 200, answer
        outputs = (
            answer["outputs"] if len(record["outputs"]) > 1 else {next(iter(record["outputs"])): answer["outputs"]}
        )
        for key, values in record["outputs"].items():
            assert same(outputs[key], values), (record, key)


def test_a_wrong_batch_is_the_clients_fault(bundle_server: Server) -> None:
    inputs = {"item": ["a", "b"], "k": [1]}
    status, answer = bundle_server.predict({"signature_name": "similar_items", "inputs": inputs})
    assert status == 400
    assert "must have one row a request" in answer["error"] or "shape" in answer["error"].lower()


def test_an_example_that_is_none_is_the_clients_fault(bundle_server: Server) -> None:
    status, answer = bundle_server.predict({"instances": [{"b64": "AAAA"}]})
    assert status == 400
    assert "parse" in answer["error"].lower()


@pytest.fixture(scope="module")
def passing(bundle_server: Server, versions: Path) -> Iterator[Server]:
    """A server that passes on to the other one."""
    with serving(versions, "--backend", bundle_server.url) as server:
        yield server


def test_requests_are_passed_on(bundle_server: Server, passing: Server) -> None:
    request = {"signature_name": "recommend", "inputs": SHORT}
    assert passing.predict(request) == bundle_server.predict(request)
    for path in ("/v1/models/shortlist", "/v1/models/shortlist/metadata", "/v1/models/other", "/v1/models/a:predict"):
        assert passing.get(path) == bundle_server.get(path)
    assert passing.predict(b"{") == bundle_server.predict(b"{")
    assert passing.post("/page/recommend", {})[1] == bundle_server.post("/page/recommend", {})[1]


def test_a_backend_that_is_not_there_is_named(versions: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(versions, "--backend", f"http://127.0.0.1:{port}") as server:
        expected = (502, {"error": "TF Serving cannot be asked: Connection refused."})
        assert server.get("/v1/models/shortlist") == expected
        assert server.post("/page/recommend", {}) == expected
        assert server.get("/page/items")[0] == 200  # titles are read here


SHORT = {
    "user": ["usér 3"],
    "history": [[""]],
    "exclude": [[""]],
    "time": [-1],
    "k": [5],
    "context_place": [""],
}


# --- another version, and the end ------------------------------------------------------------------------------------


def half_versions(folder: Path, numbers: int) -> list[Path]:
    return [Half(float(n)).save(folder / f"half {n}") for n in range(1, numbers + 1)]


class Load:
    """Clients that ask one after the other until they are told to stop."""

    def __init__(self, server: Server, clients: int = 4):
        self.answers: list[Any] = []
        self.failures: list[Any] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server,)) for _ in range(clients)]

    def _ask(self, server: Server) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(server.predict({"instances": [2.0, 4.0]}))
            except OSError as error:
                self.failures.append(error)
                return

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_another_version_takes_over_and_no_request_fails(tmp_path: Path) -> None:
    first, second, third = half_versions(tmp_path, 3)
    home = tmp_path / "home"
    publish(first, home, 5)

    def number() -> str:
        return server.get("/v1/models/shortlist")[1]["model_version_status"][0]["version"]

    with serving(home) as server:
        with Load(server) as load:
            wait_for(lambda: load.answers)
            publish(second, home, 5)
            wait_for(lambda: (200, {"predictions": [3.0, 4.0]}) in load.answers)
            assert server.post("/v1/models/shortlist/versions/1:predict", {"instances": [2.0]})[0] == 404
            rollback(home)
            since = len(load.answers)
            wait_for(lambda: (200, {"predictions": [2.0, 3.0]}) in load.answers[since:] and number() == "1")
            publish(third, home, 5)
            wait_for(lambda: (200, {"predictions": [4.0, 5.0]}) in load.answers)
        assert not load.failures
        right = [(200, {"predictions": [1.0 + n, 2.0 + n]}) for n in (1, 2, 3)]
        assert all(answer in right for answer in load.answers)
        # A version that cannot be loaded is named, and the one before answers.
        shutil.copytree(home / "3", tmp_path / "broken")
        (tmp_path / "broken" / "saved_model.pb").write_bytes(b"broken")
        os.rename(tmp_path / "broken", home / "4")
        wait_for(lambda: len(server.get("/v1/models/shortlist")[1]["model_version_status"]) == 2)
        wait_for(lambda: server.get("/v1/models/shortlist/versions/4")[1]["model_version_status"][0]["state"] == "END")
        assert server.predict({"instances": [2.0]}) == (200, {"predictions": [4.0]})
        shutil.rmtree(home / "4")
        shutil.rmtree(home / "3")
        wait_for(lambda: number() == "1")
    assert "Version 2 answers, in place of 1." in server.logged
    assert server.logged.count("A version must be a SavedModel that TensorFlow can load") == 1
    assert "Traceback" not in server.logged


def test_what_was_accepted_is_answered_before_the_end(tmp_path: Path) -> None:
    model = Half().save(tmp_path / "1")
    with serving(model) as server:
        with Load(server, clients=8) as load:
            wait_for(lambda: len(load.answers) > 50)
            assert server.stop() == 0
        accepted, answered = (int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", server.said.splitlines()[-1]))
    assert all(answer == (200, {"predictions": [4.0, 5.0]}) for answer in load.answers)
    assert accepted == answered == len(load.answers)
    assert all(isinstance(error, ConnectionError) for error in load.failures)


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    nothing = "`shortlist serve` takes the folder of a finished run, of a pushed model's versions, of a bundle or of a "
    assert refused("serve", tmp_path).startswith(nothing)
    assert refused("serve", tmp_path / "none").startswith(nothing)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    assert refused("serve", tmp_path, "--port", "0").startswith(
        "A version must be a SavedModel that TensorFlow can load"
    )
    assert refused("serve", tmp_path, "--backend", "ftp://x").startswith(
        "`--backend` must be `embedded`, or the address"
    )
    assert refused("serve", tmp_path, "--backend", "http://x:port").startswith("`--backend` must be `embedded`")
    assert refused("serve", tmp_path, "--name", "a/b").startswith("`name` of `serve`")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"Received: 127.0.0.1, {port}." in refused("serve", tmp_path, "--port", str(port))
