"""One Arrow schema for each record, derived from its annotations, and the way of rows into a table and back.

Text is kept as it is, NUL included, with one exception: Arrow strings are UTF-8, which has no lone surrogates, and
model text or a careless data set can hold them. A lone surrogate U+D83D is stored as the noncharacter U+FDD0 followed
by `D83D`, and U+FDD0 itself as U+FDD0 followed by `FDD0`; reading undoes it exactly. SQL sees the stored form.
"""

import math
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from cgrpo_core import records as _records
from cgrpo_core.ids import digest
from storage.errors import RecordInvalid, SchemaMismatch

R = TypeVar("R")

TEXT_ENCODING = 1  # part of every schema digest; raised when the escape below changes
RECORDS: dict[str, type] = {
    name: value
    for name, value in vars(_records).items()
    if isinstance(value, type) and is_dataclass(value) and value.__module__ == _records.__name__
}
# A group may keep several refinements, an update may report each optimizer step, a problem may be sampled repeatedly.
UNIQUE: dict[str, tuple[str, ...]] = {
    "EvalResult": ("problem_id", "sample_index"),
    "SelectedRefinement": ("group_id", "refinement_id"),
    "UpdateMetrics": ("policy_version", "optimizer_step"),
}

# Names of our own, so that a digest does not change with the way in which Arrow prints its types.
_ARROW: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "list<int32>": pa.list_(pa.int32()),
    "list<float32>": pa.list_(pa.float32()),  # lossless for log-probs as vLLM returns them; half the size
}
_SCALARS: dict[Any, str] = {str: "string", int: "int64", float: "float64", bool: "bool"}
_ESCAPE = "\ufdd0"
_UNSAFE = re.compile("[\ud800-\udfff\ufdd0]")
_ESCAPED = re.compile(_ESCAPE + "([0-9A-F]{4})")


class Column(NamedTuple):
    """A field of a record: its stored type, whether None is a value of it, and its words if it is a Literal."""

    name: str
    kind: str
    nullable: bool
    words: tuple[str, ...]


_COLUMNS: dict[type, tuple[Column, ...]] = {}  # derived once: rows are checked one by one


def columns(record: type[Any]) -> tuple[Column, ...]:
    """Return the columns of a record dataclass. Raises TypeError for an annotation that has no column type."""
    if record not in _COLUMNS:
        hints = get_type_hints(record)
        _COLUMNS[record] = tuple(_column(field.name, hints[field.name]) for field in fields(record))
    return _COLUMNS[record]


def _column(name: str, annotation: Any) -> Column:
    nullable = False
    if get_origin(annotation) in (types.UnionType, Union):
        members = [member for member in get_args(annotation) if member is not type(None)]
        nullable = len(members) < len(get_args(annotation))
        annotation = members[0] if len(members) == 1 else annotation
    arguments = get_args(annotation)
    if annotation in _SCALARS:
        return Column(name, _SCALARS[annotation], nullable, ())
    if get_origin(annotation) is Literal and all(isinstance(word, str) for word in arguments):
        return Column(name, "string", nullable, arguments)
    if get_origin(annotation) is tuple and arguments in ((int, ...), (float, ...)) and not nullable:
        return Column(name, "list<int32>" if arguments[0] is int else "list<float32>", False, ())
    raise TypeError(f"field {name}: {annotation} has no Arrow type")


def arrow_schema(record: type[Any]) -> pa.Schema:
    """Return the Arrow schema of a record; only fields annotated `X | None` are nullable."""
    return pa.schema([pa.field(item.name, _ARROW[item.kind], item.nullable) for item in columns(record)])


def unique_fields(record: type[Any]) -> tuple[str, ...]:
    """Return the fields that together are different in every row: the first one, but for the few in `UNIQUE`."""
    return UNIQUE.get(record.__name__) or (fields(record)[0].name,)


def schema_digest(record: type[Any]) -> str:
    """Return the sha256 of what a stored table of this record looks like; it is an ingredient of stage keys."""
    shape = [[item.name, item.kind, item.nullable] for item in columns(record)]
    return digest({"record": record.__name__, "columns": shape, "text_encoding": TEXT_ENCODING})


def to_table(record: type[R], rows: Sequence[R]) -> pa.Table:
    """Return rows as a table with the schema of `record`. Raises RecordInvalid for a value of another type."""
    for position, row in enumerate(rows):
        if type(row) is not record:
            raise RecordInvalid(f"row {position} is a {type(row).__name__}, not a {record.__name__}")
    arrays = [_to_array(record, item, [getattr(row, item.name) for row in rows]) for item in columns(record)]
    return pa.Table.from_arrays(arrays, schema=arrow_schema(record))


