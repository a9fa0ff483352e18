"""The server as a process: TF Serving's interface to any model, the bundle's own client, reload, stop and limits."""

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
import tensorflow as tf
from cli_cases import refused
from server_process import Server, serving

from shortlist.components._serving_files import serving_files
from shortlist.components.pusher import publish, rollback

FLOATS = tf.TensorSpec([None], tf.float32, "x")
LABELLED = {"x": 1.0}


class Half(tf.Module):
    """The models of TF Serving's documentation, and signatures that fail or take their time."""

    def __init__(self, plus: float = 3.0):
        super().__init__()
        self.plus = tf.Variable(plus)

    @tf.function(input_signature=[FLOATS])
    def half(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x / 2 + self.plus}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, "tag"),
            tf.TensorSpec([None, 5], tf.int64, "signal"),
            tf.TensorSpec([None, 2, 2], tf.float32, "sensor"),
        ]
    )
    def named(self, tag: tf.Tensor, signal: tf.Tensor, sensor: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"tag": tag, "total": tf.reduce_sum(signal, 1), "sensor": sensor, "tag_bytes": tag}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def echo(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"text_bytes": text}

    @tf.function(input_signature=[FLOATS])
    def refuse(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_less(x, 1.0, "`x` must be below 1.")]):
            return {"y": tf.identity(x)}

    @tf.function(input_signature=[FLOATS])
    def slow(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        passes = tf.cast(x[0], tf.int32)
        value = tf.while_loop(lambda n, _: n < passes, lambda n, v: (n + 1, tf.sin(v)), (0, tf.ones([256])))[1]
        return {"y": value[:1]}

    def save(self, folder: Path) -> Path:
        own = {name: getattr(self, name) for name in ("named", "echo", "refuse", "slow")}
        tf.saved_model.save(self, str(folder), signatures={"serving_default": self.half, **own})
        return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = Half().save(tmp_path_factory.mktemp("half") / "123")
    limits = ("--max-body", "20000", "--max-batch", "50", "--max-k", "100", "--timeout", "2")
    with serving(model, "--name", "half_plus_three", *limits) as server:
        yield server


def predict(server: Server, request: Any) -> tuple[int, Any]:
    return server.predict(request, "half_plus_three")


# --- TF Serving's documentation --------------------------------------------------------------------------------------


def test_the_status_of_a_model(half: Server) -> None:
    state = {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert half.get("/v1/models/half_plus_three") == (200, {"model_version_status": [state]})
    assert half.get("/v1/models/half_plus_three/versions/123") == (200, {"model_version_status": [state]})


def test_the_metadata_of_a_model(half: Server) -> None:
    status, found = half.get("/v1/models/half_plus_three/metadata")
    assert status == 200
    assert found["model_spec"] == {"name": "half_plus_three", "signature_name": "", "version": "123"}
    signatures = found["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) >= {"serving_default", "named", "echo"}
    default = signatures["serving_default"]
    assert default["method_name"] == "tensorflow/serving/predict"
    assert default["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert default["inputs"]["x"]["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert half.get("/v1/models/half_plus_three/versions/123/metadata") == (200, found)


def test_rows_and_columns_of_a_single_input(half: Server) -> None:
    assert predict(half, {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [3.5, 4.0, 5.5]})
    assert predict(half, {"inputs": [3.0, 4.0]}) == (200, {"outputs": [4.5, 5.0]})
    named = {"signature_name": "serving_default", "inputs": {"x": [3.0, 4.0]}}
    assert half.post("/v1/models/half_plus_three/versions/123:predict", named) == (200, {"outputs": [4.5, 5.0]})


ROWS = [
    {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
    {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]},
]
ANSWERS = [
    {"tag": "foo", "total": 15, "sensor": [[1.0, 2.0], [3.0, 4.0]], "tag_bytes": {"b64": "Zm9v"}},
    {"tag": "bar", "total": 15, "sensor": [[4.0, 5.0], [6.0, 8.0]], "tag_bytes": {"b64": "YmFy"}},
]


def test_rows_and_columns_of_named_inputs(half: Server) -> None:
    assert predict(half, {"signature_name": "named", "instances": ROWS}) == (200, {"predictions": ANSWERS})
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    expected = {name: [row[name] for row in ANSWERS] for name in ANSWERS[0]}
    assert predict(half, {"signature_name": "named", "inputs": columns}) == (200, {"outputs": expected})


def test_bytes_come_and_go_in_base_64(half: Server) -> None:
    request = {"signature_name": "echo", "instances": [{"b64": "AP8="}, "é"]}
    assert predict(half, request) == (200, {"predictions": [{"b64": "AP8="}, {"b64": "w6k="}]})


def test_numbers_that_json_does_not_know(half: Server) -> None:
    status, found = predict(half, b'{"instances": [NaN, Infinity, -Infinity]}')
    assert status == 200
    assert json.dumps(found) == '{"predictions": [NaN, Infinity, -Infinity]}'


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/v1/models/half:predict", b'{"instances": [1]}', 404, "Servable not found for request: Latest(half)"),
        (
            "POST",
            "/v1/models/half_plus_three/versions/7:predict",
            b'{"instances": [1]}',
            404,
            "Servable not found for request: Specific(half_plus_three, 7)",
        ),
        ("GET", "/v1/models/half", None, 404, "Could not find any versions of model half"),
        (
            "GET",
            "/v1/models/half_plus_three/versions/7",
            None,
            404,
            "Could not find version 7 of model half_plus_three",
        ),
        ("GET", "/v1/models/half/metadata", None, 404, "Servable not found for request: Latest(half)"),
        ("GET", "/v1/models", None, 400, "Missing model name in request."),
        ("GET", "/v1/models/a:predict", None, 400, "Malformed request: GET /v1/models/a:predict"),
        ("PUT", "/v1/models/a:predict", b"{}", 400, "Malformed request: PUT /v1/models/a:predict"),
        ("POST", "/v1/models/half_plus_three:predict", b"", 400, "JSON Parse error: The document is empty"),
        (
            "POST",
            "/v1/models/half_plus_three:predict",
            b"instances = [1, 2]",
            400,
            "JSON Parse error: Invalid value. at offset: 0",
        ),
        (
            "POST",
            "/v1/models/half_plus_three:predict",
            b'{"signature_name": "none", "instances": [1]}',
            400,
            'Serving signature name: "none" not found in signature def',
        ),
        (
            "POST",
            "/v1/models/half_plus_three:predict",
            b'{"instances": ["x"]}',
            400,
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"x\" Type: String "
            "is not of expected type: float",
        ),
        (
            "POST",
            "/v1/models/half_plus_three:predict",
            b'{"signature_name": "refuse", "instances": [2]}',
            400,
            "assertion failed: [`x` must be below 1.]",
        ),
        (
            "POST",
            "/v1/models/half_plus_three/labels/canary:predict",
            b'{"instances": [1]}',
            400,
            "Unrecognized servable version label: canary",
        ),
        (
            "POST",
            "/v1/models/half_plus_three:classify",
            b'{"examples": [{"x": 1}]}',
            400,
            "Expected classification signature method_name to be tensorflow/serving/classify. Was: "
            "tensorflow/serving/predict",
        ),
    ],
)
def test_errors(half: Server, method: str, path: str, body: bytes | None, status: int, message: str) -> None:
    got, found, headers = half.send(method, path, body)
    assert got == status
    assert headers["content-type"] == "application/json"
    error = json.loads(found)
    assert list(error) == ["error"]
    assert error["error"].startswith(message) if message.startswith("assertion") else error["error"] == message


def test_an_input_of_another_rank_is_refused(half: Server) -> None:
    status, found = predict(half, {"inputs": [[1.0]]})
    assert status == 400
    assert "shape" in found["error"]
    assert "/" not in found["error"]  # no path of this machine


# --- limits ----------------------------------------------------------------------------------------------------------


def test_what_is_beyond_the_limits_is_refused(half: Server) -> None:
    assert predict(half, {"instances": [1.0] * 50})[0] == 200
    text = "A request must have at most 50 rows here (--max-batch). Received: 51."
    assert predict(half, {"instances": [1.0] * 51}) == (400, {"error": text})
    assert predict(half, {"inputs": {"k": [3_000_000_000]}}) == (
        400,
        {"error": "`k` must be at most 100 here (--max-k). Received: 3000000000."},
    )
    text = "The body must have at most 20,000 bytes here (--max-body)."
    assert predict(half, b" " * 20_001) == (413, {"error": text})


def test_a_body_that_does_not_say_its_length_is_bounded_too(half: Server) -> None:
    with socket.create_connection(("127.0.0.1", half.port), timeout=30) as wire:
        wire.sendall(
            b"POST /v1/models/half_plus_three:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(30):
            wire.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        assert wire.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_request_that_does_not_arrive_is_given_up(half: Server) -> None:
    with socket.create_connection(("127.0.0.1", half.port), timeout=30) as wire:
        wire.sendall(b"POST /v1/models/half_plus_three:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        started = time.monotonic()
        answer = wire.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert 1.5 < time.monotonic() - started < 10


def test_an_answer_that_takes_too_long_is_given_up_while_others_go_on(half: Server) -> None:
    found: list[tuple[int, Any]] = []
    slow = {"signature_name": "slow", "instances": [1e9]}
    thread = threading.Thread(target=lambda: found.append(predict(half, slow)))
    thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    assert predict(half, {"instances": [1.0]}) == (200, {"predictions": [3.5]})
    assert time.monotonic() - started < 1.5
    thread.join(30)
    (answer,) = found
    assert answer[0] == 504
    assert "within" in answer[1]["error"]


# --- safety ----------------------------------------------------------------------------------------------------------


def test_a_path_reaches_neither_the_files_nor_the_log(half: Server) -> None:
    for path in (
        "/v1/models/..%2F..%2F..%2Fetc%2Fpasswd",
        "/v1/models/half_plus_three/versions/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%0aForged line",
        "/page.css/../../setup.py",
    ):
        status, body, _ = half.send("GET", path.replace(" ", "%20"))
        assert status in (400, 404)
        assert b"root:" not in body
        assert json.loads(body)["error"]


def test_a_model_without_titles_says_so_on_the_page(half: Server) -> None:
    text = "This model was exported without titles: export it again to look at it here."
    assert half.get("/page/model") == (404, {"error": text})
    status, body, headers = half.send("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert body.startswith(b"<!DOCTYPE html>")


# --- the bundle and its client ---------------------------------------------------------------------------------------


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


def test_what_was_accepted_is_answered_before_the_end(half: Server, tmp_path: Path) -> None:
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
