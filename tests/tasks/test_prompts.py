"""Prompts from the schedule, replacements for groups that teach nothing, and solutions as tokens."""

from dataclasses import replace

import pytest
from stage_calls import call, problem, response, verdict
from tiny_model import build_tiny_model

from cgrpo_core.errors import UserError
from cgrpo_core.params import RolloutParams, RunParams

RUN = RunParams(prompts_per_iteration=3, slots_per_prompt=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return {"kind": "path", "path": str(build_tiny_model(tmp_path_factory.mktemp("tiny")))}


def problems(count=9, **fields):
    return [replace(problem(f"q{k}"), question=f"{k} + 1?", **fields) for k in range(count)]


def first_prompts(tmp_path, model):
    arguments = {"problems": problems(), "model": model}
    return call("tasks.dataset:select_prompts", tmp_path, RUN, RolloutParams(), **arguments).tables["prompts"]


def replaced(tmp_path, model, prompts, rewards):
    named = [
        (prompt.prompt_id, f"{prompt.slot}-{k}", reward)
        for prompt, group in zip(prompts, rewards, strict=True)
        for k, reward in enumerate(group)
    ]
    return call(
        "tasks.dataset:replace_equal_groups",
        tmp_path,
        RUN,
        RolloutParams(),
        problems=problems(),
        model=model,
        prompts=prompts,
        responses=[response(name, group_id) for group_id, name, _ in named],
        verdicts=[verdict(name, reward) for _, name, reward in named],
    ).tables["prompts"]


def test_another_problem_takes_the_place_of_each_whose_responses_are_all_alike(tmp_path, model):
    prompts = first_prompts(tmp_path, model)
    others = replaced(tmp_path, model, prompts, [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert [prompt.slot for prompt in prompts] == [0, 1, 2]
    assert [prompt.slot for prompt in others] == [4, 5]
    assert not {prompt.problem_id for prompt in prompts} & {prompt.problem_id for prompt in others}


def test_what_was_not_judged_teaches_nothing_either(tmp_path, model):
    prompts = first_prompts(tmp_path, model)
    assert len(replaced(tmp_path, model, prompts, [[None, None], [1.0, None], [1.0, 0.0, None]])) == 2


def test_nothing_is_replaced_where_every_group_teaches(tmp_path, model):
    assert replaced(tmp_path, model, first_prompts(tmp_path, model), [[1.0, 0.0]] * 3) == []


def tokenized(tmp_path, model, given, limit=10):
    prompts = first_prompts(tmp_path, model)
    arguments = {"prompts": prompts, "problems": given, "model": model}
    return call("tasks.dataset:tokenize_solutions", tmp_path, RolloutParams(max_response_tokens=limit), **arguments)


def test_a_solution_is_tokenized_once_ended_and_counted_when_it_is_cut_or_missing(tmp_path, model):
    prompts = first_prompts(tmp_path, model)
    text_of = {prompts[0].problem_id: " 2 ", prompts[1].problem_id: "a long derivation"}
    done = tokenized(tmp_path, model, [replace(row, solution=text_of.get(row.problem_id)) for row in problems()])
    short, long = done.tables["solutions"]
    assert (len(short.token_ids), short.cut, short.group_id) == (2, False, prompts[0].prompt_id)
    assert (len(long.token_ids), long.cut) == (10, True)
    assert done.counts == {"solutions": 2, "without_solution": 1, "solutions_cut": 1}


def test_a_data_set_without_any_solution_is_refused(tmp_path, model):
    with pytest.raises(UserError, match="no problem has a worked solution"):
        tokenized(tmp_path, model, problems())
