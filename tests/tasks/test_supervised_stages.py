"""Rows for supervised baselines and for self-distillation, from records made by hand."""

from dataclasses import replace

import pytest
from stage_calls import call, problem, prompt, refinement, response, verdict
from test_refine_modes import critique

from cgrpo_core.params import RefineParams, RolloutParams, SupervisedParams
from cgrpo_core.records import Solution

COMPLETIONS = "tasks.supervised:imitate_completions"


@pytest.fixture(scope="module")
def model(model_dir):
    return {"kind": "path", "path": str(model_dir)}


def completions(tmp_path, **params):
    return call(
        COMPLETIONS,
        tmp_path,
        SupervisedParams(**params),
        prompts=[prompt()],
        responses=[response("r1"), response("r2"), response("r3")],
        verdicts=[verdict("r1", 1.0), verdict("r2", 0.0), verdict("r3", None)],
        refinements=[refinement("f1", "r1"), refinement("f2", "r2")],
        refinement_verdicts=[verdict("f1", 0.0), verdict("f2", 1.0)],
    )


@pytest.mark.parametrize(("imitate", "ids"), [("responses", {"r1"}), ("refinements", {"f2"}), ("both", {"r1", "f2"})])
def test_correct_completions_are_imitated_as_continuations_of_the_question(tmp_path, imitate, ids):
    done = completions(tmp_path, imitate=imitate)
    rows = {row.sample_id: row for row in done.tables["samples"]}
    assert set(rows) == ids
    assert all((row.prompt_token_ids, row.advantage, row.weight) == ((1, 2), 1.0, 1.0) for row in rows.values())
    assert (done.counts["judged"], done.counts["without_verdict"], done.metrics["reward_sum"]) == (2, 1, 1.0)


def test_a_group_without_a_correct_completion_teaches_nothing_and_is_counted(tmp_path):
    done = call(
        COMPLETIONS,
        tmp_path,
        SupervisedParams(),
        prompts=[prompt()],
        responses=[response("r")],
        verdicts=[verdict("r", 0.0)],
    )
    assert done.tables["samples"] == []
    assert (done.counts["groups_without_gradient"], done.counts["not_imitated"]) == (1, 1)


def test_a_restarted_refinement_is_imitated_after_what_it_kept(tmp_path):
    first = replace(response("r"), token_ids=(5, 6, 7), sampling_logprobs=(-0.5,) * 3)
    done = call(
        COMPLETIONS,
        tmp_path,
        SupervisedParams(imitate="refinements"),
        prompts=[prompt()],
        responses=[first],
        verdicts=[verdict("r", 0.0)],
        refinements=[replace(refinement("f", "r"), kept_tokens=2, restart="named")],
        refinement_verdicts=[verdict("f", 1.0)],
    )
    assert [row.prompt_token_ids for row in done.tables["samples"]] == [(1, 2, 5, 6)]


def test_worked_solutions_are_imitated_as_they_were_tokenized(tmp_path):
    solution = Solution(solution_id="s", group_id="g", problem_id="q", token_ids=(8, 9), cut=False)
    done = call("tasks.supervised:imitate_solutions", tmp_path, prompts=[prompt()], solutions=[solution])
    (row,) = done.tables["samples"]
    assert (row.origin, row.prompt_token_ids, row.token_ids, row.sampling_logprobs) == ("solution", (1, 2), (8, 9), ())


def critiques(tmp_path, model, texts, **rollout):
    return call(
        "tasks.supervised:imitate_critiques",
        tmp_path,
        RolloutParams(template="number", **rollout),
        critiques=[critique(name, text) for name, text in texts.items()],
        responses=[response(name) for name in texts],
        prompts=[prompt()],
        problems=[problem()],
        model=model,
    )


def test_critiques_are_imitated_given_question_and_response_ended_or_cut(tmp_path, model, model_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    (row,) = critiques(tmp_path, model, {"r": "Wrong."}).tables["samples"]
    assert (row.origin, row.sampling_logprobs) == ("critique", ())
    asked = tokenizer.decode(row.prompt_token_ids)
    assert "2 + 2?" in asked
    assert "Attempt:\n4" in asked
    assert tokenizer.decode(row.token_ids) == "Wrong." + tokenizer.eos_token
    done = critiques(tmp_path, model, {"r": "Wrong."}, max_response_tokens=3)
    assert tokenizer.decode(done.tables["samples"][0].token_ids) == "Wro"
    assert done.counts["critiques_cut"] == 1


def test_a_request_that_is_too_long_and_a_critique_that_is_none_are_counted(tmp_path, model):
    done = critiques(tmp_path, model, {"r": "Wrong."}, max_prompt_tokens=20)
    assert (done.tables["samples"], done.counts["too_long"]) == ([], 1)


def test_a_response_is_distilled_into_from_the_prompt_that_shows_its_critique(tmp_path, model, model_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    done = call(
        "tasks.distil:build_distillation_samples",
        tmp_path,
        RefineParams(gate="all"),
        RolloutParams(template="number"),
        prompts=[prompt()],
        responses=[response("r1"), response("r2")],
        verdicts=[verdict("r1", 0.0), verdict("r2", 1.0)],
        critiques=[critique("r1", "Wrong.")],
        problems=[problem()],
        model=model,
    )
    (row,) = done.tables["samples"]
    assert (row.sample_id, row.origin, row.prompt_token_ids, row.token_ids) == ("r1", "response", (1, 2), (5, 6))
    context = tokenizer.decode(row.context_token_ids)
    assert all(part in context for part in ("2 + 2?", "4", "Wrong."))
    assert done.counts["without_critique"] == 1
