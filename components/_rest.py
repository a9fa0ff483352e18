"""TF Serving's REST interface: its paths, its requests in both formats, and its errors, word for word.

Source: tensorflow_serving/util/json_tensor.cc, model_servers/http_rest_api_util.cc and http_server.cc, and what its
documentation of the RESTful API says. A request becomes arrays by the names of a signature's inputs; the outputs of the
signature become the answer. What is refused raises `RestError`, which holds the status code and the text.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from shortlist.components._rest_shown import shown

INVALID, NOT_FOUND, TIMEOUT, TOO_LARGE = 400, 404, 504, 413
SLOW, INTERNAL, UNIMPLEMENTED, UNAVAILABLE, BAD_GATEWAY = 408, 500, 501, 503, 502
STATUS = {3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 14: 503, 16: 401, 1: 499}
"""HTTP's status of TensorFlow's error codes; of any other it is 500."""

_VERSION = r"(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_POST = re.compile(rf"/v1/models/([^/:]+){_VERSION}:(classify|regress|predict)", re.IGNORECASE)
_GET = re.compile(rf"/v1/models(?:/([^/:]+))?{_VERSION}(?:/(metadata))?", re.IGNORECASE)
_PARSE = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
    "Invalid control character at": "Invalid encoding in string.",
}
"""The texts of TF Serving's JSON reader for those of Python's."""


class RestError(Exception):
    """A request that is refused.

    Args:
      status: HTTP's status code.
      message: what its JSON object `error` says.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Call:
    """What a path asks for: `verb` is predict, classify, regress, status or metadata."""

    verb: str
    model: str
    version: int | None = None
    label: str | None = None

    @property
    def path(self) -> str:
        """The path again, escaped."""
        of = "" if self.version is None else f"/versions/{self.version}"
        of = of if self.label is None else f"/labels/{quote(self.label, safe='')}"
        end = {"status": "", "metadata": "/metadata"}.get(self.verb, f":{self.verb}")
        return f"/v1/models/{quote(self.model, safe='')}{of}{end}"


def read_path(method: str, path: str) -> Call:
    """What is asked for, of the path as it was sent.

    Raises:
      RestError: if TF Serving would not know it.
    """
    found = {"POST": _POST, "GET": _GET}[method].fullmatch(path) if method in ("POST", "GET") else None
    if not found:
        raise RestError(INVALID, f"Malformed request: {method} {path}")
    model, version, label, verb = found.groups()
    if model is None:
        raise RestError(INVALID, "Missing model name in request.")
    if version is not None and (len(version) > 19 or int(version) >= 1 << 63):
        raise RestError(INVALID, f"Failed to convert version: {version} to numeric.")
    of = None if version is None else int(version)
    return Call((verb or "status").lower(), _unescaped(model), of, label and _unescaped(label))


def _unescaped(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "replace")


