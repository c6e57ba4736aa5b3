"""GOLF (arXiv 2603.04597): one refinement of all failed responses of a group with their critiques, in poor groups only.

Established from its abstract and its released script for mathematics: only wrong responses are shown together
(refine.mode aggregate, critique.responses wrong); groups are helped whose accuracy is below 1/8 (refine.gate
low_reward, gate_below 0.125); one refinement takes the place of a response (select.keep 1); it is trained on the
question alone with p/(p + 0.1), responses by the ratio clipped at 0.2; no std, no KL; refinements have top_p 0.9.
Where we differ: the wording below is ours; a wrong response, not a random one, makes room; and the release trains the
refining too, on n refinements sampled from the prompt below, while we sample `per_response` of them and train the
question alone. Not established: how it orders or cuts the responses that it shows; ours are in order of sampling, and
those that do not fit any more are left out and counted.
"""

from collections.abc import Sequence

from cgrpo_core.prompts import INSTRUCTIONS, Message, Template

AGGREGATE_VERSIONS: dict[Template, int] = {"boxed": 1, "number": 1}

# Like the request for a refinement of one response, it does not promise that attempts are wrong: critiques say that.
AGGREGATE_REQUESTS: dict[Template, str] = {
    "boxed": (
        "Below the problem you find several earlier attempts at it, each with a critique. Write a new, complete "
        "solution: use the parts that hold, avoid every mistake that the critiques show, and do not refer to the "
        "attempts."
    ),
    "number": "Earlier attempts and a critique of each follow the problem. Answer the problem again.",
}


def aggregate_messages(problem: str, attempts: Sequence[tuple[str, str]], template: Template) -> list[Message]:
    """Return the chat messages that ask for one refinement of several (response, critique) texts.

    Raises ValueError for a blank problem, a blank critique or no attempt at all. A response without text is quoted as
    such.
    """
    if not problem.strip() or not attempts:
        raise ValueError("there is no problem, or no attempt at it: there is nothing to refine")
    parts = [AGGREGATE_REQUESTS[template], f"Problem:\n{problem.strip()}"]
    for number, (response, critique) in enumerate(attempts, start=1):
        if not critique.strip():
            raise ValueError(f"the critique of attempt {number} is blank")
        parts.append(f"Attempt {number}:\n{response.strip() or '(nothing was written)'}")
        parts.append(f"Critique of attempt {number}:\n{critique.strip()}")
    parts.append(INSTRUCTIONS[template])
    return [{"role": "user", "content": "\n\n".join(parts)}]
