"""The stage that asks a model: which replies are kept, what is asked again, and what becomes of the rest."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from stage_calls import call, problem, response, verdict
from tiny_model import build_byte_tokenizer

from cgrpo_core.critiques import ModelKind, Subject, critique_kind
from cgrpo_core.params import CritiqueParams, LimitParams, RefineParams
from cgrpo_core.records import Critique, CritiqueAttempt
from storage.schemas import validate
from tasks import critique as stage_module
from tasks.critique import CritiquesDegraded
from tasks.critiquing import Case, ask_about
from tasks.engines.protocol import CritiqueReply, CritiqueRequest
from tasks.tokenizer import token_map

TOKENIZER = build_byte_tokenizer()
WRONG, RIGHT, NOTHING = "Step 2 fails.\nVerdict: wrong", "All holds.\nVerdict: correct", "I cannot tell."
DOWN = "down"  # a reply that never comes


class Scripted:
    """A critique model that answers by a script: (response text, attempt) -> reply."""

    def __init__(self, script: Callable[[str, int], str]) -> None:
        self.script, self.rounds = script, []
        self.metrics: dict[str, float] = {"replies_asked": 1}
        self.evidence: dict[str, str] = {}

    def ask(self, requests: Sequence[CritiqueRequest]) -> list[CritiqueReply]:
        self.rounds.append(len(requests))
        return [self._reply(request) for request in requests]

    def _reply(self, request: CritiqueRequest) -> CritiqueReply:
        text = self.script(request.messages[0]["content"], request.attempt)
        down = text == DOWN
        return CritiqueReply(
            request_id=request.request_id,
            reply_id=f"{request.request_id}-reply",
            text="" if down else text,
            finish_reason=None if down else "stop",
            prompt_tokens=10,
            completion_tokens=0 if down else 5,
            latency_ms=2.0,
            fault="unanswered" if down else None,
            error="InternalServerError: 500" if down else None,
        )


def stage(tmp_path, monkeypatch, script, limits=None, solution=None, rewards=None, **params):
    """Run the stage on responses `r0`, `r1`, ... whose text is their name."""
    asked = Scripted(script)
    monkeypatch.setattr(stage_module, "critiquer_of", lambda context, policy: ("scripted", asked))
    monkeypatch.setattr(stage_module, "_tokenizer_directory", lambda context, model: "")
    monkeypatch.setattr(stage_module, "load_tokenizer", lambda directory: TOKENIZER)
    rewards = rewards or {"r0": 0.0}
    done = call(
        "tasks.critique:write_critiques",
        tmp_path,
        CritiqueParams(**({"kind": "cot"} | params)),
        RefineParams(gate="all"),
        LimitParams(degraded_critiques_max=limits),
        responses=[response(name, text=name) for name in rewards],
        verdicts=[verdict(name, reward) for name, reward in rewards.items()],
        problems=[replace(problem(), solution=solution)],
        policy=[None],
        model={},
    )
    critiques, attempts = done.tables["critiques"], done.tables["attempts"]
    validate(Critique, critiques)
    validate(CritiqueAttempt, attempts)
    return done, critiques, attempts, asked


def test_an_agreeing_critique_is_kept_at_once(tmp_path, monkeypatch):
    _, (critique,), (attempt,), _ = stage(tmp_path, monkeypatch, lambda text, attempt: WRONG)
    assert (critique.status, critique.text, critique.agreed, critique.attempts) == ("ok", WRONG, True, 1)
    assert (critique.model, critique.kind, critique.degraded) == ("scripted", "cot", None)
    assert (attempt.status, attempt.attempt, attempt.reply_id) == ("agreed", 1, f"{attempt.attempt_id}-reply")


def test_a_critique_that_contradicts_the_verifier_is_asked_again_and_each_attempt_is_kept(tmp_path, monkeypatch):
    texts = {1: RIGHT, 2: NOTHING, 3: WRONG}
    _, (critique,), attempts, _ = stage(tmp_path, monkeypatch, lambda text, attempt: texts[attempt])
    assert [row.status for row in attempts] == ["disagreed", "no_verdict", "agreed"]
    assert [row.text for row in attempts] == [RIGHT, NOTHING, WRONG]
    assert [row.verdict_in_text for row in attempts] == [True, None, False]
    assert (critique.text, critique.attempts, critique.prompt_tokens, critique.latency_ms) == (WRONG, 3, 30, 6.0)


def test_only_those_that_need_it_are_asked_again(tmp_path, monkeypatch):
    def script(text: str, attempt: int) -> str:
        return WRONG if "r1" in text or attempt == 2 else RIGHT

    _, critiques, attempts, asked = stage(tmp_path, monkeypatch, script, rewards={"r0": 0.0, "r1": 0.0})
    assert asked.rounds == [2, 1]
    assert [row.attempts for row in critiques] == [2, 1]
    assert len(attempts) == 3


@pytest.mark.parametrize(
    ("reply", "status", "attempts"),
    [(RIGHT, "disagreed", 3), (NOTHING, "no_verdict", 3), ("", "empty", 3), (DOWN, "unanswered", 1)],
)
def test_a_response_without_a_critique_is_skipped_by_default_and_the_row_says_why(
    tmp_path, monkeypatch, reply, status, attempts
):
    done, (critique,), made, _ = stage(tmp_path, monkeypatch, lambda text, attempt: reply)
    assert (critique.status, critique.degraded, critique.text) == (status, "skipped", "")
    assert len(made) == critique.attempts == attempts
    assert done.counts["critiques_degraded"] == done.counts["critiques_skipped"] == 1
    assert done.counts[f"critiques_{status}"] == 1
    assert done.counts[f"attempts_{status}"] == attempts


def test_the_indicative_critique_stands_in_where_that_is_declared_and_says_so(tmp_path, monkeypatch):
    done, (critique,), made, _ = stage(tmp_path, monkeypatch, lambda *_: RIGHT, degraded="indicative")
    assert (critique.kind, critique.model, critique.degraded) == ("indicative", "rule", "indicative")
    assert critique.status == "disagreed"
    assert critique.text.endswith("wrong.")
    assert {row.kind for row in made} == {"cot"}
    assert done.counts["critiques_skipped"] == 0


def test_a_missing_critique_fails_the_run_where_that_is_declared(tmp_path, monkeypatch):
    with pytest.raises(CritiquesDegraded, match=r"r0 has no critique of kind cot: unanswered .* 500"):
        stage(tmp_path, monkeypatch, lambda *_: DOWN, degraded="fail")


def test_more_degraded_critiques_than_declared_fail_the_run_with_the_reasons(tmp_path, monkeypatch):
    def script(text: str, attempt: int) -> str:
        return DOWN if "r0" in text else WRONG

    rewards = {f"r{number}": 0.0 for number in range(4)}
    done, *_ = stage(tmp_path, monkeypatch, script, limits=0.25, rewards=rewards)
    assert done.counts["critiques_degraded"] == 1
    with pytest.raises(CritiquesDegraded, match=r"1 of 4 critiques .*unanswered 1.*degraded_critiques_max is 0.2"):
        stage(tmp_path, monkeypatch, script, limits=0.2, rewards=rewards)


def test_any_keeps_a_critique_whatever_its_verdict_and_stores_that_it_disagreed(tmp_path, monkeypatch):
    _, (critique,), _, _ = stage(tmp_path, monkeypatch, lambda *_: RIGHT, kind="self", keep="any")
    assert (critique.status, critique.agreed, critique.text, critique.attempts) == ("ok", False, RIGHT, 1)


def test_the_solution_is_shown_only_where_that_is_declared_and_a_problem_without_one_is_not_asked_about(
    tmp_path, monkeypatch
):
    seen: list[str] = []

    def script(text: str, attempt: int) -> str:
        seen.append(text)
        return WRONG

    stage(tmp_path, monkeypatch, script, solution="two and two")
    assert "two and two" not in seen[0]
    _, (critique,), _, _ = stage(tmp_path, monkeypatch, script, solution="two and two", with_solution=True)
    assert "two and two" in seen[1]
    assert critique.with_solution
    _, (critique,), attempts, _ = stage(tmp_path, monkeypatch, script, with_solution=True)
    assert (critique.status, critique.degraded, attempts) == ("no_solution", "skipped", [])


def test_thinking_of_the_critique_model_is_stored_and_never_quoted(tmp_path, monkeypatch):
    _, (critique,), (attempt,), _ = stage(tmp_path, monkeypatch, lambda *_: f"<think>hm</think>{WRONG}")
    assert critique.text == WRONG
    assert attempt.text.startswith("<think>hm")


def ask(text: str, max_prompt_tokens: int):
    kind = critique_kind("cot")
    assert isinstance(kind, ModelKind)
    subject = Subject(question="2 + 2?", response_text=text, correct=False, ground_truth="4", solution=None)
    case = Case(critique_id="c", response_id="r", seed_parts=("critique", 1), subject=subject)
    params = CritiqueParams(kind="cot", max_prompt_tokens=max_prompt_tokens)
    return ask_about([case], kind, params, "m", token_map(TOKENIZER), Scripted(lambda *_: WRONG))["c"]


def test_a_long_response_is_cut_to_fit_the_request_and_the_cut_is_recorded():
    whole = ask("x" * 50, 2000)
    assert (whole.attempts[0].cut_tokens, whole.status) == (0, "ok")
    cut = ask("x" * 5000, 2000)
    assert cut.attempts[0].cut_tokens > 3000
    assert ask("x" * 5000, 300) == type(cut)(attempts=(), status="too_long")


def test_the_draws_of_each_attempt_have_a_seed_of_their_own():
    seeds: list[int] = []

    class Watching(Scripted):
        def ask(self, requests):
            seeds.extend(request.seed for request in requests)
            return super().ask(requests)

    kind = critique_kind("self")
    assert isinstance(kind, ModelKind)
    subject = Subject(question="q", response_text="a", correct=False, ground_truth="4", solution=None)
    cases = [
        Case(critique_id=f"c{k}", response_id=f"r{k}", seed_parts=("critique", k), subject=subject) for k in range(2)
    ]
    params = CritiqueParams(kind="self", attempts=2)
    ask_about(cases, kind, params, "policy", token_map(TOKENIZER), Watching(lambda *_: RIGHT))
    assert len(set(seeds)) == 4
