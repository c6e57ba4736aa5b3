"""The policy criticises its own response (paper, self-critique), given the reference answer or without any reference.

`critique.with_ground_truth` says which, and is stored with each critique. The messages speak of "your attempt", since
the engine that answers them is the one that wrote it.
"""

from cgrpo_core.critique_verdicts import VERDICT_REQUEST
from cgrpo_core.critiques import ModelKind, Shown, Subject
from cgrpo_core.prompts import Message

REQUEST = (
    "Below you find a problem and your own earlier attempt at it. Check the attempt step by step: say which steps "
    "hold, which fail and why, and what should be done instead. Do not write out a new solution."
)


def self_messages(subject: Subject, shown: Shown) -> list[Message]:
    """Return the messages that ask the policy for the critique. Raises ValueError for a blank ground truth to show."""
    parts = [REQUEST, f"Problem:\n{subject.question.strip()}"]
    if shown.ground_truth:
        if not subject.ground_truth.strip():
            raise ValueError("the ground truth is to be shown, and is blank")
        parts.append(f"Correct answer:\n{subject.ground_truth.strip()}")
    parts += [f"Your attempt:\n{subject.response_text.strip() or '(nothing was written)'}", VERDICT_REQUEST]
    return [{"role": "user", "content": "\n\n".join(parts)}]


KIND = ModelKind(version=1, messages=self_messages, may_show=frozenset({"ground_truth"}), of_policy=True)