def _to_array(record: type, item: Column, values: list[Any]) -> pa.Array:
    try:
        if item.kind == "string":
            values = [None if value is None else escape_surrogates(value) for value in values]
        array = pa.array(values, type=_ARROW[item.kind])
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise RecordInvalid(f"{record.__name__}.{item.name}: not a column of {item.kind}: {error}") from error
    absent = array.null_count if not item.nullable else 0
    if item.kind.startswith("list"):
        absent += array.values.null_count
    if absent:
        raise RecordInvalid(f"{record.__name__}.{item.name} is None in {absent} places, and may not be")
    return array


def from_table(record: type[R], table: pa.Table) -> list[R]:
    """Return the rows of a table; the column `artifact` of stored tables is dropped.

    Raises SchemaMismatch if the table has other columns or types than the record.
    """
    if "artifact" in table.column_names:
        table = table.drop_columns(["artifact"])
    if not table.schema.equals(arrow_schema(record)):
        raise SchemaMismatch(
            f"the table is not one of {record.__name__}: it has {_describe(table.schema)}, "
            f"expected {_describe(arrow_schema(record))}",
            "it was written by another version of the program; run its stage again",
        )
    values = [_from_array(item, table.column(item.name).combine_chunks()) for item in columns(record)]
    names = [item.name for item in columns(record)]
    return [record(**dict(zip(names, row, strict=True))) for row in zip(*values, strict=True)]


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}{'?' if field.nullable else ''}" for field in schema)


def _from_array(item: Column, array: pa.Array) -> list[Any]:
    if item.kind.startswith("list"):
        flat, offsets = array.values.to_numpy().tolist(), array.offsets.to_pylist()
        return [tuple(flat[start:end]) for start, end in pairwise(offsets)]
    values = array.to_pylist()
    if item.kind == "string":
        return [None if value is None else unescape_surrogates(value) for value in values]
    return list(values)


def escape_surrogates(text: str) -> str:
    """Return `text` as valid Unicode, with lone surrogates escaped; other text than theirs and U+FDD0 is unchanged."""
    if isinstance(text, str) and text.isascii():  # most are, and it is told in a hundredth of the time
        return text
    return _UNSAFE.sub(lambda match: f"{_ESCAPE}{ord(match.group()):04X}", text)


def unescape_surrogates(text: str) -> str:
    """Undo `escape_surrogates`."""
    return _ESCAPED.sub(lambda match: chr(int(match.group(1), 16)), text) if _ESCAPE in text else text


def validate(record: type[R], rows: Sequence[R]) -> None:
    """Check the invariants that hold between fields and rows. Raises RecordInvalid with the row and the reason.

    Ids are unique within the table and not empty, there is one sampling log-prob for each token that was sampled (a
    solution or a critique was not), floats are finite (NaN never stands for absent), and a Literal field holds one of
    its words.
    """
    names = unique_fields(record)
    for position, row in enumerate(rows):
        for fault in _faults(record, row):
            raise RecordInvalid(f"{record.__name__} row {position} ({getattr(row, names[0])!r}): {fault}")
    seen: dict[tuple[Any, ...], int] = {}
    for position, row in enumerate(rows):
        identity = tuple(getattr(row, name) for name in names)
        first = seen.setdefault(identity, position)
        if first != position:
            named = " and ".join(names)
            raise RecordInvalid(f"{record.__name__} rows {first} and {position} have the same {named}: {identity!r}")


def _faults(record: type, row: object) -> Iterator[str]:
    for item in columns(record):
        value = getattr(row, item.name)
        if value is None:
            if not item.nullable:
                yield f"{item.name} is None"
            continue
        if item.name.endswith("_id") and value == "":
            yield f"{item.name} is empty"
        if item.words and value not in item.words:
            yield f"{item.name} is {value!r}, not one of {', '.join(item.words)}"
        if item.kind == "float64" and not math.isfinite(value):
            yield f"{item.name} is {value}"
        if item.kind == "list<float32>" and not all(map(math.isfinite, value)):
            yield f"{item.name} holds a value that is not finite"
    tokens, logprobs = getattr(row, "token_ids", None), getattr(row, "sampling_logprobs", None)
    sampled = 0 if getattr(row, "origin", None) in ("solution", "critique") else len(tokens or ())
    if tokens is not None and logprobs is not None and len(logprobs) != sampled:
        yield f"{len(tokens)} token_ids, but {len(logprobs)} sampling_logprobs"
