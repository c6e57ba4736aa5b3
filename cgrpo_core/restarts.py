"""Where a response is restarted: at the step that its critique names (R3L, arXiv 2601.03715: reflect, then retry).

The steps before it are kept as they were sampled, token by token. They are not trained on as part of the refinement;
nor, with advantage.restarts suffix, as part of the response, so that credit goes to where the two differ (pivotal
credit). In R3L half of a group are first attempts and half their retries, all of them count, a mean is the only
baseline, positive advantages weigh three times (advantage.positive_scale 3), and the gradient is A grad log p.

What R3L asks its policy for, a JSON report with the step to retry from, we read out of any critique by the rule of
`named_step`. Its release restarts at the very beginning when the report names no step; that is our default too, and
the refinement says so (`restart` is unnamed). Where we differ: its release gives a right completion the advantage 1
before that factor, whatever the mean, and trains the reflection when it led to success; we do neither.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

from cgrpo_core.params import RefineParams
from cgrpo_core.records import Refinement, Response, Restart

_HEADED = re.compile(r"^[#*> \t]*step\s+(\d+)\b", re.IGNORECASE | re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_RESTART = re.compile(r"restart\s+(?:from|at)\s+step\s+(\d+)\b", re.IGNORECASE)
_MENTION = re.compile(r"\bstep\s+(\d+)\b", re.IGNORECASE)


def step_starts(text: str) -> list[int]:
    """Return where each step of a response begins, as places in `text`, the first one 0; no text has no step.

    Lines that begin with "Step 1", "Step 2", ... open steps where there are two of them at least; else each paragraph
    is a step. What comes before the first heading belongs to the first step.
    """
    if not text:
        return []
    headings = [match.start() for match in _HEADED.finditer(text)]
    starts = headings if len(headings) > 1 else [0, *(match.end() for match in _PARAGRAPH.finditer(text.rstrip()))]
    return [0, *starts[1:]]


def named_step(critique: str, steps: int) -> int | None:
    """Return the step, counted from 1, that a critique finds fault with first, or None if it names none that exists.

    The last "restart from step N" decides; without one the first "step N" that is mentioned.
    """
    asked = [int(number) for number in _RESTART.findall(critique)]
    mentioned = asked[-1:] or [int(number) for number in _MENTION.findall(critique)[:1]]
    return mentioned[0] if mentioned and 1 <= mentioned[0] <= steps else None


def restart_place(response: str, critique: str, params: RefineParams) -> tuple[int | None, Restart]:
    """Return where in the text of a response its refinement begins (None: nowhere), and whether a step was named."""
    starts = step_starts(response)
    step = named_step(critique, len(starts))
    if step is not None:
        return starts[step - 1], "named"
    if params.unnamed_step == "skip":
        return None, "unnamed"
    return starts[len(starts) // 2] if params.unnamed_step == "half" and starts else 0, "unnamed"


def tokens_before(token_ids: Sequence[int], place: int, decode: Callable[[Sequence[int]], str]) -> int:
    """Return how many of `token_ids` are kept so that no text at or after `place` is: decode(ids[:n]) ends before it.

    A token that straddles the place is not kept. decode: token ids -> text, which must grow with the ids. At least one
    token is left to answer with, so the result is below len(token_ids).
    """
    low, high = 0, max(len(token_ids) - 1, 0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(decode(token_ids[:middle])) <= place else (low, middle - 1)
    return low


def given_tokens(
    rows: Sequence[Response | Refinement], responses: Sequence[Response], restarts: Literal["whole", "suffix"]
) -> dict[str, tuple[int, ...]]:
    """Return, by the id of each row that is trained, which tokens stand between the question and what is trained.

    For a refinement those that it kept of its response. For a response under `suffix` those that a refinement among the
    rows kept of it (the fewest, if several did), so that both are trained from one place on; else none.
    """
    response_of = {response.response_id: response for response in responses}
    refinements = [row for row in rows if isinstance(row, Refinement)]
    pivots: dict[str, int] = {}
    for row in refinements if restarts == "suffix" else []:
        pivots[row.response_id] = min(row.kept_tokens, pivots.get(row.response_id, row.kept_tokens))
    given = {row.refinement_id: response_of[row.response_id].token_ids[: row.kept_tokens] for row in refinements}
    firsts = [row for row in rows if isinstance(row, Response)]
    return given | {row.response_id: row.token_ids[: pivots.get(row.response_id, 0)] for row in firsts}
