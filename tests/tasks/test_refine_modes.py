"""What the policy is asked for in each mode of refining: prompts, seeds, what is kept, and what is left out."""

from dataclasses import replace

import pytest
from stage_calls import call, problem, prompt, refinement, response, verdict
from tiny_model import build_byte_tokenizer

from cgrpo_core.params import AdvantageParams, RefineParams, SelectParams
from cgrpo_core.records import Critique, SelectedRefinement
from tasks.aggregate import all_responses
from tasks.refine_requests import Material, each_response
from tasks.resample import question_alone
from tasks.restart import from_named_step

TOKENIZER = build_byte_tokenizer()
ANSWER = "Step 1: add.\nStep 2: double.\nStep 3: 7"


class Context:
    """What builders use of a stage's context."""

    key, seed, iteration = "ab" * 32, 17, 1


def critique(response_id: str, text: str) -> Critique:
    return Critique(
        critique_id=f"c-{response_id}",
        response_id=response_id,
        kind="test",
        text=text,
        verdict_in_text=None,
        agreed=None,
        attempts=1,
        model="rule",
        prompt_tokens=0,
        completion_tokens=0,
        latency_ms=0.0,
        status="ok",
    )


def material(texts: dict[str, str], **params: object) -> Material:
    """Return responses "a", "b", ... of one group, each with the critique that is given."""
    answers = {name: tuple(TOKENIZER(ANSWER + name)["input_ids"]) for name in texts}
    responses = {
        name: replace(response(name, text=ANSWER + name), token_ids=token_ids, index=index)
        for index, (name, token_ids) in enumerate(answers.items())
    }
    return Material(
        context=Context(),
        params=RefineParams(**params),
        template="number",
        tokenizer=TOKENIZER,
        critiques=[critique(name, text) for name, text in texts.items()],
        responses=responses,
        prompts={"g": prompt()},
        questions={"q": problem().question},
    )


def prompts_of(found) -> list[str]:
    return [TOKENIZER.decode(attempt.request.prompt_token_ids) for attempt in found.attempts]


def test_each_critiqued_response_is_refined_alone() -> None:
    found = each_response(material({"a": "Wrong.", "b": "Wrong too."}, per_response=2))
    assert [(one.response.response_id, one.index) for one in found.attempts] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert "Step 3: 7b" not in prompts_of(found)[0]
    assert len({one.request.seed for one in found.attempts}) == 4


def test_a_group_is_refined_once_from_all_of_its_critiqued_responses() -> None:
    (text,) = prompts_of(all_responses(material({"a": "Wrong.", "b": "Wrong too."})))
    assert all(part in text for part in ("Step 3: 7a", "Step 3: 7b", "Wrong.", "Wrong too."))
    (attempt,) = all_responses(material({"a": "Wrong.", "b": "Wrong too."})).attempts
    assert (attempt.responses_quoted, attempt.response.response_id) == (2, "a")


def test_responses_that_do_not_fit_are_left_out_and_counted_and_a_group_that_cannot_fit_is_too_long() -> None:
    whole = len(all_responses(material({"a": "Wrong.", "b": "No."})).attempts[0].request.prompt_token_ids)
    found = all_responses(material({"a": "Wrong.", "b": "No."}, max_prompt_tokens=whole - 1))
    assert found.attempts[0].responses_quoted == 1
    assert found.counts["responses_not_quoted"] == 1
    found = all_responses(material({"a": "Wrong.", "b": "No."}, max_prompt_tokens=20))
    assert found.attempts == []
    assert (found.counts["too_long"], found.counts["responses_not_quoted"]) == (1, 2)


def test_a_restart_keeps_the_sampled_tokens_before_the_named_step_and_asks_for_what_follows() -> None:
    given = material({"a": "Step 1 holds. Restart from step 2."})
    (attempt,) = from_named_step(given).attempts
    assert attempt.kept_text == "Step 1: add.\n"
    assert attempt.request.prompt_token_ids[-attempt.kept_tokens :] == given.responses["a"].token_ids[:13]
    assert prompts_of(from_named_step(given))[0].endswith("<|im_start|>assistant\nStep 1: add.\n")
    assert attempt.restart == "named"


def test_a_critique_without_a_step_is_counted_and_restarts_at_the_start_or_not_at_all() -> None:
    found = from_named_step(material({"a": "Wrong."}))
    assert (found.attempts[0].kept_tokens, found.attempts[0].restart) == (0, "unnamed")
    assert found.counts == {"restarts_unnamed": 1}
    found = from_named_step(material({"a": "Wrong.", "b": "Step 2 is wrong."}, unnamed_step="skip"))
    assert [one.response.response_id for one in found.attempts] == ["b"]
    assert found.counts == {"restarts_unnamed": 1, "restarts_skipped": 1}


def test_the_control_asks_the_question_alone_as_often_as_a_critique_would_have_been_answered() -> None:
    given = material({"a": "Wrong. It is 8.", "b": "Wrong. It is 8."}, per_response=2)
    found, refined = question_alone(given), each_response(given)
    assert {one.request.prompt_token_ids for one in found.attempts} == {given.prompts["g"].token_ids}
    assert {one.responses_quoted for one in found.attempts} == {0}
    places = [[(one.response.response_id, one.index) for one in mode.attempts] for mode in (found, refined)]
    assert places[0] == places[1]
    assert len({one.request.seed for one in found.attempts}) == 4


def test_a_question_that_is_too_long_is_not_asked_again() -> None:
    found = question_alone(material({"a": "Wrong."}, max_prompt_tokens=1))
    assert (found.attempts, found.counts) == ([], {"too_long": 1})


@pytest.mark.parametrize("mode", [each_response, all_responses, from_named_step, question_alone])
def test_the_same_material_gives_the_same_requests(mode) -> None:
    texts = {"a": "Step 2 is wrong.", "b": "Wrong."}
    assert mode(material(texts)).attempts == mode(material(texts)).attempts


def test_a_restarted_refinement_is_trained_after_what_it_kept(tmp_path) -> None:
    first = replace(response("r"), token_ids=(5, 6, 7), sampling_logprobs=(-0.5, -0.25, -0.125))
    again = replace(refinement("f", "r"), kept_tokens=2, restart="named")
    done = call(
        "tasks.advantage:build_training_samples",
        tmp_path,
        AdvantageParams(),
        SelectParams(),
        prompts=[prompt()],
        responses=[first],
        verdicts=[verdict("r", 0.0)],
        refinements=[again],
        refinement_verdicts=[verdict("f", 1.0)],
        selection=[SelectedRefinement(group_id="g", refinement_id="f", reason="correct")],
    )
    rows = {row.sample_id: row for row in done.tables["samples"]}
    assert (rows["f"].prompt_token_ids, rows["f"].token_ids) == ((1, 2, 5, 6), (7,))
