"""The bundle through TensorFlow's C API: a program that shares no line with the package answers as it does."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from shortlist.components import _native
from shortlist.components._native import CannotCompile, replay_program
from shortlist.components._prediction_log import WARMUP, prediction_log, write_logs
from shortlist.components.artifacts import Bundle
from shortlist.components.infra_validator import InfraValidator


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return replay_program()
    except CannotCompile as error:
        pytest.skip(f"No C program here: {error}")


@pytest.fixture
def model(served: dict[str, Any], tmp_path: Path) -> Path:
    """A copy, to be broken."""
    return Path(shutil.copytree(served["Exporter"].uri / "saved_model", tmp_path / "saved_model"))


def replay(program: Path, model: Path) -> tuple[int, list[str]]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([program, model], capture_output=True, text=True, env=environment, timeout=240)
    return done.returncode, done.stdout.splitlines()


def records(model: Path) -> list[Any]:
    return [prediction_log().FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(model / WARMUP))]


def first(logs: list[Any], signature: str) -> Any:
    return next(r.predict_log for r in logs if r.predict_log.request.model_spec.signature_name == signature)


def test_answers_every_recorded_request_of_every_signature(program: Path, served: dict[str, Any]) -> None:
    bundle = served["Exporter"]
    recorded = bundle.read_json("requests.json")
    assert {r["signature_name"] for r in recorded["requests"]} == set(recorded["signatures"])
    assert replay(program, bundle / "saved_model") == (0, [str(len(recorded["requests"]))])


def test_says_what_differs(program: Path, model: Path) -> None:
    """A score is off by 3e-6 and another by 3e-7, an id and a count are others, an output and a signature are gone."""
    logs = records(model)
    chosen = {name: first(logs, name) for name in ("rank", "recommend", "retrieve", "serving_default", "similar_items")}

    def scale(name: str, factor: float) -> None:
        scores = chosen[name].response.outputs["scores"]
        values = np.frombuffer(scores.tensor_content, np.float32).copy()
        values[0] *= factor
        scores.tensor_content = values.tobytes()

    scale("rank", 1 + 3e-6)
    scale("similar_items", 1 - 3e-7)
    chosen["recommend"].response.outputs["items"].string_val[1] = b"another"
    count = chosen["retrieve"].response.outputs["count"]
    count.tensor_content = (np.frombuffer(count.tensor_content, np.int32) + 1).tobytes()
    del chosen["serving_default"].response.outputs["sources"]
    gone = prediction_log()()
    gone.predict_log.CopyFrom(chosen["rank"])
    gone.predict_log.request.model_spec.signature_name = "explain"
    write_logs(model / WARMUP, [prediction_log()(predict_log=r) for r in chosen.values()] + [gone])
    code, lines = replay(program, model)
    assert code == 1
    rank, recommend, retrieve, default, missing, same = lines
    assert rank.startswith("`rank`, request 0: `scores`, value 0, is ")
    assert recommend.startswith("`recommend`, request 1: `items`, value 1, is '")
    assert recommend.endswith("' instead of 'another'.")
    was = np.frombuffer(count.tensor_content, np.int32)[0]
    assert retrieve == f"`retrieve`, request 2: `count`, value 0, is {was - 1} instead of {was}."
    assert default == "`serving_default`, request 3: the inputs or outputs are not those of the signature."
    assert missing == "`explain`, request 5: the signature is missing."
    assert same == "1"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("variables/variables.data-00000-of-00001", "`saved_model` cannot be loaded: "),
        ("saved_model.pb", "`saved_model` cannot be loaded: "),
        ("assets/items.txt", " instead of "),
        (WARMUP, "the warm-up records end within a record."),
    ],
)
def test_refuses_a_truncated_file(program: Path, model: Path, name: str, reason: str) -> None:
    with (model / name).open("r+b") as file:
        file.truncate((model / name).stat().st_size // 2)
    code, lines = replay(program, model)
    assert code in (1, 2)
    assert any(reason in line for line in lines), lines


@pytest.fixture
def python_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean process answers all 130 requests as recorded."""
    monkeypatch.setattr(InfraValidator, "_replay", lambda self, bundle: ([], 130))


