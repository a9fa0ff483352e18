"""What lies beside a pushed model: TF Serving's own messages read its configurations, and its client is answered."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from shortlist.components._replay import answer, differences
from shortlist.components._serving_files import IMAGE, MAX_BATCH, NAMES, serving_files


@pytest.fixture(scope="module")
def files(served: dict[str, Any]) -> dict[str, str]:
    bundle = served["Exporter"]
    return serving_files("films", bundle.read_json("requests.json"), (bundle / "signatures.md").read_text("utf-8"))


@pytest.fixture(scope="module")
def functions(served: dict[str, Any]) -> Any:
    return tf.saved_model.load(str(served["Exporter"] / "saved_model")).signatures


def test_the_files_are_those_that_are_promised(served: dict[str, Any], files: dict[str, str]) -> None:
    assert tuple(files) == NAMES
    assert files["signatures.md"] == (served["Exporter"] / "signatures.md").read_text("utf-8")
    assert f"-e MODEL_NAME=shortlist {IMAGE}\n" in files["signatures.md"]


def test_tensorflow_serving_reads_the_configurations(files: dict[str, str]) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2").ModelServerConfig()
    (model,) = text_format.Parse(files["models.config"], config).model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("films", "/models/films", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1


def test_the_batching_is_of_the_documented_fields_and_does_not_pad(files: dict[str, str]) -> None:
    """BatchingParameters has these fields; padding would repeat a list's first id."""
    lines = [line for line in files["batching.config"].splitlines() if not line.startswith("#")]
    assert lines == [
        f"max_batch_size {{ value: {MAX_BATCH} }}",
        "batch_timeout_micros { value: 2000 }",
        "max_enqueued_batches { value: 100 }",
        "num_batch_threads { value: 4 }",
        "pad_variable_length_inputs: false",
    ]


def test_the_compose_file_mounts_the_folder_where_the_configurations_look(files: dict[str, str]) -> None:
    yaml = pytest.importorskip("yaml")
    service = yaml.safe_load(files["docker-compose.yaml"])["services"]["films"]
    assert service["image"] == IMAGE
    assert service["volumes"] == [".:/models/films:ro"]
    flags = dict(flag.removeprefix("--").split("=") for flag in service["command"])
    assert flags.pop("tensorflow_intra_op_parallelism") == "1"
    assert {Path(path).name for path in flags.values()} == {"models.config", "monitoring.config"}
    assert all(Path(path).parent == Path("/models/films") and Path(path).name in files for path in flags.values())


class Server(BaseHTTPRequestHandler):
    """Answers as TF Serving's REST interface does, from `functions`."""

    functions: Any

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/models/films:predict"
        try:
            found = answer(self.functions[asked["signature_name"]], asked["inputs"])
        except Exception as error:
            body, code = {"error": str(error)}, 400
        else:
            outputs = {name: value.tolist() for name, value in found.items()}
            body, code = {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}, 200
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def rest_host(functions: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Given", (Server,), {"functions": functions}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def grpc_host(functions: Any) -> Iterator[str]:
    grpc = pytest.importorskip("grpc")
    apis = pytest.importorskip("tensorflow_serving.apis")
    service = pytest.importorskip("tensorflow_serving.apis.prediction_service_pb2_grpc")

    class Service(service.PredictionServiceServicer):
        def Predict(self, request: Any, context: Any) -> Any:
            function = functions[request.model_spec.signature_name]
            inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
            response = apis.predict_pb2.PredictResponse()
            for name, value in function(**inputs).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return response

    server = grpc.server(futures.ThreadPoolExecutor(2))
    service.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def client(folder: Path, files: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "client.py").write_text(files["client.py"], "utf-8")
    command = [sys.executable, str(folder / "client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=200)


@pytest.mark.parametrize("over", ["rest", "grpc"])
def test_the_client_asks_every_signature(
    over: str, tmp_path: Path, files: dict[str, str], served: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    host = request.getfixturevalue(f"{over}_host")
    done = client(tmp_path, files, "--host", host, *(["--grpc"] if over == "grpc" else []))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    recorded = served["Exporter"].read_json("requests.json")
    first = {r["signature_name"]: r["outputs"] for r in reversed(recorded["requests"])}
    assert [name for line in lines for name in line] == sorted(recorded["signatures"])
    for line in lines:
        ((name, outputs),) = line.items()
        kinds = {
            key: np.array(value, object if isinstance(np.ravel(value)[0], str) else None)
            for key, value in outputs.items()
        }
        assert differences(name, first[name], kinds) == []


def test_the_client_says_what_the_server_refuses(tmp_path: Path, files: dict[str, str], rest_host: str) -> None:
    done = client(tmp_path, files, "rank", '{"user": ["a"]}', "--host", rest_host)
    assert done.returncode == 1
    assert done.stderr.startswith("400: ")
    assert "Traceback" not in done.stderr


def test_the_rest_client_needs_nothing_but_python(tmp_path: Path, files: dict[str, str], rest_host: str) -> None:
    (tmp_path / "client.py").write_text(files["client.py"], "utf-8")
    command = [sys.executable, "-I", "-S", str(tmp_path / "client.py"), "similar_items", "--host", rest_host]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["similar_items"]) == {"items", "scores", "count"}
