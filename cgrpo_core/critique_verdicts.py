"""The verdict that a critique model states: how it is asked for, how it is read, and what it makes of a reply.

Read strictly, since a misread verdict keeps a misleading critique: it is the last line of the reply and nothing else,
and a reply that repeats both forms of the request has stated none.
"""

import re

from cgrpo_core.records import AttemptStatus
from cgrpo_core.thinking import without_thinking

VERDICT_REQUEST = (
    "End with one line that says whether the final answer of the attempt is right, in one of these two forms:\n"
    "Verdict: correct\n"
    "Verdict: wrong"
)
MARKS = " \t*_#>`~-\"'$\\(){}[].!"
STATED = re.compile(
    r"(?:final )?verdict\s*[:：=\-]\s*(?:the (?:final )?(?:answer|attempt) is\s+)?"
    r"(not correct|correct|right|incorrect|wrong)",
    re.IGNORECASE,
)
RIGHT_WORDS = frozenset({"correct", "right"})
LINE_LIMIT = 200  # a line with a verdict is short; longer ones are text

# Asking again may help: the model answered, and with another draw may answer otherwise.
ASKED_AGAIN: frozenset[AttemptStatus] = frozenset({"disagreed", "no_verdict", "empty", "malformed"})


def parse_verdict(text: str) -> bool | None:
    """Return what the last line of a reply says of the attempt, True for right, or None if it says neither.

    Thinking is not read, punctuation and markdown around the line are ignored. None too if the line before states the
    opposite: the reply then repeats the request.
    """
    lines = [line for line in (raw.strip(MARKS) for raw in without_thinking(text).splitlines()[-50:]) if line]
    if not lines or (last := _stated(lines[-1])) is None:
        return None
    before = _stated(lines[-2]) if len(lines) > 1 else None
    return None if before is not None and before != last else last


def attempt_status(text: str, correct: bool) -> tuple[AttemptStatus, bool | None]:
    """Return what became of a reply to a request for a critique, and the verdict that it states if any."""
    if not without_thinking(text).strip():
        return "empty", None
    verdict = parse_verdict(text)
    if verdict is None:
        return "no_verdict", None
    return ("agreed" if verdict == correct else "disagreed"), verdict


def is_kept(status: AttemptStatus, keep: str) -> bool:
    """Return whether a reply of this status becomes the critique: if it agrees, or under `any` whatever it says."""
    return status == "agreed" or (keep == "any" and status in ("disagreed", "no_verdict"))


def _stated(line: str) -> bool | None:
    # Marks inside the line, as in `**Verdict:** \\boxed{wrong}`, say nothing either.
    bare = re.sub(r"[*_`\"'$\\{}\[\]()]|boxed|text(?=\{)", "", line) if len(line) <= LINE_LIMIT else ""
    found = STATED.fullmatch(" ".join(bare.split()).rstrip(".!"))
    return found.group(1).lower() in RIGHT_WORDS if found else None
