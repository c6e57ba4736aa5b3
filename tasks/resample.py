"""Second attempts at the question alone, for the control of what a critique adds (refine.mode resample)."""

from cgrpo_core.ids import make_id
from tasks.engines.protocol import SampleRequest
from tasks.refine_requests import Attempt, Attempts, Material


def question_alone(material: Material) -> Attempts:
    """Return `per_response` attempts for each critique, which are asked the question's own prompt and nothing else.

    As many as refine.mode each would ask for, in the same groups, with seeds that no response has: what is selected of
    them is a response found by sampling more. A prompt of more than `max_prompt_tokens` is skipped, as there.
    """
    found = Attempts()
    for critique in material.critiques:
        response = material.responses[critique.response_id]
        asked = material.prompts[response.group_id].token_ids
        if len(asked) > material.params.max_prompt_tokens:
            found.skip(material, critique, "too_long")
            continue
        for index in range(material.params.per_response):
            request = SampleRequest(
                request_id=make_id("f", material.context.key, critique.critique_id, index),
                prompt_token_ids=asked,
                seed=material.seed(response, response.index, index),
            )
            found.attempts.append(
                Attempt(request=request, critique=critique, response=response, index=index, responses_quoted=0)
            )
    return found
