"""What the policy is asked: the question, and the question once more with a first attempt and its critique.

Prompt wording is code: a change here changes every result. The texts are golden files under tests/data/prompts/; raise
the version of a template, and of the stages that use it, together with its wording.
"""

from typing import Literal, TypedDict

Template = Literal["boxed", "number"]

QuestionTemplate = Literal["boxed", "number", "choice", "letter"]  # the last two are only evaluated, never trained on

TEMPLATE_VERSIONS: dict[QuestionTemplate, int] = {"boxed": 1, "number": 1, "choice": 1, "letter": 1}


class Message(TypedDict):
    """One chat message, in the shape that chat templates of tokenizers take."""

    role: Literal["system", "user", "assistant"]
    content: str


# What to write and where to put it, asked in the same words of first attempts, refinements and evaluation, so that a
# refinement, trained as a continuation of the question alone, has the form that the question asks for.
INSTRUCTIONS: dict[QuestionTemplate, str] = {
    # The box is what the verifier trusts most; the steps come before it, so that the answer can depend on them.
    "boxed": "Solve this step by step. Then give the final answer, and only it, inside \\boxed{}.",
    # For models of a few hundred million parameters: they lose longer instructions, and a box costs them accuracy.
    "number": "Answer with just the number.",
    # Multiple choice, for models that box their answers and for small ones.
    "choice": "Solve this step by step. Then give the letter of the right option, and only it, inside \\boxed{}.",
    "letter": "Answer with just the letter of the right option.",
}

# In front of the first attempt. It promises neither that the attempt is wrong nor that the critique is right: a right
# attempt is refined too when the gate is `all`, and a model-written critique may err.
REFINEMENT_REQUESTS: dict[Template, str] = {
    "boxed": (
        "Below the problem you find an earlier attempt at it and a critique of that attempt. Write a new, complete "
        "solution: keep what holds, mend what the critique shows to be wrong, and do not refer to the attempt."
    ),
    "number": "An earlier attempt and a critique of it follow the problem. Answer the problem again.",
}


def question_messages(problem: str, template: QuestionTemplate) -> list[Message]:
    """Return the chat messages that pose `problem`. Raises ValueError for a blank one.

    One user message, no system message: not every chat template has a system role, and those that have one bring the
    default that the model was tuned with.
    """
    return [{"role": "user", "content": f"{_stripped('problem', problem)}\n\n{INSTRUCTIONS[template]}"}]


def refinement_messages(problem: str, response_text: str, critique_text: str, template: Template) -> list[Message]:
    """Return the chat messages that ask for a refinement. Raises ValueError for a blank problem or critique.

    The attempt is quoted inside the user message instead of being an assistant turn: chat templates of reasoning models
    cut the thinking out of earlier assistant turns, and it is the thinking that is to be mended. A response without
    text is quoted as such.
    """
    parts = (
        REFINEMENT_REQUESTS[template],
        f"Problem:\n{_stripped('problem', problem)}",
        f"Earlier attempt:\n{response_text.strip() or '(nothing was written)'}",
        f"Critique:\n{_stripped('critique', critique_text)}",
        INSTRUCTIONS[template],
    )
    return [{"role": "user", "content": "\n\n".join(parts)}]


def _stripped(name: str, text: str) -> str:
    """Return `text` without outer white space; a prompt with a hole in it would be sampled and trained on unnoticed."""
    if not text.strip():
        raise ValueError(f"the {name} is blank: there is nothing to ask")
    return text.strip()
