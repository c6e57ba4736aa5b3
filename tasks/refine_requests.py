"""What the policy is asked for when it refines: one request for each critiqued response (refine.mode each).

The other modes, aggregate.py, restart.py and resample.py, return the same kind of attempts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cgrpo_core.ids import derive_seed, make_id
from cgrpo_core.params import RefineParams
from cgrpo_core.prompt_bounds import Fitted, Passage, fit, response_passage
from cgrpo_core.prompts import Message, Template, refinement_messages
from cgrpo_core.records import Critique, Prompt, Response, Restart, SkippedRefinement, SkipReason
from tasks.engines.protocol import SampleRequest
from tasks.stage import StageContext
from tasks.tokenizer import quotable, token_map


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What requests are made of. Responses, prompts and questions by response_id, prompt_id and problem_id."""

    context: StageContext
    params: RefineParams
    template: Template
    tokenizer: Any
    critiques: Sequence[Critique]
    responses: Mapping[str, Response]
    prompts: Mapping[str, Prompt]
    questions: Mapping[str, str]

    def seed(self, response: Response, *place: str | int) -> int:
        """Return the seed of an attempt at a place of its own within the prompt of `response`."""
        slot = self.prompts[response.group_id].slot
        return derive_seed(self.context.seed, "refine", self.context.iteration, slot, response.problem_id, *place)

    def prompt(self, critique: Critique, reserved_tokens: int = 0) -> Fitted | None:
        """Return the prompt of a refinement of one response, response and critique cut to fit; None if it cannot be.

        reserved_tokens: how many tokens follow the prompt and count to its length.
        """
        response = self.responses[critique.response_id]
        passages = [
            response_passage(quotable(self.tokenizer, response.text)),
            Passage(thinking="", said=quotable(self.tokenizer, critique.text)),
        ]
        build = partial(_messages, self.questions[response.problem_id], self.template)
        return fit(passages, build, token_map(self.tokenizer), self.params.max_prompt_tokens - reserved_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A refinement that is to be sampled; fields as in records.Refinement. `kept_text`: what `kept_tokens` spell."""

    request: SampleRequest
    critique: Critique
    response: Response
    index: int
    responses_quoted: int = 1
    kept_tokens: int = 0
    kept_text: str = ""
    restart: Restart = "none"
    cut_tokens: tuple[int, ...] = (0, 0)


@dataclass(slots=True, kw_only=True)
class Attempts:
    """Attempts in order, the critiques that get none, and what was left out, by the name of its count."""

    attempts: list[Attempt] = field(default_factory=list)
    skipped: list[SkippedRefinement] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + number

    def skip(self, material: Material, critique: Critique, reason: SkipReason) -> None:
        """Record that a critique gets no refinement, and why."""
        self.count(reason)
        row = SkippedRefinement(
            critique_id=critique.critique_id,
            response_id=critique.response_id,
            group_id=material.responses[critique.response_id].group_id,
            reason=reason,
            max_prompt_tokens=material.params.max_prompt_tokens,
        )
        self.skipped.append(row)


def each_response(material: Material) -> Attempts:
    """Return `per_response` attempts for each critique; one whose prompt cannot be made to fit is skipped."""
    found = Attempts()
    for critique in material.critiques:
        response = material.responses[critique.response_id]
        prompt = material.prompt(critique)
        if prompt is None:
            found.skip(material, critique, "too_long")
            continue
        for index in range(material.params.per_response):
            request = SampleRequest(
                request_id=make_id("f", material.context.key, critique.critique_id, index),
                prompt_token_ids=tuple(prompt.token_ids),
                seed=material.seed(response, response.index, index),
            )
            found.attempts.append(
                Attempt(
                    request=request, critique=critique, response=response, index=index, cut_tokens=prompt.cut_tokens
                )
            )
    return found


def _messages(question: str, template: Template, quoted: Sequence[str]) -> list[Message]:
    return refinement_messages(question, quoted[0], quoted[1], template)
