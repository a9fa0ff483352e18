"""The server as a process: TF Serving's interface to any model, limits, and what it lets nobody do."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from half_model import Half
from server_process import Server, serving


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
