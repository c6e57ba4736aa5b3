"""Accuracy of a policy on held-out problems, without any critique: inside training, and by shards on benchmarks."""

from pathlib import Path
from typing import Any

from cgrpo_core.evaluation import Measured, accuracy, summarise
from cgrpo_core.ids import derive_seed, make_id
from cgrpo_core.params import EvaluateParams, RolloutParams, VerifyParams
from cgrpo_core.prompts import QuestionTemplate, question_messages
from cgrpo_core.records import EvalResult, Policy, Problem, RejectedRow
from tasks.benchmarks import load_benchmark_problems
from tasks.engines.protocol import Completion, SampleRequest, SamplingSettings
from tasks.policies import model_directory, sample_with
from tasks.stage import Published, StageContext, stage
from tasks.tokenizer import load_tokenizer, render
from tasks.verifier_pool import case_of, verify_all
from tasks.verify import count_verdicts

Places = dict[str, tuple[Problem, int]]  # request id -> the problem, and which of its samples


@stage
def load_benchmark(context: StageContext, source: dict[str, Any]) -> Published:
    """Read a benchmark; rows that are no problem are rejected, each with its line and reason."""
    loaded = load_benchmark_problems(source, Path(context.base_dir))
    rejected = [
        RejectedRow(row_id=make_id("x", context.key, number), source=source["name"], line=row.line, reason=row.reason)
        for number, row in enumerate(loaded.rejected)
    ]
    return Published(
        tables={"problems": loaded.problems, "rejected": rejected},
        counts={"problems": len(loaded.problems), "rejected": len(rejected), **loaded.counts},
    )


@stage
def evaluate_policy(context: StageContext, policy: list[Policy], problems: list[Problem]) -> Published:
    """Answer every problem of this shard (greedy at temperature 0) and judge the answers. Training has one shard."""
    params, template = context.block(EvaluateParams), question_template(context)
    tokenizer = load_tokenizer(str(model_directory(context)))
    requests: list[SampleRequest] = []
    places: Places = {}
    too_long = 0
    for problem in problems[context.plan.chunk or 0 :: params.shards]:
        _, token_ids = render(tokenizer, question_messages(problem.question, template))
        if len(token_ids) > params.max_prompt_tokens:
            too_long += 1
            continue
        for index in range(params.samples_per_problem):
            request_id = f"{problem.problem_id}#{index}"
            places[request_id] = (problem, index)
            seed = derive_seed(context.seed, "evaluate", policy[0].policy_version, problem.problem_id, index)
            requests.append(SampleRequest(request_id=request_id, prompt_token_ids=tuple(token_ids), seed=seed))
    settings = SamplingSettings(
        temperature=params.temperature, top_p=params.top_p, max_tokens=params.max_response_tokens
    )
    sampled = sample_with(context, policy[0], requests, settings)
    results, verdicts = _judged(context, policy[0], sampled.completions, places)
    counts = {"too_long": too_long, "truncated": sum(row.finish_reason == "length" for row in results)}
    share = accuracy(results)
    return Published(
        tables={"results": results},
        counts=counts | verdicts,
        metrics=sampled.metrics | ({} if share is None else {"accuracy": share}),
        evidence=sampled.evidence,
    )


@stage
def summarise_benchmark(
    context: StageContext, policy: list[Policy], problems: list[Problem], results: list[EvalResult]
) -> Published:
    """Turn the results of all shards into figures with intervals."""
    params = context.block(EvaluateParams)
    measured = Measured(
        benchmark=params.benchmark,
        policy_version=policy[0].policy_version,
        template=question_template(context),
        temperature=params.temperature,
        samples_per_problem=params.samples_per_problem,
    )
    return Published(tables={"figures": summarise(results, measured, problems=len(problems), seed=context.seed)})


def question_template(context: StageContext) -> QuestionTemplate:
    """Return the template that an evaluation poses its questions with."""
    template = context.block(EvaluateParams).template
    return context.block(RolloutParams).template if template == "as_trained" else template


def _judged(
    context: StageContext, policy: Policy, completions: list[Completion], places: Places
) -> tuple[list[EvalResult], dict[str, int]]:
    """Return a result for each completion, and how many verdicts there are of each kind."""
    params, template = context.block(EvaluateParams), question_template(context)
    cases = [case_of(done.request_id, done.text, places[done.request_id][0]) for done in completions]
    verdicts = {verdict.subject_id: verdict for verdict in verify_all(cases, context.block(VerifyParams))}
    results = []
    for done in completions:
        (problem, index), verdict = places[done.request_id], verdicts[done.request_id]
        results.append(
            EvalResult(
                problem_id=problem.problem_id,
                policy_version=policy.policy_version,
                sample_index=index,
                benchmark=params.benchmark,
                template=template,
                temperature=params.temperature,
                correct=verdict.correct,
                status=verdict.status,
                answer=verdict.answer,
                text=done.text,
                tokens=len(done.token_ids),
                finish_reason=done.finish_reason,
            )
        )
    return results, count_verdicts(list(verdicts.values()))
