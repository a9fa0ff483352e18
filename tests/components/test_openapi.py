"""The server against whatever its OpenAPI document allows, and what it doesn't: nothing fails, nothing hangs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import serving

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)


@pytest.mark.slow
def test_no_request_that_schemathesis_makes_is_too_much(served, tmp_path: Path) -> None:
    with serving(served["Exporter"] / "saved_model") as server:
        status, document = server.get("/openapi.json")
        assert status == 200
        assert {path for path in document["paths"] if path.startswith("/page")} == {
            f"/page/{name}" for name in ("model", "items", "users", "recommend", "similar")
        }
        assert sum(path.startswith("/v1/models/{model}") for path in document["paths"]) == 6
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", f"{server.url}/openapi.json", "--checks", ",".join(CHECKS), "--max-examples", "15", "--seed", "1"),
            *(
                "--phases",
                "examples,coverage,fuzzing",
                "--request-timeout",
                "15",
                "--continue-on-failure",
                "--no-color",
            ),
            *("--generation-database", "none"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        made = re.search(r"(\d[\d,]*) generated", done.stdout)
        assert made, done.stdout[-2000:]
        assert int(made[1].replace(",", "")) > 200
        assert server.get("/v1/models/shortlist")[0] == 200
    assert "Traceback" not in server.logged
    assert "failed:" not in server.logged
