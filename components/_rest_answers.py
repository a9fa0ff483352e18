"""The outputs of a signature as TF Serving's JSON. Source: tensorflow_serving/util/json_tensor.cc."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from shortlist.components._rest import INVALID, RestError, tensor_type


def encode_outputs(outputs: Mapping[str, np.ndarray], by_rows: bool) -> bytes:
    """The body of an answer; a single output comes without its name."""
    if not outputs:
        raise RestError(INVALID, "Cannot convert empty tensor map to JSON")
    if by_rows:
        _refuse_unless_batched(outputs)
    lists = {name: _listed(name, values) for name, values in sorted(outputs.items())}
    single = next(iter(lists.values()))
    if not by_rows:
        found: Any = {"outputs": single if len(lists) == 1 else lists}
    elif len(lists) == 1:
        found = {"predictions": single}
    else:
        found = {"predictions": [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]}
    return json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")


def _refuse_unless_batched(outputs: Mapping[str, np.ndarray]) -> None:
    size = None
    for name, values in outputs.items():
        if not values.ndim:
            raise RestError(INVALID, f"Tensor name: {name} has no shape information ")
        if size not in (None, len(values)):
            raise RestError(
                INVALID, f"Tensor name: {name} has inconsistent batch size: {len(values)} expecting: {size}"
            )
        size = len(values)


def _listed(name: str, values: np.ndarray) -> Any:
    if values.dtype == object:
        binary = name.endswith("_bytes")
        flat = [
            {"b64": base64.b64encode(v).decode()} if binary else v.decode("utf-8", "replace") for v in values.ravel()
        ]
        array = np.empty(len(flat), object)
        array[:] = flat
        return array.reshape(values.shape).tolist()
    if values.dtype.name in ("float32", "float64"):
        return _shortest(values).tolist()
    if values.dtype.kind not in "iub":
        raise RestError(INVALID, f"Failed to write JSON value for tensor type: {tensor_type(values.dtype)}")
    return values.tolist()


def _shortest(values: np.ndarray) -> np.ndarray:
    """float64 with the digits that TF Serving prints: six, or as many as are needed to read the same number."""
    flat = values.ravel()
    six = np.array([float(f"{v:.6g}") for v in flat.tolist()], np.float64)
    digits = {2: 5, 4: 9}.get(values.dtype.itemsize, 17)
    full = np.array([float(f"{v:.{digits}g}") for v in flat.tolist()], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        same = six.astype(values.dtype) == flat
    return np.where(same, six, full).reshape(values.shape)


def error_body(message: str) -> bytes:
    """The body of a refusal."""
    return json.dumps({"error": message}).encode()
