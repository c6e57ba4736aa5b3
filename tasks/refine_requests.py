"""What the policy is asked for when it refines: one request for each critiqued response (refine.mode each).

The other modes, aggregate.py and restart.py, return the same kind of attempts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cgrpo_core.ids import derive_seed, make_id
from cgrpo_core.params import RefineParams
from cgrpo_core.prompts import Template, refinement_messages
from cgrpo_core.records import Critique, Prompt, Response, Restart
from tasks.engines.protocol import SampleRequest
from tasks.stage import StageContext
from tasks.tokenizer import render


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


@dataclass(slots=True, kw_only=True)
class Attempts:
    """Attempts in order, and what was left out, by the name of its count."""

    attempts: list[Attempt] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + number


def each_response(material: Material) -> Attempts:
    """Return `per_response` attempts for each critique; a prompt that is too long is counted."""
    found = Attempts()
    for critique in material.critiques:
        response = material.responses[critique.response_id]
        messages = refinement_messages(
            material.questions[response.problem_id], response.text, critique.text, material.template
        )
        _, token_ids = render(material.tokenizer, messages)
        if len(token_ids) > material.params.max_prompt_tokens:
            found.count("too_long")
            continue
        for index in range(material.params.per_response):
            request = SampleRequest(
                request_id=make_id("f", material.context.key, critique.critique_id, index),
                prompt_token_ids=tuple(token_ids),
                seed=material.seed(response, response.index, index),
            )
            found.attempts.append(Attempt(request=request, critique=critique, response=response, index=index))
    return found