# --- requests --------------------------------------------------------------------------------------------------------


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a request; what follows it is ignored, and NaN and Infinity are numbers."""
    if not body:
        raise RestError(INVALID, "JSON Parse error: The document is empty")
    try:
        text = body.decode("utf-8-sig")
        found, _ = json.JSONDecoder().raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))
    except json.JSONDecodeError as error:
        said = _PARSE.get(error.msg, "Invalid value.")
        if error.msg == "Expecting ',' delimiter":
            close = _open(text[: error.pos])
            said = f"Missing a comma or {close} after an {'object member' if close == '}' else 'array element'}."
        if error.pos == len(text) and not text.strip():
            said = "The document is empty."
        raise RestError(INVALID, f"JSON Parse error: {said} at offset: {error.pos}") from None
    except UnicodeDecodeError as error:
        raise RestError(INVALID, f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from None
    except RecursionError:
        raise RestError(INVALID, "JSON Parse error: Nested too deeply. at offset: 0") from None
    except ValueError:  # a number of thousands of digits
        raise RestError(INVALID, "JSON Parse error: Number too big to be stored in double. at offset: 0") from None
    if not isinstance(found, dict):
        raise _shown(found, "Is not object")
    return found


def _open(text: str) -> str:
    """What closes the innermost bracket that is open at the end of a JSON text."""
    depth = []
    for mark in re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)):
        if mark in "[{":
            depth.append("]" if mark == "[" else "}")
        elif depth:
            depth.pop()
    return depth[-1] if depth else "}"


def read_signature(request: Mapping[str, Any]) -> str:
    """The name of the signature that a request is for."""
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise _shown(request, "not formatted correctly. 'signature_name' key must be a string value.")
    return name or "serving_default"


def read_inputs(request: Mapping[str, Any], types: Mapping[str, np.dtype]) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of a request, and whether its format is by rows.

    Args:
      request: what `parse` found.
      types: of the signature's inputs by name; text is `object`.
    """
    rows, columns = "instances" in request, "inputs" in request
    if rows and columns:
        raise _shown(request, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
    if rows:
        found = request["instances"]
        if not isinstance(found, list):
            raise _shown(request, "Expecting 'instances' to be an list/array")
        if not found:
            raise _shown(request, "No values in 'instances' array")
        return _by_rows(found, types), True
    if columns:
        return _by_columns(request["inputs"], types), False
    raise RestError(INVALID, "Missing 'inputs' or 'instances' key")


def _by_rows(instances: list[Any], types: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    if not isinstance(instances[0], dict) and len(types) > 1:
        raise RestError(
            INVALID,
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map",
        )
    named = _is_object(instances[0])
    values: dict[str, list[Any]] = {}
    shapes: dict[str, list[int]] = {}
    for number, element in enumerate(instances):
        if named != _is_object(element):
            kind = ("object", "list") if named else ("value/list", "object")
            raise RestError(INVALID, f"Expecting {kind[0]} but got {kind[1]} at item {number} of input list")
        for name, value in (element if named else {next(iter(types)): element}).items():
            try:
                _add(name, value, types, values, shapes)
            except RestError as error:
                key = f" key: {name}" if named else ""
                raise RestError(
                    INVALID,
                    f"Failed to process element: {number}{key} of 'instances' list. "
                    f"Error: INVALID_ARGUMENT: {error.message}",
                ) from None
        if named and element.keys() != types.keys():
            raise RestError(
                INVALID,
                f"Failed to process element: {number} of 'instances' list. JSON object: {shown(element)} "
                f"keys must be equal to: {','.join(sorted(types))}",
            )
    return {name: _array(values[name], [len(instances), *shapes[name]], types[name]) for name in values}


def _add(
    name: str, value: Any, types: Mapping[str, np.dtype], values: dict[str, list[Any]], shapes: dict[str, list[int]]
) -> None:
    """Adds an element's value to those before it, which it must be shaped like."""
    if name not in types:
        raise RestError(INVALID, f"JSON object: does not have named input: {name}")
    shape = _shape(value)
    before = values.setdefault(name, [])
    start = len(before)
    _fill(value, 0, shape, types[name], before)
    known = shapes.setdefault(name, shape)
    size = len(before) - start
    if size != math.prod(known):
        raise RestError(INVALID, f"Expecting tensor size: {math.prod(known)} but got: {size}")
    if known != shape:
        wanted, got = (f"[{','.join(map(str, s))}]" for s in (known, shape))
        raise RestError(INVALID, f"Expecting shape {wanted} but got: {got}")


def _by_columns(inputs: Any, types: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    if not _is_object(inputs):
        if len(types) > 1:
            raise RestError(
                INVALID,
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map",
            )
        inputs = {next(iter(types)): inputs}
    found = {}
    for name, kind in types.items():
        if name not in inputs:
            raise RestError(INVALID, f"Missing named input: {name} in 'inputs' object.")
        shape, values = _shape(inputs[name]), list[Any]()
        _fill(inputs[name], 0, shape, kind, values)
        found[name] = _array(values, shape, kind)
    return found


def is_b64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_b64(value)


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _array(values: list[Any], shape: Sequence[int], kind: np.dtype) -> np.ndarray:
    wide = {"O": object, "f": np.float64, "u": np.uint64}.get(kind.kind, np.int64)
    array = np.empty(len(values), wide)
    array[:] = values
    with np.errstate(over="ignore"):
        return array.astype(kind).reshape(shape)


def _fill(value: Any, level: int, shape: list[int], kind: np.dtype, out: list[Any]) -> None:
    """Appends the leaves of nested lists that must have the shape."""
    if not isinstance(value, list):
        if level != len(shape):
            raise _shown(
                value, f"found at incorrect level: {level + 1} in the JSON DOM. Expected at level: {len(shape)}"
            )
        out.append(_leaf(value, kind))
        return
    if level >= len(shape):
        raise RestError(INVALID, f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise RestError(
            INVALID,
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}",
        )
    for part in value:
        _fill(part, level + 1, shape, kind, out)


_NAMES = {"float16": "half", "float32": "float", "float64": "double", "object": "string"}
_KNOWN = ["float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "bool", "object"]
_BOUNDS = {"uint32": (0, 2**32 - 1), "int64": (-(2**63), 2**63 - 1), "uint64": (0, 2**64 - 1)}
_TYPES = {type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}


def _leaf(value: Any, kind: np.dtype) -> Any:
    if kind.name not in _KNOWN:
        raise RestError(UNIMPLEMENTED, f"Conversion of JSON Value: {shown(value)} to type: {tensor_type(kind)}")
    if kind.kind == "O":
        if isinstance(value, dict):
            return _decoded(value)
        if isinstance(value, str):
            return _encoded(value)
    elif kind.kind == "f":
        if type(value) in (int, float):
            try:
                return float(value)
            except OverflowError:
                return math.inf if value > 0 else -math.inf
    elif kind.kind == "b":
        if isinstance(value, bool):
            return value
    elif type(value) is int:
        low, high = _BOUNDS.get(kind.name, (-(2**31), 2**31 - 1))
        if low <= value <= high:
            return value
    name = str(value) if isinstance(value, bool) else _TYPES[type(value)]
    raise _shown(value, f"Type: {name} is not of expected type: {tensor_type(kind)}")


def tensor_type(kind: np.dtype) -> str:
    """What TensorFlow calls a type."""
    return _NAMES.get(kind.name, kind.name)


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        message = "JSON Parse error: The surrogate pair in string is invalid. at offset: 0"
        raise RestError(INVALID, message) from None


def _decoded(value: dict[str, Any]) -> bytes:
    if not is_b64(value):
        raise _shown(value, "not formatted correctly for base64 data")
    text = re.sub(r"\s", "", value["b64"]).rstrip("=")
    try:
        if not text.isascii() or len(text) % 4 == 1:
            raise ValueError
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        raise RestError(INVALID, "Unable to base64 decode") from None


def _shown(value: Any, rest: str) -> RestError:
    return RestError(INVALID, f"JSON Value: {shown(value)} {rest}")


# --- limits ----------------------------------------------------------------------------------------------------------


def refuse_above(request: Mapping[str, Any], batch: int, k: int, k_of_example: Callable[[str], int | None]) -> None:
    """Refuses a request of more rows than `batch`, or that asks for more than `k` items, in an input or an example."""
    rows, inputs = request.get("instances"), request.get("inputs", [])
    asked: list[Any] = []
    examples: list[Any] = []
    count = 0
    if isinstance(rows, list):
        count = len(rows)
        asked = [row.get("k") for row in rows if isinstance(row, dict)]
        examples = [row if is_b64(row) else row.get("examples") for row in rows if isinstance(row, dict)]
    elif isinstance(inputs, dict):
        columns = {name: value for name, value in inputs.items() if isinstance(value, list)}
        count = max(map(len, columns.values()), default=0)
        asked, examples = columns.get("k", []), columns.get("examples", [])
    elif isinstance(inputs, list):
        count, examples = len(inputs), inputs
    if count > batch:
        raise RestError(INVALID, f"A request must have at most {batch:,} rows here (--max-batch). Received: {count:,}.")
    said = [k_of_example(value["b64"]) for value in examples if is_b64(value)]
    most = max((value for value in [*asked, *said] if type(value) is int), default=0)
    if most > k:
        raise RestError(INVALID, f"`k` must be at most {k:,} here (--max-k). Received: {most}.")
