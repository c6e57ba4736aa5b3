"""A critique model goes through the response step by step and ends with a verdict (paper, step 3: c_CoT).

With the worked solution, or without: the paper says that no demonstration enters such a critique, the release shows its
critique model the whole reference solution. `critique.with_solution` says which, and is stored with each critique. The
ground truth alone is never shown, and the verifier's verdict neither: the model's own verdict is compared with it.
"""

from cgrpo_core.critique_verdicts import VERDICT_REQUEST
from cgrpo_core.critiques import ModelKind, Shown, Subject
from cgrpo_core.prompts import Message

REQUEST = (
    "Below you find a problem and an attempt at it. Go through the attempt step by step. Say of each step whether it "
    "holds; where one fails, say what is wrong with it and how to mend it. Do not write out a solution of your own."
)
WITH_SOLUTION = "Compare the attempt with the worked solution, which is right; a right answer may be reached otherwise."


def cot_messages(subject: Subject, shown: Shown) -> list[Message]:
    """Return the messages that ask for the critique. Raises ValueError if the solution is to be shown and is not there.

    The attempt stands last before the request for a verdict, so that whatever is written in it comes before what is
    asked.
    """
    parts = [f"{REQUEST} {WITH_SOLUTION}" if shown.solution else REQUEST, f"Problem:\n{subject.question.strip()}"]
    if shown.solution:
        if not (subject.solution or "").strip():
            raise ValueError("the worked solution is to be shown, and the problem has none")
        parts.append(f"Worked solution:\n{(subject.solution or '').strip()}")
    parts += [f"Attempt:\n{subject.response_text.strip() or '(nothing was written)'}", VERDICT_REQUEST]
    return [{"role": "user", "content": "\n\n".join(parts)}]


KIND = ModelKind(version=1, messages=cot_messages, may_show=frozenset({"solution"}), of_policy=False)
