"""Problems in, prompts out."""

from pathlib import Path
from typing import Any

from cgrpo_core.ids import make_id
from cgrpo_core.params import RolloutParams, RunParams
from cgrpo_core.prompts import question_messages
from cgrpo_core.records import Problem, Prompt, RejectedRow
from cgrpo_core.schedule import chunk_slots, problems_of_slots
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
    run, rollout = context.block(RunParams), context.block(RolloutParams)
    tokenizer = load_tokenizer(str(resolve_model(model, context.home, Path(context.base_dir))))
    slots = chunk_slots(context.iteration, run.prompts_per_iteration, context.plan.chunk or 0, run.chunks)
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
