"""Baselines of RLTF and ICRL, R3L's amplification and pivotal credit, by hand."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrpo_core.advantages import group_advantages
from cgrpo_core.params import AdvantageParams
from cgrpo_core.records import Origin, Refinement, Response
from cgrpo_core.restarts import given_tokens

FIRST = AdvantageParams(baseline="first_attempt_mean")
APART = AdvantageParams(baseline="origin_mean")
RESPONSES: list[Origin] = ["response", "response"]
MIXED: list[Origin] = ["response", "response", "refinement", "refinement"]


def test_right_refinements_of_wrong_first_attempts_keep_their_gradient() -> None:
    assert group_advantages([0.0, 0.0, 1.0, 1.0], ["g"] * 4, FIRST, MIXED) == [0.0, 0.0, 1.0, 1.0]
    assert group_advantages([0.0, 1.0, 1.0, 0.0], ["g"] * 4, FIRST, MIXED) == [-0.5, 0.5, 0.5, -0.5]


def test_the_baseline_of_first_attempts_is_that_of_the_rows_own_group_and_none_without_one() -> None:
    rewards, groups = [0.0, 1.0, 1.0, 0.0, 1.0], ["a", "b", "a", "c", "c"]
    origins: list[Origin] = ["response", "response", "refinement", "refinement", "refinement"]
    assert group_advantages(rewards, groups, FIRST, origins) == [0.0, 0.0, 1.0, 0.0, 0.0]


def test_origins_have_baselines_of_their_own() -> None:
    assert group_advantages([0.0, 1.0, 1.0, 1.0], ["g"] * 4, APART, MIXED) == [-0.5, 0.5, 0.0, 0.0]


def test_without_origins_all_rows_are_responses() -> None:
    rewards, groups = [0.0, 1.0, 0.0], ["g"] * 3
    for params in (FIRST, APART):
        assert group_advantages(rewards, groups, params) == group_advantages(rewards, groups, AdvantageParams())


def test_positive_advantages_are_amplified_and_negative_ones_are_not() -> None:
    scaled = AdvantageParams(positive_scale=3.0)
    assert group_advantages([0.0, 0.0, 0.0, 1.0], ["g"] * 4, scaled) == [-0.25, -0.25, -0.25, 2.25]


def test_a_deviation_of_first_attempts_is_refused() -> None:
    with pytest.raises(ValueError, match="first_attempt_mean"):
        AdvantageParams(baseline="first_attempt_mean", divide_by_std=True)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["a", "b"]), st.sampled_from(get_args(Origin))),
        min_size=1,
        max_size=12,
    ),
    st.randoms(),
)
def test_the_order_of_rows_changes_no_advantage(rows: list[tuple[float, str, Origin]], random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(rows)))
    random.shuffle(order)
    for params in (FIRST, APART, AdvantageParams(positive_scale=3.0)):
        plain = group_advantages(
            *[list(column) for column in zip(*rows, strict=True)][:2], params, [r[2] for r in rows]
        )
        mixed = [rows[index] for index in order]
        shuffled = group_advantages([r[0] for r in mixed], [r[1] for r in mixed], params, [r[2] for r in mixed])
        assert shuffled == [plain[index] for index in order]


RESPONSE = Response(
    response_id="r",
    group_id="g",
    problem_id="q",
    index=0,
    text="",
    token_ids=(5, 6, 7, 8),
    sampling_logprobs=(-1.0,) * 4,
    finish_reason="stop",
    policy_version=0,
    seed=1,
)
REFINEMENT = Refinement(
    refinement_id="f",
    response_id="r",
    critique_id="c",
    group_id="g",
    problem_id="q",
    index=0,
    prompt_token_ids=(1, 2),
    text="",
    token_ids=(9,),
    sampling_logprobs=(-1.0,),
    finish_reason="stop",
    policy_version=0,
    seed=2,
    kept_tokens=2,
    restart="named",
)


def test_a_restarted_response_is_trained_whole_or_from_where_its_refinement_departs() -> None:
    rows = [RESPONSE, REFINEMENT]
    assert given_tokens(rows, [RESPONSE], "whole") == {"r": (), "f": (5, 6)}
    assert given_tokens(rows, [RESPONSE], "suffix") == {"r": (5, 6), "f": (5, 6)}


def test_of_several_refinements_the_one_that_departs_first_decides_and_a_response_may_be_absent() -> None:
    earlier = replace(REFINEMENT, refinement_id="e", kept_tokens=1)
    found = given_tokens([RESPONSE, REFINEMENT, earlier], [RESPONSE], "suffix")
    assert found == {"r": (5,), "f": (5, 6), "e": (5,)}
    assert given_tokens([REFINEMENT], [RESPONSE], "suffix") == {"f": (5, 6)}
    assert given_tokens([RESPONSE], [RESPONSE], "suffix") == {"r": ()}
