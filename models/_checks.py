"""The one form in which a model refuses what it was given."""

from typing import Any

from shortlist import ShortlistError


def require(holds: bool, rule: str, **received: Any) -> None:
    """Raises ShortlistError unless `holds`: the rule, then each name with the value received."""
    if not holds:
        raise ShortlistError(f"{rule} Received: {', '.join(f'{name}={value!r}' for name, value in received.items())}.")


def require_integer(name: str, value: Any, low: int = 1) -> int:
    """`value` as an int of at least `low`, or ShortlistError."""
    whole = isinstance(value, int) or hasattr(value, "__index__")
    require(whole and value >= low, f"`{name}` must be an integer of at least {low}.", **{name: value})
    return int(value)


def require_number(name: str, value: Any, low: float = 0.0) -> float:
    """`value` as a finite float of at least `low`, or ShortlistError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    require(low <= number < float("inf"), f"`{name}` must be a finite number of at least {low:g}.", **{name: value})
    return number
