"""Critiques of the responses that are to be refined; none is written where the gate forbids a refinement."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cgrpo_core.critiques import RULE_BASED, SUBSTITUTE, ModelKind, RuleKind, Subject, critique_kind
from cgrpo_core.errors import UserError
from cgrpo_core.gate import groups_to_refine, unjudged_groups
from cgrpo_core.ids import make_id
from cgrpo_core.params import CritiqueParams, LimitParams, RefineParams
from cgrpo_core.records import Critique, Policy, Problem, Response, Verdict
from cgrpo_core.rewards import is_judged
from cgrpo_core.thinking import without_thinking
from tasks.critiquers import critiquer_of
from tasks.critiquing import Asked, Case, ask_about, attempt_counts
from tasks.models import resolve_model
from tasks.policies import engine_of, model_directory
from tasks.stage import Published, StageContext, stage
from tasks.tokenizer import load_tokenizer, quotable, token_map


class CritiquesDegraded(UserError):
    """More critiques than the declared share are not of the kind that was asked for."""


@stage
def write_critiques(
    context: StageContext,
    responses: list[Response],
    verdicts: list[Verdict],
    problems: list[Problem],
    policy: list[Policy],
    model: dict[str, Any],
) -> Published:
    """Write one critique for each judged response of each group that passes the gate, by rule or by asking a model."""
    params = context.block(CritiqueParams)
    verdict_of = {verdict.subject_id: verdict for verdict in verdicts}
    groups: dict[str, list[Verdict]] = {}
    for response in responses:
        groups.setdefault(response.group_id, []).append(verdict_of[response.response_id])
    refine = context.block(RefineParams)
    chosen = groups_to_refine(groups, refine.gate, refine.gate_below)
    subjects = [response for response in responses if response.group_id in chosen]
    if context.block(CritiqueParams).responses == "wrong":
        subjects = [response for response in subjects if not verdict_of[response.response_id].correct]
    judged = [response for response in subjects if is_judged(verdict_of[response.response_id].status)]
    cases = _cases(context, judged, verdict_of, problems)
    counts = {
        "groups": len(groups),
        "groups_refined": len(chosen),
        "groups_without_verdict": len(unjudged_groups(groups)),
        "critiques": len(cases),
        "without_verdict": len(subjects) - len(judged),
    }
    kind = critique_kind(params.kind)
    if isinstance(kind, RuleKind):
        critiques = [_by_rule(case, params.kind) for case in cases]
        return Published(tables={"critiques": critiques, "attempts": []}, counts=counts)
    return _by_model(context, cases, kind, policy[0], model, counts)


def _by_model(
    context: StageContext,
    cases: list[Case],
    kind: ModelKind,
    policy: Policy,
    model: dict[str, Any],
    counts: dict[str, int],
) -> Published:
    params = context.block(CritiqueParams)
    if not cases:
        return Published(tables={"critiques": [], "attempts": []}, counts=counts)
    name, critiquer = critiquer_of(context, policy)
    tokenizer = load_tokenizer(str(_tokenizer_directory(context, model)))
    cases = [_quotable(case, tokenizer) for case in cases]
    asked = ask_about(cases, kind, params, name, token_map(tokenizer), critiquer)
    critiques = [_critique(case, asked[case.critique_id], params, name) for case in cases]
    attempts = [row for case in cases for row in asked[case.critique_id].attempts]
    degraded = [row for row in critiques if row.degraded is not None]
    _check_share(context, degraded, len(critiques))
    statuses = Counter(f"critiques_{row.status}" for row in degraded)
    told = {
        "critiques_skipped": sum(row.degraded == "skipped" for row in degraded),
        "critiques_degraded": len(degraded),
    }
    return Published(
        tables={"critiques": critiques, "attempts": attempts},
        counts={**counts, **told, **statuses, **attempt_counts(attempts)},
        metrics=critiquer.metrics,
        evidence=critiquer.evidence,
    )


def _cases(
    context: StageContext,
    responses: Sequence[Response],
    verdict_of: Mapping[str, Verdict],
    problems: Sequence[Problem],
) -> list[Case]:
    problem_of = {problem.problem_id: problem for problem in problems}
    cases = []
    for response in responses:
        problem = problem_of[response.problem_id]
        subject = Subject(
            question=problem.question,
            response_text=response.text,
            correct=verdict_of[response.response_id].correct,
            ground_truth=problem.ground_truth,
            solution=problem.solution,
        )
        # The seed of the response is of run, iteration, slot, problem and index: the draws are as independent as those.
        case = Case(
            critique_id=make_id("c", context.key, response.response_id),
            response_id=response.response_id,
            seed_parts=("critique", response.seed),
            subject=subject,
        )
        cases.append(case)
    return cases


def _quotable(case: Case, tokenizer: Any) -> Case:
    subject = case.subject
    quoted = Subject(
        question=subject.question,
        response_text=quotable(tokenizer, subject.response_text),
        correct=subject.correct,
        ground_truth=subject.ground_truth,
        solution=subject.solution,
    )
    return Case(critique_id=case.critique_id, response_id=case.response_id, seed_parts=case.seed_parts, subject=quoted)


def _tokenizer_directory(context: StageContext, model: dict[str, Any]) -> Path:
    """An engine of ours reads its own tokens; of a model behind an API the policy's tokenizer is the measure."""
    if engine_of(context)["kind"] == "openai":
        return resolve_model(model, context.home, Path(context.base_dir))
    return model_directory(context)


