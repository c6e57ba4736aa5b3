"""Records become tables and come back as they were; what a record may not hold is refused before it is written."""

import dataclasses
import math
from operator import attrgetter
from typing import Any, Literal

import pyarrow as pa
import pytest
import storage_rows as rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import RecordInvalid, SchemaMismatch
from storage.schemas import (
    RECORDS,
    arrow_schema,
    columns,
    escape_surrogates,
    from_table,
    schema_digest,
    to_table,
    unescape_surrogates,
    unique_fields,
    validate,
)

any_text = st.text(st.characters(exclude_categories=()), max_size=12)
HOSTILE = {
    "nul": "a\0b\0",
    "lone surrogate": "half an emoji \ud83d, and the other \ude00",
    "two lone surrogates that would be a pair": "\ud83d\ude00",
    "our own escape": "\ufdd0D83D and \ufdd0",
    "sql": "'; DROP TABLE responses; --",
    "html": "<script>alert(1)</script>&amp;",
    "bidi and separators": "\u202eabc\u2028\u2029\ufeff\uffff",
    "empty": "",
}


def cells(name: str, kind: str, words: tuple[str, ...]) -> st.SearchStrategy[Any]:
    if words:
        return st.sampled_from(words)
    return {
        "string": any_text.filter(bool) if name.endswith("_id") else any_text,
        "int64": st.integers(-(2**63), 2**63 - 1),
        "float64": st.floats(allow_nan=False, allow_infinity=False),
        "bool": st.booleans(),
        "list<int32>": st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
        "list<float32>": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=4).map(tuple),
    }[kind]


@st.composite
def a_row(draw: st.DrawFn, record: type) -> Any:
    values = {}
    for item in columns(record):
        cell = cells(item.name, item.kind, item.words)
        values[item.name] = draw(st.none() | cell if item.nullable else cell)
    if "sampling_logprobs" in values:
        length = 0 if values.get("origin") in ("solution", "critique") else len(values["token_ids"])
        values["sampling_logprobs"] = (values["sampling_logprobs"] + (0.0,) * length)[:length]
    return record(**values)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), record=st.sampled_from(list(RECORDS.values())))
def test_rows_of_every_record_come_back_as_they_were(data: st.DataObject, record: type) -> None:
    identity = attrgetter(*unique_fields(record))
    rows = data.draw(st.lists(a_row(record), max_size=4, unique_by=identity))
    validate(record, rows)
    table = to_table(record, rows)
    assert table.schema.equals(arrow_schema(record))
    assert from_table(record, table) == rows


@given(any_text)
def test_the_escape_of_surrogates_is_exact_and_leaves_other_text_alone(text: str) -> None:
    escaped = escape_surrogates(text)
    escaped.encode("utf-8")
    assert unescape_surrogates(escaped) == text
    if not any("\ud800" <= c <= "\udfff" or c == "\ufdd0" for c in text):
        assert escaped == text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_comes_back_unchanged(text: str) -> None:
    rows = [rows_of.a_response(text=text)]
    assert from_table(type(rows[0]), to_table(type(rows[0]), rows))[0].text == text


def test_a_sliced_table_gives_the_rows_of_the_slice() -> None:
    rows = [rows_of.a_response(response_id=f"r{i}", token_ids=(i, 2)) for i in range(5)]
    record = type(rows[0])
    assert from_table(record, to_table(record, rows).slice(2, 2)) == rows[2:4]
    parts = pa.concat_tables([to_table(record, rows[:2]), to_table(record, rows[2:])])
    assert from_table(record, parts) == rows


