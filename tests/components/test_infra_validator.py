"""What the fresh process says of a bundle, whole and broken."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shortlist.components import _replay
from shortlist.components.artifacts import Bundle
from shortlist.components.infra_validator import InfraValidator, InfraValidatorConfig

FILES = (
    "saved_model/saved_model.pb",
    "saved_model/fingerprint.pb",
    "saved_model/variables/variables.index",
    "saved_model/variables/variables.data-00000-of-00001",
    "saved_model/assets/context_place.txt",
    "saved_model/assets/items.txt",
    "saved_model/assets/users.txt",
    "saved_model/assets/titles.txt",
    "saved_model/assets.extra/catalogue.parquet",
    "saved_model/assets.extra/tf_serving_warmup_requests",
    "signatures.md",
    "requests.json",
)


@pytest.fixture
def bundle(served: dict[str, Any], tmp_path: Path) -> Bundle:
    """A copy, to be broken."""
    shutil.copytree(served["Exporter"].uri, tmp_path / "bundle")
    return Bundle(tmp_path / "bundle", "fingerprint")


def bless(bundle: Bundle, **config: Any) -> dict[str, Any]:
    out = bundle.uri.parent / "out"
    out.mkdir()
    InfraValidator(InfraValidatorConfig(**config)).run(out, bundle)
    return json.loads((out / "blessing.json").read_text())


def rewrite(bundle: Bundle, change: Any) -> None:
    """Changes the record."""
    records = bundle.read_json("requests.json")
    change(records)
    (bundle / "requests.json").write_text(json.dumps(records))


def test_blesses_what_answers_as_it_did(bundle: Bundle) -> None:
    records = bundle.read_json("requests.json")
    assert sorted([*records["files"], "requests.json"]) == sorted(FILES)
    blessing = bless(bundle)
    assert blessing["reasons"] == []
    assert blessing["blessed"] is True
    assert blessing["requests"] == len(records["requests"]) == 5 * 29
    assert len(blessing["notes"]) == 1  # the C program answered, or why there is none
    assert blessing["notes"][0].startswith(("A program of TensorFlow's C API", "Not replayed by a C program: "))
    assert 0 < blessing["seconds"] < 300


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["deleted", "truncated"])
def test_names_the_file_that_is_broken(bundle: Bundle, name: str, how: str) -> None:
    file = bundle / name
    if how == "deleted":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    assert _replay.replay(bundle.uri)[1] == 0
    _, reasons = _replay.read_records(bundle.uri)
    assert len(reasons) == 1
    assert f"`{name}`" in reasons[0]
    assert "\n" not in reasons[0]


def test_a_broken_file_is_a_reason_not_an_error(bundle: Bundle) -> None:
    size = (bundle / FILES[3]).stat().st_size
    with (bundle / FILES[3]).open("r+b") as file:
        file.truncate(100)
    (bundle / FILES[4]).unlink()
    assert bless(bundle) | {"seconds": 0} == {
        "blessed": False,
        "reasons": [
            f"`{FILES[4]}` is missing.",
            f"`{FILES[3]}` was changed: it has 100 bytes, and had {size:,} when it was made.",
        ],
        "notes": [],
        "requests": 0,
        "seconds": 0,
    }


def test_reports_other_answers_and_missing_signatures(bundle: Bundle) -> None:
    """A score is off by 3e-6, an id and a count are others, an output and a signature are not there."""

    def change(records: dict[str, Any]) -> None:
        requests = [next(r for r in records["requests"] if r["signature_name"] == n) for n in records["signatures"]]
        rank, recommend, retrieve, default, similar = requests
        rank["outputs"]["scores"][0][0] *= 1 + 3e-6
        recommend["outputs"]["items"][0][1] = "another"
        retrieve["outputs"]["count"][0] += 1
        del default["outputs"]["sources"]
        similar["outputs"]["scores"][0][0] *= 1 + 3e-7
        recommend["outputs"]["scores"][0][0] *= 1 - 3e-7
        records["signatures"].append("explain")
        records["requests"] = [{**rank, "signature_name": "explain"}, *requests]

    rewrite(bundle, change)
    reasons, requests = _replay.replay(bundle.uri)
    assert requests == 5
    missing, rank, recommend, retrieve, default = reasons
    assert missing == "the signature `explain` is missing."
    assert rank.startswith("`rank`, request 1: `scores` [0, 0] is ")
    assert recommend.startswith("`recommend`, request 2: `items` [0, 1] is ")
    assert recommend.endswith(" instead of 'another'.")
    assert retrieve.startswith("`retrieve`, request 3: `count` [0] is ")
    assert default == (
        "`serving_default`, request 4: the outputs are count, items, reasons, scores, sources "
        "instead of count, items, reasons, scores."
    )


def test_reports_a_model_that_cannot_be_loaded(bundle: Bundle) -> None:
    (bundle / "saved_model" / "saved_model.pb").write_bytes(b"not a model")
    rewrite(bundle, lambda records: records.update(files=_replay.fingerprints(bundle.uri)))
    (reason,), requests = _replay.replay(bundle.uri)
    assert requests == 0
    assert reason.startswith("`saved_model` cannot be loaded: Cannot parse file")
    assert "saved_model.pb" in reason
    assert "\n" not in reason


def test_reports_a_process_that_ends_or_takes_too_long(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bless(bundle, timeout=0.01)["reasons"] == ["it did not answer within 0.01 seconds."]
    (tmp_path / "out").rename(tmp_path / "first")
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho first >&2\necho the end >&2\nkill -9 $$\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    blessing = bless(bundle)
    assert blessing["reasons"] == ["the process that loaded it ended with code -9: the end"]
    assert blessing["blessed"] is False


@pytest.mark.parametrize("module", ["shortlist", "keras", "tf_keras"])
def test_a_module_cannot_be_imported_where_the_bundle_is_loaded(module: str, tmp_path: Path) -> None:
    """The program itself runs; the model it loads is one that imports the module."""
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "__init__.py").write_text(f"import {module}.losses\n")
    (tmp_path / "requests.json").write_text(json.dumps({"files": {}, "signatures": [], "requests": []}))
    (tmp_path / "saved_model").mkdir()
    done = subprocess.run(
        [sys.executable, "-I", _replay.__file__, str(tmp_path), json.dumps([str(tmp_path), *sys.path])],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"ImportError: {module} is hidden"


@pytest.mark.parametrize(
    ("expected", "got", "reason"),
    [
        ([1.0, 2.0], np.float32([1.0, 2.0000019]), None),
        ([1.0, 2.0], np.float32([1.0, 2.000005]), "`x` [1] is"),
        ([0.0], np.float32([1e-30]), "`x` [0] is"),
        ([float("nan")], np.float32([np.nan]), "`x` [0] is"),
        ([float("inf")], np.float32([np.inf]), "`x` [0] is"),
        ([[1.0]], np.float32([1.0]), "`x` has the shape (1,) instead of (1, 1)."),
        (["a", ""], np.array(["a", ""], object), None),
        (["a"], np.array(["b"], object), "`x` [0] is 'b' instead of 'a'."),
        ([3], np.int32([4]), "`x` [0] is"),
    ],
)
def test_differences(expected: list[Any], got: np.ndarray, reason: str | None) -> None:
    found = _replay.differences("here", {"x": expected}, {"x": got})
    assert len(found) == (reason is not None)
    if reason:
        assert found[0].startswith(f"here: {reason}")
