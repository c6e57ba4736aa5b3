"""Refinements of all critiqued responses of a group together (refine.mode aggregate; cgrpo_core/golf.py)."""

from collections.abc import Sequence
from functools import partial

from cgrpo_core.golf import aggregate_messages
from cgrpo_core.ids import make_id
from cgrpo_core.prompt_bounds import Fitted, Passage, fit, response_passage
from cgrpo_core.prompts import Message, Template
from cgrpo_core.records import Critique
from tasks.engines.protocol import SampleRequest
from tasks.refine_requests import Attempt, Attempts, Material
from tasks.tokenizer import quotable, token_map


def all_responses(material: Material) -> Attempts:
    """Return `per_response` attempts for each group that has a critique.

    Responses that do not fit into `max_prompt_tokens` are left out from the last one on, and counted; the first alone
    is cut to fit, and if that cannot be, its critique is skipped.
    """
    groups: dict[str, list[Critique]] = {}
    for critique in material.critiques:
        groups.setdefault(material.responses[critique.response_id].group_id, []).append(critique)
    found = Attempts()
    for group_id, critiques in groups.items():
        quoted, prompt = _longest_that_fits(material, critiques)
        found.count("responses_not_quoted", len(critiques) - quoted)
        if prompt is None:
            found.skip(material, critiques[0], "too_long")
            continue
        response = material.responses[critiques[0].response_id]
        for index in range(material.params.per_response):
            request = SampleRequest(
                request_id=make_id("f", material.context.key, group_id, index),
                prompt_token_ids=tuple(prompt.token_ids),
                seed=material.seed(response, "group", index),
            )
            found.attempts.append(
                Attempt(
                    request=request,
                    critique=critiques[0],
                    response=response,
                    index=index,
                    responses_quoted=quoted,
                    cut_tokens=(sum(prompt.cut_tokens[0::2]), sum(prompt.cut_tokens[1::2])),
                )
            )
    return found


def _longest_that_fits(material: Material, critiques: list[Critique]) -> tuple[int, Fitted | None]:
    """Return how many responses are quoted and the prompt: as many as fit whole, or the first one cut."""
    question = material.questions[material.responses[critiques[0].response_id].problem_id]
    build, tokens = partial(_messages, question, material.template), token_map(material.tokenizer)
    passages = [passage for critique in critiques for passage in _passages(material, critique)]
    for quoted in range(len(critiques), 0, -1):
        prompt = fit(passages[: 2 * quoted], build, tokens, material.params.max_prompt_tokens)
        if prompt is not None and (quoted == 1 or not any(prompt.cut_tokens)):
            return quoted, prompt
    return 0, None


def _passages(material: Material, critique: Critique) -> tuple[Passage, Passage]:
    response_text = quotable(material.tokenizer, material.responses[critique.response_id].text)
    return response_passage(response_text), Passage(thinking="", said=quotable(material.tokenizer, critique.text))


def _messages(question: str, template: Template, quoted: Sequence[str]) -> list[Message]:
    return aggregate_messages(question, list(zip(quoted[0::2], quoted[1::2], strict=True)), template)
