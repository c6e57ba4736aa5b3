"""Agreement with the official release's numbers, and a checker that can be trusted to disagree."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cgrpo_core.golden import KINDS, check_case, check_cases, tolerance

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
CASES: list[dict[str, Any]] = [
    case for path in sorted(GOLDEN.glob("*.json")) for case in json.loads(path.read_text(encoding="utf-8"))
]


def first(kind: str, **wanted: object) -> dict[str, Any]:
    """Return a copy of the first case of a kind whose fields, or flags, have the wanted values."""
    for case in CASES:
        fields = {**case, **case.get("flags", {})}
        if case["kind"] == kind and all(fields[name] == value for name, value in wanted.items()):
            return copy.deepcopy(case)
    raise LookupError(kind)


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_the_release_numbers_are_reproduced(case: dict[str, Any]) -> None:
    assert check_case(case) == []


def test_every_kind_is_tried() -> None:
    assert {case["kind"] for case in CASES} == set(KINDS)
    assert len(CASES) == 58


def nudge(value: Any) -> Any:
    """Return nested lists with the last number moved by 1e-5 and more; whole numbers by 1."""
    if isinstance(value, list):
        return [*value[:-1], nudge(value[-1])]
    return 1 - value if value in (0, 1) and isinstance(value, int) else value + (1 if isinstance(value, int) else 1e-4)


EXPECTED = {
    "advantage": ["advantages", "returns"],
    "on_off_loss": ["grad_log_prob", "outputs"],
    "clipped_policy_loss": ["grad_log_prob", "outputs"],
    "kl": ["output"],
    "select_refinement": ["chosen_index", "flag_correct"],
    "eos_mask": ["response_mask"],
    "actor_step": ["grad_log_prob", "metrics"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in EXPECTED.items() for name in names])
def test_a_changed_number_is_noticed_wherever_it_stands(kind: str, name: str) -> None:
    case = first(kind)
    scalars = case[name] if isinstance(case[name], dict) else {None: case[name]}
    for key, value in scalars.items():
        changed = copy.deepcopy(case)
        if key is None:
            changed[name] = nudge(value)
        else:
            changed[name][key] = nudge(value)
        (line,) = check_case(changed)
        assert line.startswith(name if key is None else f"{name}.{key}")


def test_a_dropped_input_gradient_or_output_is_a_disagreement() -> None:
    for kind, names in EXPECTED.items():
        case = first(kind)
        for field in set(case) - {"id", "seed", "split", "tag", "layout", "kind", "dtype"}:
            without = {name: value for name, value in case.items() if name != field}
            lines = check_case(without)
            optional = field in ("cliprange_low", "cliprange_high")
            assert optional or (len(lines) == 1 and field in lines[0]), (kind, field, lines)
        assert set(names) < set(case)


def without_output(case: dict[str, Any]) -> None:
    del case["outputs"]["ppo_kl"]


def with_unknown_output(case: dict[str, Any]) -> None:
    case["outputs"]["bonus"] = 1.0


def with_unknown_flag(case: dict[str, Any]) -> None:
    case["flags"]["off_policy_magic"] = True


def with_unknown_reshape(case: dict[str, Any]) -> None:
    case["flags"]["off_policy_reshape"] = "p_div_p_7"


def with_ragged_rows(case: dict[str, Any]) -> None:
    case["log_prob"][0].pop()


def with_other_shape(case: dict[str, Any]) -> None:
    case["old_log_prob"].pop()


def with_text_for_a_number(case: dict[str, Any]) -> None:
    case["advantages"][0][0] = "much"


def with_half_a_mask(case: dict[str, Any]) -> None:
    case["prefix_mask"][0][0] = 0.5


def with_deep_rows(case: dict[str, Any]) -> None:
    case["log_prob"] = [[[0.0]]]


def with_no_rows(case: dict[str, Any]) -> None:
    case["log_prob"] = []


def with_unknown_dtype(case: dict[str, Any]) -> None:
    case["dtype"] = "float8"


def with_flags_that_are_no_object(case: dict[str, Any]) -> None:
    case["flags"] = [1]


def with_a_number_beyond_float64(case: dict[str, Any]) -> None:
    case["flags"]["cliprange"] = 10**400


@pytest.mark.parametrize(
    "spoil",
    [
        without_output,
        with_unknown_output,
        with_unknown_flag,
        with_unknown_reshape,
        with_ragged_rows,
        with_other_shape,
        with_text_for_a_number,
        with_half_a_mask,
        with_deep_rows,
        with_no_rows,
        with_unknown_dtype,
        with_flags_that_are_no_object,
        with_a_number_beyond_float64,
    ],
)
def test_a_malformed_case_gives_one_line_and_no_traceback(spoil: Callable[[dict[str, Any]], None]) -> None:
    case = first("on_off_loss")
    spoil(case)
    assert len(check_case(case)) == 1


def test_an_unknown_kind_is_a_failure_that_says_so() -> None:
    assert "unknown kind 'gspo'" in check_case({"kind": "gspo", "id": "x"})[0]
    assert "'kind' is missing" in check_case({"id": "x"})[0]
    assert "kind is 3" in check_case({"kind": 3})[0]


@pytest.mark.parametrize("case", [None, 3, "case", [], [{}]])
def test_what_is_no_object_is_a_failing_case(case: object) -> None:
    (line,) = check_case(case)
    assert line.startswith("malformed: a case is a JSON object")


def test_results_carry_the_id_or_the_position_of_each_case() -> None:
    results = check_cases([first("kl"), {"kind": "gspo"}, 5])
    assert [result.case_id for result in results] == [first("kl")["id"], "case 1", "case 2"]
    assert [bool(result.disagreements) for result in results] == [False, True, True]


def test_not_a_number_agrees_with_itself_only() -> None:
    case = first("kl")
    case["output"][0][0] = "NaN"
    assert check_case(case) == ["output: error inf is over 2e-09"]
    case["logprob"][0][0] = "NaN"
    assert check_case(case) == []


def test_tolerances_are_by_dtype_and_name() -> None:
    assert tolerance("outputs.pg_loss", "float32") == 3e-6
    assert tolerance("outputs.pg_loss", "float64") == 2e-9
    assert tolerance("grad_log_prob", "float64") == 2e-9
    assert tolerance("outputs.on_pg_clipfrac", "float64") == 1e-7
    assert tolerance("outputs.off_ratio_max_clip_frac", "float64") == 1e-7
    assert tolerance("advantages", "float64") == 1e-7


def test_the_released_step_weighs_micro_batches_by_eight_whatever_their_size() -> None:
    case = first("actor_step", use_off_policy_loss=True, use_dynamic_bsz=True, micro_batch_sizes=[4, 12])
    case["micro_batch_sizes"] = [12, 4]
    lines = check_case(case)
    assert any(line.startswith("metrics.actor/pg_loss") for line in lines)
    rows_only = first("actor_step", use_off_policy_loss=False, use_dynamic_bsz=False)
    rows_only["use_dynamic_bsz"] = True
    assert check_case(rows_only) == []  # 8 of 16 rows each: a half either way
