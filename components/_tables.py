"""The tables of `Examples`: their exact Arrow types, and the checks that a table of the user's own must pass.

Data rows are counted from 1; the header of a CSV file is not one.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shortlist import ShortlistError

Convert = Callable[[pa.ChunkedArray, str, str], pa.ChunkedArray]

EVENTS = ("watch", "impression")
NO_GENRES = "(no genres listed)"
_NOTHING = ["", "NA", "N/A", "NULL", "Null", "null", "None"]
_YEAR_2100 = 4_102_444_800
_NUMBER = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$"


class Place(str):
    """The name of a table as it stands in a message, of which only the rows after the first `before` are looked at.

    `heads` are the `plain_head`s of columns of the whole table.
    """

    before = 0
    heads: Mapping[str, Any] = MappingProxyType({})


def show(value: Any, limit: int = 60) -> str:
    """A value as it stands in a message: on one line, not too long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def listed(names: Sequence[str], limit: int = 300) -> str:
    """Names as they stand in a message, with nothing that would break the line."""
    text = "".join(c if c.isprintable() else "?" for c in ", ".join(names))
    return text if len(text) <= limit else f"{text[:limit]}…"


def counted(number: int, thing: str) -> str:
    """Such as `1 row` and `1,024 rows`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def first(mask: pa.ChunkedArray) -> int:
    """The index of the first true value, or −1."""
    return pc.index(mask, True).as_py()


def _refuse(column: str, where: str, rule: str, values: pa.ChunkedArray, row: int, remedy: str = "") -> NoReturn:
    received, number = show(values[row].as_py()), row + 1 + getattr(where, "before", 0)
    raise ShortlistError(f"`{column}` of {where} {rule}. Received: {received} in data row {number}.{remedy}")


def _cast(values: pa.ChunkedArray, to: pa.DataType, column: str, where: str, rule: str, safe: bool = True) -> Any:
    try:
        return values.cast(to, safe=safe)
    except pa.ArrowNotImplementedError:
        raise ShortlistError(f"`{column}` of {where} {rule}. Received: a column of type {values.type}.") from None
    except pa.ArrowInvalid:
        low, high = 0, len(values)
        while high - low > 1:  # the first value that fails lies in [low, high)
            middle = (low + high) // 2
            try:
                values.slice(low, middle - low).cast(to, safe=safe)
                low = middle
            except pa.ArrowInvalid:
                high = middle
        _refuse(column, where, rule, values, low)


def _is_text(kind: pa.DataType) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return text or str(kind) == "string_view"  # whose own test PyArrow 10 does not have


def decoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The plain values of a dictionary-encoded column."""
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _string(values: pa.ChunkedArray, column: str, where: str) -> pa.ChunkedArray:
    values = decoded(values)
    kind = values.type
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise ShortlistError(
            f"`{column}` of {where} must hold text or whole numbers. Received: a column of type {kind}. Convert it to "
            "text first."
        )
    return values.cast(pa.string())


def ids(values: pa.ChunkedArray, column: str, where: str) -> pa.ChunkedArray:
    """Ids as text, exactly as they are written; none may be missing or break a line."""
    values = _string(values, column, where)
    empty = first(pc.equal(pc.fill_null(values, ""), ""))
    if empty >= 0:
        _refuse(column, where, "must be there in every row", values, empty, " Fill it in or leave the row out.")
    broken = first(pc.match_substring_regex(values, "[\\x00\\n\\r]"))
    if broken >= 0:
        _refuse(column, where, "must hold no line break and no NUL character", values, broken)
    return values


def text(values: pa.ChunkedArray, column: str, where: str) -> pa.ChunkedArray:
    """Text; the empty text is a null."""
    values = _string(values, column, where)
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)


