"""Refinements that go on from the part of a response that its critique leaves standing (refine.mode restart)."""

from functools import partial

from cgrpo_core.ids import make_id
from cgrpo_core.restarts import restart_place, tokens_before
from tasks.engines.protocol import SampleRequest
from tasks.refine_requests import Attempt, Attempts, Material


def from_named_step(material: Material) -> Attempts:
    """Return `per_response` attempts for each critique, which begin with the kept tokens of the response.

    A critique without a step is counted as unnamed, and skipped if `unnamed_step` says so. The kept tokens count to the
    prompt's length.
    """
    found = Attempts()
    decode = partial(material.tokenizer.decode, skip_special_tokens=True)
    for critique in material.critiques:
        response = material.responses[critique.response_id]
        place, restart = restart_place(response.text, critique.text, material.params)
        if restart == "unnamed":
            found.count("restarts_unnamed")
        if place is None:
            found.skip(material, critique, "restarts_skipped")
            continue
        kept = tokens_before(response.token_ids, place, decode) if place else 0
        prompt = material.prompt(critique, reserved_tokens=kept)
        if prompt is None:
            found.skip(material, critique, "too_long")
            continue
        for index in range(material.params.per_response):
            request = SampleRequest(
                request_id=make_id("f", material.context.key, critique.critique_id, index),
                prompt_token_ids=(*prompt.token_ids, *response.token_ids[:kept]),
                seed=material.seed(response, response.index, index),
            )
            found.attempts.append(
                Attempt(
                    request=request,
                    critique=critique,
                    response=response,
                    index=index,
                    kept_tokens=kept,
                    kept_text=decode(response.token_ids[:kept]),
                    restart=restart,
                    cut_tokens=prompt.cut_tokens,
                )
            )
    return found
