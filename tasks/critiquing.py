"""Asking a critique model, and asking again: each attempt is a row, and what became of the last one decides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cgrpo_core.critique_verdicts import ASKED_AGAIN, attempt_status, is_kept
from cgrpo_core.critiques import ModelKind, Shown, Subject
from cgrpo_core.ids import derive_seed, make_id
from cgrpo_core.params import CritiqueParams
from cgrpo_core.prompt_bounds import Fitted, TokenMap, fit, response_passage
from cgrpo_core.prompts import Message
from cgrpo_core.records import AttemptStatus, CritiqueAttempt, CritiqueStatus
from tasks.engines.protocol import Critiquer, CritiqueReply, CritiqueRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One response that is to be criticised: ids, what seeds its draws, and what is asked about."""

    critique_id: str
    response_id: str
    seed_parts: tuple[str | int, ...]
    subject: Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What asking about one response gave: every attempt, and the status of the whole."""

    attempts: tuple[CritiqueAttempt, ...]
    status: CritiqueStatus


def ask_about(
    cases: Sequence[Case], kind: ModelKind, params: CritiqueParams, model: str, tokens: TokenMap, critiquer: Critiquer
) -> dict[str, Asked]:
    """Return critique_id -> what was asked and answered: each case until a reply is kept or `attempts` are used up.

    All cases are asked together, then those that need it again, so that each round is one batch of the engine.
    """
    prompts, hopeless = _prompts(cases, kind, params, tokens)
    rows: dict[str, list[CritiqueAttempt]] = {critique_id: [] for critique_id in prompts}
    waiting = [case for case in cases if case.critique_id in prompts]
    for attempt in range(1, params.attempts + 1):
        if not waiting:
            break
        requests = [_request(case, prompts[case.critique_id], attempt) for case in waiting]
        for case, reply in zip(waiting, critiquer.ask(requests), strict=True):
            cut = prompts[case.critique_id].cut_tokens[0]
            rows[case.critique_id].append(_attempt(case, attempt, reply, params, model, cut))
        waiting = [case for case in waiting if _again(rows[case.critique_id][-1].status, params)]
    asked = {key: Asked(attempts=tuple(made), status=_status(made[-1].status, params)) for key, made in rows.items()}
    return asked | {key: Asked(attempts=(), status=status) for key, status in hopeless.items()}


def _prompts(
    cases: Sequence[Case], kind: ModelKind, params: CritiqueParams, tokens: TokenMap
) -> tuple[dict[str, Fitted], dict[str, CritiqueStatus]]:
    """Return the prompt of each case by critique_id, and the status of those that cannot be asked."""
    shown = Shown(solution=params.with_solution, ground_truth=params.with_ground_truth)
    prompts: dict[str, Fitted] = {}
    hopeless: dict[str, CritiqueStatus] = {}
    for case in cases:
        if shown.solution and not (case.subject.solution or "").strip():
            hopeless[case.critique_id] = "no_solution"
            continue
        build: Callable[[Sequence[str]], list[Message]] = partial(_messages, kind, case.subject, shown)
        fitted = fit([response_passage(case.subject.response_text)], build, tokens, params.max_prompt_tokens)
        if fitted is None:
            hopeless[case.critique_id] = "too_long"
        else:
            prompts[case.critique_id] = fitted
    return prompts, hopeless


def _messages(kind: ModelKind, subject: Subject, shown: Shown, quoted: Sequence[str]) -> list[Message]:
    whole = Subject(
        question=subject.question,
        response_text=quoted[0],
        correct=subject.correct,
        ground_truth=subject.ground_truth,
        solution=subject.solution,
    )
    return kind.messages(whole, shown)


def _request(case: Case, prompt: Fitted, attempt: int) -> CritiqueRequest:
    return CritiqueRequest(
        request_id=make_id("a", case.critique_id, attempt),
        messages=tuple(prompt.messages),
        prompt_token_ids=tuple(prompt.token_ids),
        attempt=attempt,
        seed=derive_seed(*case.seed_parts, attempt),
    )


def _attempt(
    case: Case, attempt: int, reply: CritiqueReply, params: CritiqueParams, model: str, cut_tokens: int
) -> CritiqueAttempt:
    status: AttemptStatus
    status, verdict = (reply.fault, None) if reply.fault else attempt_status(reply.text, case.subject.correct)
    return CritiqueAttempt(
        attempt_id=reply.request_id,
        critique_id=case.critique_id,
        response_id=case.response_id,
        attempt=attempt,
        kind=params.kind,
        model=model,
        reply_id=reply.reply_id,
        status=status,
        text=reply.text,
        verdict_in_text=verdict,
        finish_reason=reply.finish_reason,
        cut_tokens=cut_tokens,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        latency_ms=reply.latency_ms,
        error=reply.error,
    )


def _again(status: AttemptStatus, params: CritiqueParams) -> bool:
    return status in ASKED_AGAIN and not is_kept(status, params.keep)


def _status(last: AttemptStatus, params: CritiqueParams) -> CritiqueStatus:
    if is_kept(last, params.keep):
        return "ok"
    assert last != "agreed"  # an agreeing reply is always kept
    return last


def attempt_counts(attempts: Sequence[CritiqueAttempt]) -> Mapping[str, int]:
    """Return how many attempts there were, by status, and how many replies came without a count of tokens."""
    counts = {"attempts": len(attempts)}
    for row in attempts:
        name = f"attempts_{row.status}"
        counts[name] = counts.get(name, 0) + 1
    uncounted = sum(bool(row.text) and not row.completion_tokens for row in attempts)
    return counts | ({"replies_without_token_count": uncounted} if uncounted else {})
