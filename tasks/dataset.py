"""Problems in, prompts out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgrpo_core.dapo import teaches
from cgrpo_core.errors import UserError
from cgrpo_core.ids import make_id
from cgrpo_core.luffy import ended
from cgrpo_core.params import RolloutParams, RunParams
from cgrpo_core.prompts import question_messages
from cgrpo_core.records import Problem, Prompt, RejectedRow, Response, Solution, Verdict
from cgrpo_core.schedule import chunk_slots, problems_of_slots, replacement_slot
from tasks.models import resolve_model
from tasks.problems import load
from tasks.stage import Published, StageContext, stage
from tasks.tokenizer import load_tokenizer, render


@stage
def load_problems(context: StageContext, source: dict[str, Any]) -> Published:
    """Read a data set; rows without question or answer are rejected, each with its line and reason."""
    loaded = load(source, Path(context.base_dir))
    rejected = [
        RejectedRow(
            row_id=make_id("x", context.key, number),
            source=str(source.get("path", source["kind"])),
            line=row.line,
            reason=row.reason,
        )
        for number, row in enumerate(loaded.rejected)
    ]
    return Published(
        tables={"problems": loaded.problems, "rejected": rejected},
        counts={"problems": len(loaded.problems), "rejected": len(rejected), **loaded.counts},
    )


@stage
def select_prompts(context: StageContext, problems: list[Problem], model: dict[str, Any]) -> Published:
    """Take this chunk's problems from the schedule and render each for the policy; too long ones are counted out."""
    run, chunk = context.block(RunParams), context.plan.chunk or 0
    slots = chunk_slots(context.iteration, run.prompts_per_iteration, chunk, run.chunk_count, run.slots_per_prompt)
    return _published(context, problems, model, slots)


@stage
def replace_equal_groups(
    context: StageContext,
    problems: list[Problem],
    model: dict[str, Any],
    prompts: list[Prompt],
    responses: list[Response],
    verdicts: list[Verdict],
) -> Published:
    """Take another problem in the place of each whose responses all have one reward (DAPO's dynamic sampling)."""
    reward_of = {verdict.subject_id: verdict.reward for verdict in verdicts}
    rewards: dict[str, list[float | None]] = {prompt.prompt_id: [] for prompt in prompts}
    for response in responses:
        rewards[response.group_id].append(reward_of[response.response_id])
    width = context.block(RunParams).prompts_per_iteration
    slots = [replacement_slot(prompt.slot, width) for prompt in prompts if not teaches(rewards[prompt.prompt_id])]
    return _published(context, problems, model, slots)


@stage
def tokenize_solutions(
    context: StageContext, prompts: list[Prompt], problems: list[Problem], model: dict[str, Any]
) -> Published:
    """Tokenize the worked solution of each prompt's problem; problems without one are counted (LUFFY)."""
    if not any(problem.solution for problem in problems):
        raise UserError(
            "no problem has a worked solution", "give inputs.problems a data set with the column `solution`"
        )
    tokenizer = load_tokenizer(str(resolve_model(model, context.home, Path(context.base_dir))))
    limit = context.block(RolloutParams).max_response_tokens
    by_id = {problem.problem_id: problem for problem in problems}
    solutions = []
    for prompt in prompts:
        text = by_id[prompt.problem_id].solution
        if not text:
            continue
        token_ids = tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
        solutions.append(
            Solution(
                solution_id=make_id("s", context.key, prompt.prompt_id),
                group_id=prompt.prompt_id,
                problem_id=prompt.problem_id,
                token_ids=ended(token_ids, tokenizer.eos_token_id, limit),
                cut=len(token_ids) >= limit,
            )
        )
    cut = sum(solution.cut for solution in solutions)
    without = len(prompts) - len(solutions)
    counts = {"solutions": len(solutions), "without_solution": without, "solutions_cut": cut}
    return Published(tables={"solutions": solutions}, counts=counts)


def _published(
    context: StageContext, problems: list[Problem], model: dict[str, Any], slots: Sequence[int]
) -> Published:
    rollout = context.block(RolloutParams)
    tokenizer = load_tokenizer(str(resolve_model(model, context.home, Path(context.base_dir))))
    by_id = {problem.problem_id: problem for problem in problems}
    prompts = []
    for slot, problem_id in zip(slots, problems_of_slots(list(by_id), slots, context.seed), strict=True):
        text, token_ids = render(tokenizer, question_messages(by_id[problem_id].question, rollout.template))
        if len(token_ids) > rollout.max_prompt_tokens:
            continue
        prompts.append(
            Prompt(
                prompt_id=make_id("p", context.key, slot),
                problem_id=problem_id,
                iteration=context.iteration,
                slot=slot,
                template=rollout.template,
                text=text,
                token_ids=tuple(token_ids),
            )
        )
    return Published(
        tables={"prompts": prompts}, counts={"prompts": len(prompts), "too_long": len(slots) - len(prompts)}
    )
