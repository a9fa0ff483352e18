"""JSON values in errors, as TF Serving prints them. Source: tensorflow_serving/util/json_tensor.cc and RapidJSON."""

import contextlib
import json
import math
from decimal import Decimal
from typing import Any

_SHOWN = 256  # bytes


class _Full(Exception):
    pass


def shown(value: Any) -> str:
    """A value in an error: as TF Serving prints it, cut after some 256 bytes."""
    parts: list[str] = []
    size = 0

    def put(before: str, text: str) -> None:
        nonlocal size
        if size >= _SHOWN:
            raise _Full
        parts.append(before + text)
        size += len((before + text).encode("utf-8", "replace"))

    def write(value: Any, depth: int, before: str) -> None:
        if isinstance(value, dict):
            put(before, "{")
            for number, (key, part) in enumerate(value.items()):
                comma = "," if number else ""
                put(comma + "\n" + "    " * (depth + 1), json.dumps(key, ensure_ascii=False))
                write(part, depth + 1, ": ")
            put("\n" + "    " * depth if value else "", "}")
        elif isinstance(value, list):
            put(before, "[")
            for number, part in enumerate(value):
                write(part, depth + 1, ", " if number else "")
            put("", "]")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise _Full  # TF Serving's writer stops there
            put(before, _decimal(value))
        else:
            put(before, json.dumps(value, ensure_ascii=False))

    with contextlib.suppress(_Full):
        write(value, 0, "")
    return "".join(parts)


def _decimal(value: float) -> str:
    """A finite number as TF Serving prints it: an exponent from 1e21 on and below 1e-6, without a sign or zeros."""
    sign, numbers, exponent = Decimal(repr(value)).normalize().as_tuple()
    digits, minus = "".join(map(str, numbers)), "-" * sign
    point = len(digits) + int(exponent)  # digits before the point
    if not value:
        return f"{minus}0.0"
    if -6 < point <= 0:
        return f"{minus}0.{'0' * -point}{digits}"
    if 0 < point <= 21:
        whole = digits.ljust(point, "0")
        return f"{minus}{whole[:point]}.{whole[point:] or '0'}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{minus}{digits[0]}{rest}e{point - 1}"