def test_only_fields_that_may_be_none_are_nullable() -> None:
    schema = arrow_schema(RECORDS["Verdict"])
    assert {field.name for field in schema if field.nullable} == {"answer", "reward"}
    assert arrow_schema(RECORDS["Response"]).field("sampling_logprobs").type == pa.list_(pa.float32())
    assert arrow_schema(RECORDS["Response"]).field("token_ids").type == pa.list_(pa.int32())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (rows_of.a_response(response_id=""), "response_id is empty"),
        (rows_of.a_response(group_id=""), "group_id is empty"),
        (rows_of.a_response(sampling_logprobs=(-0.5,)), "2 token_ids, but 1 sampling_logprobs"),
        (rows_of.a_response(sampling_logprobs=(-0.5, -math.inf)), "sampling_logprobs holds a value that is not finite"),
        (rows_of.a_response(finish_reason="abort"), "'abort', not one of stop, length"),
        (rows_of.a_verdict(reward=math.nan), "reward is nan"),
        (rows_of.update_metrics(loss=math.inf), "loss is inf"),
        (rows_of.a_verdict(status=None), "status is None"),
    ],
)
def test_a_row_that_breaks_a_rule_of_its_record_is_refused_with_the_reason(row: Any, reason: str) -> None:
    with pytest.raises(RecordInvalid, match="row 0") as caught:
        validate(type(row), [row])
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        rows_of.a_response(token_ids=(1, 2**31)),
        rows_of.a_response(token_ids=(1, None)),
        rows_of.a_response(seed="seven"),
        rows_of.a_response(text=None),
        rows_of.a_response(text=b"bytes"),
        rows_of.a_verdict(correct="yes"),
    ],
    ids=["token id beyond int32", "None among token ids", "text as seed", "None as text", "bytes", "text as bool"],
)
def test_a_value_of_another_type_is_refused(row: Any) -> None:
    with pytest.raises(RecordInvalid):
        to_table(type(row), [row])


def test_ids_are_unique_within_a_table() -> None:
    twice = [rows_of.a_response(), rows_of.a_response(index=1)]
    with pytest.raises(RecordInvalid, match="rows 0 and 1 have the same response_id"):
        validate(type(twice[0]), twice)


def test_a_problem_may_be_evaluated_several_times_and_a_group_keep_several_refinements() -> None:
    results = [rows_of.an_eval_result(sample_index=i) for i in range(3)]
    validate(type(results[0]), results)
    with pytest.raises(RecordInvalid, match="problem_id and sample_index"):
        validate(type(results[0]), [results[0], results[0]])
    selections = [rows_of.a_selection(refinement_id=f"f{i}") for i in range(2)]
    validate(type(selections[0]), selections)


def test_rows_of_another_record_are_refused() -> None:
    with pytest.raises(RecordInvalid, match="row 0 is a Verdict, not a Response"):
        to_table(RECORDS["Response"], [rows_of.a_verdict()])


def test_a_table_of_another_record_is_refused() -> None:
    table = to_table(RECORDS["Verdict"], [rows_of.a_verdict()])
    with pytest.raises(SchemaMismatch, match="not one of Response"):
        from_table(RECORDS["Response"], table)


def test_a_record_that_gains_a_field_or_changes_a_type_gets_another_digest() -> None:
    def made(*fields: tuple[str, Any]) -> str:
        return schema_digest(dataclasses.make_dataclass("Thing", fields))

    shapes = [
        made(("thing_id", str)),
        made(("thing_id", str), ("size", int)),
        made(("thing_id", str), ("size", float)),
        made(("thing_id", str), ("size", int | None)),
        made(("thing_id", str), ("length", int)),
    ]
    assert len(set(shapes)) == len(shapes)
    assert made(("thing_id", str)) == shapes[0]
    assert made(("thing_id", Literal["a"])) == shapes[0], "the words of a Literal are text like any other"
    assert len({schema_digest(record) for record in RECORDS.values()}) == len(RECORDS)


def test_an_annotation_without_a_column_type_is_an_error_of_the_program() -> None:
    for annotation in (dict, list[int], int | str, tuple[int, ...] | None, tuple[str, ...]):
        with pytest.raises(TypeError, match="field thing"):
            arrow_schema(dataclasses.make_dataclass("Thing", [("thing", annotation)]))
