"""Bundles of real data: the C program answers every signature as Python did, and no broken file is blessed."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from shortlist.components._native import CannotCompile, replay_program
from shortlist.components._prediction_log import WARMUP, prediction_log
from shortlist.components.artifacts import Bundle
from shortlist.components.infra_validator import InfraValidator
from shortlist.components.pipeline import LINEAGE
from shortlist.trainers.two_stage import load_config, two_stage

SETS = ["demo", pytest.param("latest-small", marks=pytest.mark.data)]
SIGNATURES = {
    *("serving_default", "recommend", "retrieve", "rank", "similar_items"),
    *("similar_users", "fold_in", "explain"),
}
# The sources as they ship, EASE among them for its dense scores, but small and hardly trained.
SETTINGS = {
    "baselines": {},
    "sources.wals.embedding_dim": 16,
    "sources.wals.epochs": 1,
    "sources.two_tower.embedding_dim": 16,
    "sources.two_tower.epochs": 1,
    "sources.two_tower.examples_per_user": 2,
    "sources.ease.neighbours": 20,
    "shortlist.size": 60,
    "shortlist.quota": 40,
    "ranker.hidden_units": [16],
    "ranker.epochs": 1,
}


def make(name: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of a set. Test processes beside this one share its steps."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "real_bundles"
    settings: dict[str, Any] = {**SETTINGS, "workdir": home / name}
    if name != "demo":
        settings |= {
            "data.source": f"tfds:movielens/{name}",
            "data.archive_dir": request.getfixturevalue("archive_dir"),
            "data.data_dir": home / "prepared",
        }
    bundle = two_stage(load_config(overrides=settings), shared=True).run(until=["Exporter"])["Exporter"]
    assert isinstance(bundle, Bundle)
    return bundle


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SETS)
def test_the_c_program_answers_every_signature_as_python_did(
    name: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        program = replay_program()
    except CannotCompile as error:
        pytest.skip(f"No C program here: {error}")
    bundle = make(name, request, tmp_path_factory)
    logs = [
        prediction_log().FromString(record.numpy()).predict_log
        for record in tf.data.TFRecordDataset(str(bundle / "saved_model" / WARMUP))
    ]
    recorded = bundle.read_json("requests.json")
    assert {log.request.model_spec.signature_name for log in logs} == set(recorded["signatures"]) == SIGNATURES
    answered = {log.request.model_spec.signature_name for log in logs if log.response.outputs["scores"].tensor_content}
    assert answered == SIGNATURES - {"explain"}
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [program, bundle / "saved_model"], capture_output=True, text=True, env=environment, timeout=280
    )
    assert done.stdout.splitlines() == [str(len(recorded["requests"]))]
    assert (done.returncode, len(logs)) == (0, len(recorded["requests"]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_file_of_a_bundle_may_be_deleted_or_truncated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Each file in turn is gone, halved, or without its last byte. The bundle with all of them is blessed."""
    made = make("demo", request, tmp_path_factory).uri
    shutil.copytree(made, tmp_path / "bundle", ignore=shutil.ignore_patterns(LINEAGE))
    bundle = Bundle(tmp_path / "bundle", "fingerprint")
    out = tmp_path / "out"
    out.mkdir()

    def bless() -> dict[str, Any]:
        InfraValidator().run(out, bundle)
        return json.loads((out / "blessing.json").read_text())

    files = sorted(path for path in bundle.uri.rglob("*") if path.is_file())
    found = {path.relative_to(bundle.uri).as_posix() for path in files}
    assert found >= {"requests.json", "signatures.md", "saved_model/saved_model.pb", f"saved_model/{WARMUP}"}
    assert len(found) >= 10
    for path in files:
        size = path.stat().st_size
        kept = path.rename(tmp_path / "kept")
        for left in (None, size // 2, size - 1):
            if left is not None:
                shutil.copy(kept, path)
                os.truncate(path, left)
            blessing = bless()
            where = path.relative_to(bundle.uri).as_posix()
            assert blessing["blessed"] is False, (where, left)
            assert [f"`{where}`" in reason for reason in blessing["reasons"]] == [True], (where, left)
            path.unlink(missing_ok=True)
        kept.rename(path)
    blessing = bless()
    assert (blessing["blessed"], blessing["reasons"]) == (True, [])
    assert blessing["requests"] == len(bundle.read_json("requests.json")["requests"])
