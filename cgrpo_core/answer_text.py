"""Where in a completion the answer stands.

Only what follows the last `</think>` is read. Of that, the last box with something in it is the answer, together with
the boxes that lead up to it in one enumeration (`\\boxed{1}, \\boxed{2} and \\boxed{3}`). A text that is one formula
and nothing else is its own answer. In any other text without a box math-verify looks for the last formula or number.
"""

import re

END_OF_THOUGHT = "</think>"
MAX_CHARACTERS = 20_000
MAX_BARE_CHARACTERS = 400
BOX = re.compile(r"\\f?boxed\b|\\fbox\b")
# What may stand between two boxes of one enumeration; a name and an equals sign may lead a box in.
BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;:&*]|\\[()\[\],;! \\]|\\q?quad|\\text\{\s*(?:,|;|and|or)*\s*\}|\band\b|\bor\b"
    r"|\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\(\w+\))?\s*=)*"
)
SPECIAL_TOKEN = re.compile(r"<\|[A-Za-z_]+\|>")
COMMAND = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|operatorname|mbox)\s*\{[^{}]*\}|\\(?:begin|end)\{[a-z]+\*?\}|\\[A-Za-z]+"
)
WORD = re.compile(r"[^\W\d_]{2,}")
NOT_BARE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff?]|(?<!\\)\$.*(?<!\\)\$.|\\\(.*\\\(|\\\[.*\\\[")
TOUCHING = re.compile(r"(?<=[)\]}\d])(?:and|or)(?=[(\[\\\dA-Za-z])")
# Letters in a row that are mathematics all the same: in `ln 2`, `2xy` and `f(ab)`.
FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "lg"}
    | {"exp", "sqrt", "pi", "max", "min", "gcd", "lcm", "mod", "inf", "det"}
)


def scored_text(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Return the part of `text` that is judged: what follows the last `</think>`, and of that the last
    `max_characters` characters, because the answer stands at the end."""
    return text.rpartition(END_OF_THOUGHT)[2][-max_characters:]


def boxed_answer(text: str) -> str | None:
    """Return what the last boxes of `text` hold, joined by commas; None if no box holds anything.

    An empty box is passed over: it is the prompt's own example, repeated. A box that is never closed holds the rest of
    its line, since a completion may be cut there.
    """
    contents: list[str] = []
    following: int | None = None
    for match in reversed(list(BOX.finditer(text))):
        content, end = _held(text, match.end())
        if not content.strip():
            continue
        if following is not None and not BETWEEN_BOXES.fullmatch(text[end:following]):
            break
        if not (contents and contents[0] == content.strip()):
            contents.insert(0, content.strip())
        following = match.start()
    return ", ".join(contents) if contents else None


def _held(text: str, start: int) -> tuple[str, int]:
    """Return what a box whose command ends at `start` holds, and where it ends."""
    while start < len(text) and text[start] in " \t":
        start += 1
    if start >= len(text) or text[start] != "{":
        token = re.match(r"[^\s$]*", text[start:])
        held = token.group() if token else ""
        return held, start + len(held)
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 1 : place], place + 1
    line = text[start + 1 :].partition("\n")[0]
    return line.rstrip("$ "), len(text)


def bare_answer(text: str) -> str | None:
    """Return `text` if it is one formula and nothing else; None if it holds words or is a calculation with its result.

    `5 + 3 = 8` is left to math-verify, which finds the last number of it.
    """
    bare = SPECIAL_TOKEN.sub("", text).strip()
    if not bare or len(bare) > MAX_BARE_CHARACTERS or NOT_BARE.search(bare):
        return None
    left, equals, _ = bare.partition("=")
    if equals and not re.search(r"[A-Za-z]", left):
        return None
    formula = TOUCHING.sub(" ", COMMAND.sub(" ", bare).replace("Eq(", "("))
    words = set(WORD.findall(formula)) - FUNCTIONS
    if any(len(word) > 2 or word.lower() in ("is", "no", "so", "it", "the") for word in words - {"and"}):
        return None
    return bare
