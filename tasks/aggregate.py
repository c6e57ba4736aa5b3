"""Refinements of all critiqued responses of a group together (refine.mode aggregate; cgrpo_core/golf.py)."""

from cgrpo_core.golf import aggregate_messages
from cgrpo_core.ids import make_id
from cgrpo_core.records import Critique
from tasks.engines.protocol import SampleRequest
from tasks.refine_requests import Attempt, Attempts, Material
from tasks.tokenizer import render


def all_responses(material: Material) -> Attempts:
    """Return `per_response` attempts for each group that has a critique.

    Responses that do not fit into `max_prompt_tokens` are left out from the last one on, and counted; a group whose
    first alone does not fit is counted as too long.
    """
    groups: dict[str, list[Critique]] = {}
    for critique in material.critiques:
        groups.setdefault(material.responses[critique.response_id].group_id, []).append(critique)
    found = Attempts()
    for group_id, critiques in groups.items():
        quoted, token_ids = _longest_that_fits(material, critiques)
        found.count("responses_not_quoted", len(critiques) - quoted)
        if not quoted:
            found.count("too_long")
            continue
        response = material.responses[critiques[0].response_id]
        for index in range(material.params.per_response):
            request = SampleRequest(
                request_id=make_id("f", material.context.key, group_id, index),
                prompt_token_ids=token_ids,
                seed=material.seed(response, "group", index),
            )
            found.attempts.append(
                Attempt(request=request, critique=critiques[0], response=response, index=index, responses_quoted=quoted)
            )
    return found


def _longest_that_fits(material: Material, critiques: list[Critique]) -> tuple[int, tuple[int, ...]]:
    first = material.responses[critiques[0].response_id]
    pairs = [(material.responses[critique.response_id].text, critique.text) for critique in critiques]
    for quoted in range(len(pairs), 0, -1):
        messages = aggregate_messages(material.questions[first.problem_id], pairs[:quoted], material.template)
        _, token_ids = render(material.tokenizer, messages)
        if len(token_ids) <= material.params.max_prompt_tokens:
            return quoted, tuple(token_ids)
    return 0, ()
