"""Accuracy of a policy on the evaluation problems, without any critique."""

from typing import Any

from cgrpo_core.ids import derive_seed
from cgrpo_core.params import EvaluateParams, RolloutParams, VerifyParams
from cgrpo_core.prompts import question_messages
from cgrpo_core.records import EvalResult, Policy, Problem
from tasks.engines.protocol import SampleRequest, SamplingSettings
from tasks.policies import model_directory, sample_with
from tasks.stage import Published, StageContext, stage
from tasks.tokenizer import load_tokenizer, render
from tasks.verifier_pool import case_of, verify_all
from tasks.verify import count_verdicts


@stage
def evaluate_policy(context: StageContext, policy: list[Policy], problems: list[Problem]) -> Published:
    """Answer every evaluation problem (greedy at temperature 0) and judge the answers."""
    params, template = context.block(EvaluateParams), context.block(RolloutParams).template
    tokenizer = load_tokenizer(str(model_directory(context)))
    requests, places = [], {}
    too_long = 0
    for problem in problems:
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
    cases = [case_of(done.request_id, done.text, places[done.request_id][0]) for done in sampled.completions]
    verdicts = {verdict.subject_id: verdict for verdict in verify_all(cases, context.block(VerifyParams))}
    results = [
        _result(policy[0], places[done.request_id], done, verdicts[done.request_id]) for done in sampled.completions
    ]
    counts = {"too_long": too_long, "truncated": sum(row.finish_reason == "length" for row in results)}
    accuracy = sum(row.correct for row in results) / len(results) if results else 0.0
    return Published(
        tables={"results": results},
        counts=counts | count_verdicts(list(verdicts.values())),
        metrics={**sampled.metrics, "accuracy": accuracy},
        evidence=sampled.evidence,
    )


def _result(policy: Policy, place: tuple[Problem, int], completion: Any, verdict: Any) -> EvalResult:
    problem, index = place
    return EvalResult(
        problem_id=problem.problem_id,
        policy_version=policy.policy_version,
        sample_index=index,
        correct=verdict.correct,
        status=verdict.status,
        answer=verdict.answer,
        text=completion.text,
        tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
    )