def _critique(case: Case, asked: Asked, params: CritiqueParams, model: str) -> Critique:
    """Return the critique that was kept, or what the declared policy makes of there being none."""
    if asked.status != "ok" and params.degraded == "fail":
        raise CritiquesDegraded(
            f"response {case.response_id} has no critique of kind {params.kind}: {asked.status} after "
            f"{len(asked.attempts)} attempts" + "".join(f"; {row.error}" for row in asked.attempts[-1:] if row.error),
            "critique.degraded is fail; skip and indicative go on, and say so in each row",
        )
    instead = asked.status != "ok" and params.degraded == "indicative"
    last = asked.attempts[-1] if asked.attempts else None
    text = without_thinking(last.text) if last is not None and asked.status == "ok" else ""
    verdict = last.verdict_in_text if last is not None else None
    return Critique(
        critique_id=case.critique_id,
        response_id=case.response_id,
        kind=SUBSTITUTE if instead else params.kind,
        text=_text_by_rule(case, SUBSTITUTE) if instead else text,
        with_solution=params.with_solution and not instead,
        with_ground_truth=params.with_ground_truth and not instead,
        verdict_in_text=verdict,
        agreed=None if verdict is None else verdict == case.subject.correct,
        attempts=len(asked.attempts),
        model=RULE_BASED if instead else model,
        prompt_tokens=sum(row.prompt_tokens for row in asked.attempts),
        completion_tokens=sum(row.completion_tokens for row in asked.attempts),
        latency_ms=sum(row.latency_ms for row in asked.attempts),
        status=asked.status,
        degraded=None if asked.status == "ok" else "indicative" if instead else "skipped",
    )


def _by_rule(case: Case, name: str) -> Critique:
    kind = critique_kind(name)
    assert isinstance(kind, RuleKind)
    return Critique(
        critique_id=case.critique_id,
        response_id=case.response_id,
        kind=name,
        text=kind.write(case.subject),
        with_solution=False,
        with_ground_truth=kind.shows_ground_truth,
        verdict_in_text=None,
        agreed=None,
        attempts=0,
        model=RULE_BASED,
        prompt_tokens=0,
        completion_tokens=0,
        latency_ms=0.0,
        status="ok",
        degraded=None,
    )


def _text_by_rule(case: Case, name: str) -> str:
    return _by_rule(case, name).text


def _check_share(context: StageContext, degraded: Sequence[Critique], total: int) -> None:
    limit = context.block(LimitParams).degraded_critiques_max
    share = len(degraded) / total
    if limit is not None and share > limit:
        reasons = ", ".join(f"{status} {count}" for status, count in Counter(row.status for row in degraded).items())
        raise CritiquesDegraded(
            f"{len(degraded)} of {total} critiques ({share:.0%}) are not what was asked for ({reasons}); "
            f"limits.degraded_critiques_max is {limit:g}",
            "see to the critique model, allow more attempts, or start a run with a higher limit",
        )