def bless(served: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    InfraValidator().run(folder, Bundle(served["Exporter"].uri, "fingerprint"))
    return json.loads((folder / "blessing.json").read_text())


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 130", None),
        ("echo '`rank`, request 3: no.'; echo 129; exit 1", "C program: `rank`, request 3: no."),
        ("echo '`saved_model` cannot be loaded: x'; exit 2", "C program: `saved_model` cannot be loaded: x"),
        ("echo 12", f"C program: `{WARMUP}` does not hold the 130 requests."),
        ("echo gone >&2; exit 7", "the C program that loaded it ended with code 7: gone"),
        ("kill -11 $$", "the C program that loaded it ended with code -11: "),
    ],
)
def test_what_the_c_program_finds_counts(
    python_agrees: None,
    served: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    reason: str | None,
) -> None:
    other = tmp_path / "program"
    other.write_text(f"#!/bin/sh\n{script}\n")
    other.chmod(0o755)
    monkeypatch.setattr("shortlist.components.infra_validator.replay_program", lambda: other)
    blessing = bless(served, tmp_path / "out")
    assert blessing["blessed"] is (reason is None)
    assert blessing["reasons"] == ([reason] if reason else [])
    assert blessing["notes"] == ([] if reason else ["A program of TensorFlow's C API answered too."])


def test_without_a_compiler_a_note_says_so(
    python_agrees: None, served: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    blessing = bless(served, tmp_path / "out")
    assert blessing["blessed"] is True
    assert blessing["notes"] == ["Not replayed by a C program: there is no C compiler."]


def test_a_compiler_that_fails_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'first' >&2\necho 'no  such option' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if not (Path(tf.__file__).parent / _native.LIBRARIES[0]).exists():
        pytest.skip("this TensorFlow has no library for C")
    with pytest.raises(CannotCompile, match=r"^the compiler ended with code 3: no such option$"):
        replay_program()
    assert list((tmp_path / "cache" / "shortlist").iterdir()) == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CannotCompile, match="Not a directory"):
        replay_program()


def test_tensorflows_own_command_shows_and_runs_it(served: dict[str, Any], tmp_path: Path) -> None:
    """`saved_model_cli` reads the graph through a session of TensorFlow 1, as no other test does."""
    bundle = served["Exporter"]

    def command(*words: str) -> str:
        program = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", *words]
        where = ["--dir", str(bundle / "saved_model")]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(program + where, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    recorded = bundle.read_json("requests.json")
    found = set(re.findall(r"signature_def\['(\w+)'\]", command("show", "--all")))
    assert found - {"__saved_model_init_op"} == set(recorded["signatures"])

    request = next(r for r in recorded["requests"] if r["signature_name"] == "similar_items")
    np.save(tmp_path / "item.npy", np.array([item.encode() for item in request["inputs"]["item"]]))
    np.save(tmp_path / "k.npy", np.array(request["inputs"]["k"], np.int32))
    files = ";".join(f"{name}={tmp_path / name}.npy" for name in request["inputs"])
    signature = ("--tag_set", "serve", "--signature_def", "similar_items")
    command("run", *signature, "--inputs", files, "--outdir", str(tmp_path / "out"))
    answer = {name: np.load(tmp_path / "out" / f"{name}.npy", allow_pickle=True) for name in request["outputs"]}
    assert [[item.decode() for item in row] for row in answer["items"]] == request["outputs"]["items"]
    assert answer["count"].tolist() == request["outputs"]["count"]
    np.testing.assert_allclose(answer["scores"], request["outputs"]["scores"], rtol=1e-6)