def events(values: pa.ChunkedArray, column: str, where: str) -> pa.ChunkedArray:
    """What happened, by default a watch."""
    values = pc.fill_null(text(values, column, where), EVENTS[0])
    unknown = first(pc.invert(pc.is_in(values, pa.array(EVENTS))))
    if unknown >= 0:
        remedy = " Rename or leave out the other rows."
        _refuse(column, where, f"must be {' or '.join(EVENTS)}", values, unknown, remedy)
    return values


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text trimmed, with the usual spellings of a missing value as nulls; anything else as it is."""
    values = decoded(values)
    if not _is_text(values.type):
        return values
    values = pc.utf8_trim_whitespace(values.cast(pa.string()))
    missing = pc.is_in(values, pa.array(_NOTHING))
    return pc.if_else(missing, pa.scalar(None, pa.string()), values)


def plain_head(values: pa.ChunkedArray) -> Any:
    """The first value that is not missing, by whose form `seconds` reads a column of text; None where there is none."""
    known = _plain(values).drop_null()
    return known[0].as_py() if len(known) else None


def numbers(values: pa.ChunkedArray, column: str, where: str) -> pa.ChunkedArray:
    """Finite float32 numbers or nulls."""
    plain = _plain(values)
    rule = "must be a finite number or empty"
    wide = _cast(plain, pa.float64(), column, where, rule, safe=False)
    narrow = wide.cast(pa.float32(), safe=False)
    odd = first(pc.fill_null(pc.invert(pc.is_finite(narrow)), False))
    if odd >= 0:
        _refuse(column, where, rule, plain, odd)
    return narrow


def durations(values: pa.ChunkedArray, column: str, where: str) -> pa.ChunkedArray:
    """Seconds as float32, not negative, or nulls."""
    seconds_ = numbers(values, column, where)
    negative = first(pc.fill_null(pc.less(seconds_, 0), False))
    if negative >= 0:
        _refuse(column, where, "must be seconds, at least 0", seconds_, negative)
    return seconds_


def years(values: pa.ChunkedArray, column: str, where: str) -> pa.ChunkedArray:
    """Years as int16 or nulls."""
    rule = "must be a year or empty"
    return _cast(_cast(_plain(values), pa.float64(), column, where, rule), pa.int16(), column, where, rule)


def seconds(values: pa.ChunkedArray, column: str, where: str) -> pa.ChunkedArray:
    """Whole seconds since 1970 (UTC) as int64, from numbers, Arrow times or ISO 8601 text; a fraction is cut off."""
    plain = _plain(values)
    rule = "must be seconds since 1970 or an ISO 8601 date and time, the same form in every row, or empty"
    found = plain
    if _is_text(plain.type):
        head = getattr(where, "heads", {}).get(column) or plain_head(plain) or "0"
        if pc.match_substring_regex(pa.scalar(head), _NUMBER).as_py():
            try:
                found = plain.cast(pa.int64())
            except pa.ArrowInvalid:
                found = _cast(plain, pa.float64(), column, where, rule)
        else:
            whole = pc.replace_substring_regex(plain, r"(:\d{2})[.,]\d+", r"\1")
            zoned = pc.match_substring_regex(pa.scalar(head), r"[T ].*(Z|[+-]\d{2}:?\d{2})$").as_py()
            found = _cast(whole, pa.timestamp("s", "UTC" if zoned else None), column, where, rule)
    numeric = not pa.types.is_temporal(found.type)
    if pa.types.is_floating(found.type):
        odd = first(pc.fill_null(pc.invert(pc.is_finite(found)), False))
        if odd >= 0:
            _refuse(column, where, rule, plain, odd)
        found = pc.floor(found)
    elif pa.types.is_timestamp(found.type):
        found = pc.floor_temporal(found.cast(pa.timestamp(found.type.unit)), unit="second")
    if not numeric:
        found = _cast(found, pa.timestamp("s"), column, where, rule)
    stamps = _cast(found, pa.int64(), column, where, rule)
    late = first(pc.fill_null(pc.greater_equal(stamps, _YEAR_2100), False))
    if late >= 0:
        milliseconds = numeric and stamps[late].as_py() < 1000 * _YEAR_2100
        remedy = " It looks like milliseconds: divide the column by 1000." if milliseconds else ""
        _refuse(column, where, "must lie before the year 2100", plain, late, remedy)
    return stamps


def genres(values: pa.ChunkedArray, column: str, where: str) -> pa.ChunkedArray:
    """Lists of names, from lists or from text such as `Comedy|Drama`; nothing known is the empty list."""
    values = decoded(values)
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        values = pc.split_pattern(pc.fill_null(_string(values, column, where), ""), "|")
    elif not _is_text(values.type.value_type):
        raise ShortlistError(
            f"`{column}` of {where} must hold text such as Comedy|Drama, or lists of text. Received: a column of type "
            f"{values.type}."
        )
    lists = pa.concat_arrays(values.cast(pa.list_(pa.string())).chunks or [pa.array([], pa.list_(pa.string()))])
    names = pc.utf8_trim_whitespace(lists.flatten())
    keep = pc.invert(pc.is_in(names, pa.array(["", NO_GENRES, None])))
    ends = np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
    kept = np.concatenate([[0], np.cumsum(keep.to_numpy(zero_copy_only=False))])
    offsets = kept[np.concatenate([[0], ends]).astype(np.int64)]
    return pa.chunked_array([pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names.filter(keep))])


INTERACTIONS: dict[str, tuple[pa.DataType, Convert]] = {
    "user": (pa.string(), ids),
    "item": (pa.string(), ids),
    "timestamp": (pa.int64(), seconds),
    "event": (pa.string(), events),
    "rating": (pa.float32(), numbers),
    "watch_time": (pa.float32(), durations),
    "query": (pa.string(), text),
}
ITEMS: dict[str, tuple[pa.DataType, Convert]] = {
    "item": (pa.string(), ids),
    "title": (pa.string(), text),
    "year": (pa.int16(), years),
    "added": (pa.int64(), seconds),
    "genres": (pa.list_(pa.string()), genres),
}
USERS: dict[str, tuple[pa.DataType, Convert]] = {"user": (pa.string(), ids)}
RANKING: dict[str, tuple[pa.DataType, Convert]] = {
    "item": (pa.string(), ids),
    "user": (pa.string(), text),
    "score": (pa.float32(), numbers),
}


def require(table: pa.Table, required: Sequence[str], found: Sequence[str], where: str) -> None:
    """Refuses a table without a column that it cannot do without, and says how to name the right one of `found`."""
    for name in required:
        if name not in table.column_names:
            plain = {n.lower(): n for n in reversed(found) if n not in {*INTERACTIONS, *ITEMS}}
            near = difflib.get_close_matches(name, plain, n=1)
            raise ShortlistError(
                f"`{name}` must be a column of {where}. Received the columns: {listed(found)}. Say which one it is: "
                f"--set data.columns.{name}={listed([plain[near[0]]]) if near else 'NAME'}."
            )


def conform(table: pa.Table, known: Mapping[str, tuple[pa.DataType, Convert]], where: str) -> pa.Table:
    """The table with the known columns first, typed exactly, the absent ones null; further columns follow, kept."""
    if known is INTERACTIONS:
        context = [n for n in table.column_names if n.startswith("context_")]
        known = {**known, **{n: (pa.string(), text) for n in context}}
    columns = {}
    for name, (kind, convert) in known.items():
        given = table[name] if name in table.column_names else pa.chunked_array([pa.nulls(len(table), kind)])
        columns[name] = convert(given, name, where)
    rest = [name for name in table.column_names if name not in known]
    return pa.table({**columns, **{name: decoded(table[name]) for name in rest}})


def event_keys(columns: Sequence[str]) -> list[str]:
    """The columns by which two rows are the same event."""
    return ["user", "item", "timestamp", "event", "query", *(n for n in columns if n.startswith("context_"))]


def drop_duplicates(interactions: pa.Table) -> tuple[pa.Table, int]:
    """Without the rows that repeat the user, item, timestamp, event, query and context of an earlier one."""
    keep = first_rows(interactions)
    dropped = len(keep) - int(keep.sum())
    return (interactions.filter(pa.array(keep)) if dropped else interactions), dropped


def first_rows(interactions: pa.Table) -> np.ndarray:
    """Bool `[N]`: whether a row repeats no earlier one."""
    keys = event_keys(interactions.column_names)
    numbered = interactions.select(keys).append_column("row", pa.array(np.arange(len(interactions))))
    keep = np.zeros(len(interactions), bool)
    keep[numbered.group_by(keys).aggregate([("row", "min")])["row_min"].to_numpy()] = True
    return keep


def completed(table: pa.Table, key: str, found: pa.ChunkedArray, where: str) -> pa.Table:
    """The table of items or users, each once, with a row without content for every id found only elsewhere."""
    counts = pc.value_counts(table[key])
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise ShortlistError(
            f"`{key}` of {where} must be unique. Received: {show(twice[0]['values'].as_py())} in "
            f"{twice[0]['counts'].as_py():,} rows."
        )
    known = pc.unique(found)
    missing = known.filter(pc.invert(pc.is_in(known, table[key])))
    absent: dict[str, Any] = {n: pa.nulls(len(missing), table.schema.field(n).type) for n in table.column_names}
    absent[key] = missing
    if "genres" in absent:
        absent["genres"] = genres(pa.chunked_array([absent["genres"]]), "genres", where)
    return pa.concat_tables([table, pa.table(absent)]).combine_chunks()
