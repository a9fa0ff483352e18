"""Replays what a bundle answered when it was made.

`InfraValidator` runs this file by its path, in a process where neither shortlist nor Keras can be imported: it needs
the standard library and TensorFlow.
"""

import base64
import hashlib
import importlib.abc
import json
import sys
from pathlib import Path
from typing import Any

RECORDS = "requests.json"
TOLERANCE = 1e-6  # relative
SHOWN = 10  # reasons


class Hidden(importlib.abc.MetaPathFinder):
    """Makes shortlist impossible to import, and Keras too, whose folder TensorFlow looks for and can do without."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "shortlist" or name.startswith(("keras.", "tf_keras.")):
            raise ImportError(f"{name.split('.')[0]} is hidden")


def fingerprints(bundle: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of every file of the bundle but the record itself, by relative path."""
    files = [*sorted((bundle / "saved_model").rglob("*")), bundle / "signatures.md"]
    return {
        path.relative_to(bundle).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
        if path.is_file()
    }


def read_records(bundle: Path) -> tuple[dict[str, Any], list[str]]:
    """The record of a bundle, and what is wrong with its files, one line each."""
    try:
        records = json.loads((bundle / RECORDS).read_text("utf-8"))
        expected = {key: records[key] for key in ("files", "signatures", "requests")}["files"]
    except (OSError, ValueError, KeyError) as error:
        return {}, [f"`{RECORDS}` cannot be read: {one_line(error)}"]
    found = fingerprints(bundle)
    return records, [
        f"`{name}` is missing."
        if name not in found
        else f"`{name}` was changed: it has {found[name]['bytes']:,} bytes, and had {made['bytes']:,} when it was made."
        for name, made in expected.items()
        if found.get(name) != made
    ]


def one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:300]


def tensors(function: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a record as what the signature takes; binary text stands in JSON as `{"b64": …}`."""
    import tensorflow as tf

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(v) for v in value]
        return base64.b64decode(value["b64"]) if isinstance(value, dict) else value

    specs = function.structured_input_signature[1]
    return {name: tf.constant(plain(value), specs[name].dtype) for name, value in inputs.items()}


def answer(function: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What a signature answers to the inputs of a record, as NumPy arrays, text decoded."""
    import numpy as np

    def decoded(values: Any) -> Any:
        if values.dtype != object:
            return values
        return np.array([v.decode("utf-8") for v in values.ravel()], object).reshape(values.shape)

    return {name: decoded(value.numpy()) for name, value in function(**tensors(function, inputs)).items()}


def differences(where: str, expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """Where an answer is not the recorded one: text and counts exactly, numbers to 1e-6 of their size."""
    import numpy as np

    if sorted(expected) != sorted(got):
        return [f"{where}: the outputs are {', '.join(sorted(got))} instead of {', '.join(sorted(expected))}."]
    found = []
    for name, values in got.items():
        wanted = np.array(expected[name], values.dtype)
        if wanted.shape != values.shape:
            found.append(f"{where}: `{name}` has the shape {values.shape} instead of {wanted.shape}.")
            continue
        if values.dtype.kind == "f":
            bad = ~(np.isclose(values, wanted, rtol=TOLERANCE, atol=0) & np.isfinite(values))
        else:
            bad = values != wanted
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            found.append(f"{where}: `{name}` {list(at)} is {values[at]!r} instead of {wanted[at]!r}.")
    return found


def replay(bundle: Path) -> tuple[list[str], int]:
    """The reasons against a bundle, none if it answers as it did, and how many requests it answered."""
    records, reasons = read_records(bundle)
    if reasons:
        return reasons, 0
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(bundle / "saved_model"))
    except Exception as error:  # whatever is wrong with a file ends here, as an error of some kind
        return [f"`saved_model` cannot be loaded: {one_line(error)}"], 0
    missing = sorted(set(records["signatures"]) - set(loaded.signatures))
    reasons += [f"the signature `{name}` is missing." for name in missing]
    done = 0
    for number, record in enumerate(records["requests"]):
        name = record["signature_name"]
        if name in missing:
            continue
        where = f"`{name}`, request {number}"
        try:
            got = answer(loaded.signatures[name], record["inputs"])
        except Exception as error:
            reasons.append(f"{where}: {one_line(error)}")
            continue
        reasons += differences(where, record["outputs"], got)
        done += 1
    return reasons, done


def main() -> None:
    """Takes the bundle's folder and the module path as JSON; prints `{"reasons", "requests"}` as its last line."""
    sys.path[:] = json.loads(sys.argv[2])
    sys.meta_path.insert(0, Hidden())
    reasons, done = replay(Path(sys.argv[1]))
    if any(name.split(".")[0] == "shortlist" for name in sys.modules):
        reasons.append("shortlist was imported while the bundle was loaded.")
    print(json.dumps({"reasons": reasons[:SHOWN], "requests": done}))


if __name__ == "__main__":
    main()
