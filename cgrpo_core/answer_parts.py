"""The structure of an answer: enumerations, tuples, matrices, names before an equals sign, words.

All functions take normalised answers (answer_forms.py).
"""

import re
import unicodedata
from dataclasses import dataclass

from cgrpo_core.answer_text import FUNCTIONS

OPENING, CLOSING = "([{", ")]}"
SYMBOL = r"\\?[A-Za-z]+(?:_\{[^{}=]*\}|_\w+)?"
NAME = (
    rf"(?:{SYMBOL}'*(?:\([^()=<>]*\))?|\|[A-Za-z]+\||\((?:\s*{SYMBOL}(?:\(\w+\))?\s*,?)+\)"
    r"|\\frac\{[A-Z]+\}\{[A-Z]+\})"
)
NAMED = re.compile(rf"(?P<name>{NAME}(?:\s*=\s*{NAME})*)\s*(?:=|\\approx|\\in)\s*(?P<value>[^=<>].*)", re.DOTALL)
LABELLED = re.compile(r"(?:\\text\s*\{\s*)?(?P<name>[A-Za-z][A-Za-z ]*\d*)\s*:\s*\}?\s*(?P<value>[^=<>]+)")
CONJUNCTION = re.compile(
    r"\\text\s*\{\s*(?:,?\s*(?:and|or))\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|(?<=[)\]}\d])(?:and|or)(?=[(\[\\\dA-Za-z])"
)
MATRIX = re.compile(
    r"\[?\\begin\{(?P<kind>[pbvBV]?matrix|array)\}(?:\{[clr|]*\})?(?P<body>.*)\\end\{(?P=kind)\}\]?", re.DOTALL
)
SET_BUILDER = re.compile(
    r"\\\{\s*(?P<name>\\?[A-Za-z]+)\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\||\\mid|:)\s*(?P<condition>.*)\\\}",
    re.DOTALL,
)
BOUND = r"[^<>=,;]*?[\d}][^<>=,;]*?|[+-]?\s*\\(?:pi|infty)"  # with a number, so that `x` of `x < y` is no bound
UP, DOWN = r"<|\\leq", r">|\\geq"
CHAIN = re.compile(rf"(?P<low>{BOUND})\s*(?P<first>{UP})\s*(?P<name>{SYMBOL})\s*(?P<second>{UP})\s*(?P<high>{BOUND})")
CHAIN_DOWN = re.compile(
    rf"(?P<high>{BOUND})\s*(?P<first>{DOWN})\s*(?P<name>{SYMBOL})\s*(?P<second>{DOWN})\s*(?P<low>{BOUND})"
)
HALF = re.compile(rf"(?P<name>{SYMBOL})\s*(?P<sign>{UP}|{DOWN})\s*(?P<bound>{BOUND})")
HALF_TURNED = re.compile(rf"(?P<bound>{BOUND})\s*(?P<sign>{UP}|{DOWN})\s*(?P<name>{SYMBOL})")
MEMBER = re.compile(rf"(?P<name>{SYMBOL})\s*\\in(?![a-z])\s*(?P<set>[(\[].*[)\]])")
TURNED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{3,}")
SHORT_WORDS = frozenset({"no", "yes", "odd", "all", "none", "true", "false", "even"})
NO_WORDS = FUNCTIONS | {"lim", "frac", "text", "begin", "end", "pmatrix"}
# What words of mathematics mean, as the sign that they are; and one sign for each meaning.
MEANINGS = {
    **dict.fromkeys(("infinite", "infinitely many", "infinitely many solutions"), r"\infty"),
    **dict.fromkeys(("no solution", "no solutions", "no real solution", "no real solutions"), r"\emptyset"),
    **dict.fromkeys(("all real numbers", "all reals", "real numbers"), r"\mathbb{R}"),
}
SIGNS = {r"\varnothing": r"\emptyset", r"\{\}": r"\emptyset", r"(-\infty,\infty)": r"\mathbb{R}"}


def sign(text: str) -> str:
    """Return an answer that is one sign in its usual spelling; any other as it is."""
    return SIGNS.get(text.replace(" ", "").replace("+", ""), text)


@dataclass(frozen=True, slots=True)
class Part:
    """One element of an enumeration: `x = 4` is 4 with the name x."""

    name: str | None
    value: str


def split(text: str, separators: str = ",;") -> list[str]:
    """Return the pieces of `text` between separators that stand outside all brackets, and between `and` and `or`."""
    pieces, depth, start = [], 0, 0
    text = CONJUNCTION.sub(";" if ";" in separators else ",", text)
    for place, character in enumerate(text):
        if character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth -= 1
        elif character in separators and depth <= 0 and not text[:place].endswith("\\"):
            pieces.append(text[start:place])
            start = place + 1
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces if piece.strip()]


def part(text: str) -> Part:
    """Return `text` as value and name, if it has one. Of `x = y = 2` and `z = 1 + 1 = 2` the value is 2."""
    if match := NAMED.fullmatch(text):
        value = match["value"]
        if "=" in value and not re.search(r"[<>]|\\[gl]eq|\\neq", value):
            value = value.rpartition("=")[2]
        return Part("".join(match["name"].split()), value.partition("\\approx")[0].strip() or value.strip())
    if match := LABELLED.fullmatch(text):
        return Part(match["name"].strip(), match["value"].strip())
    return Part(None, text)


def elements(text: str) -> list[str]:
    """Return the elements of an enumeration or of a set in braces, with each `a \\pm b` as its two values."""
    inner = text[2:-2] if text.startswith("\\{") and text.endswith("\\}") else text
    return [value for piece in _grouped(inner) for value in _both_signs(piece)]


def _grouped(text: str) -> list[str]:
    """Return the pieces of an enumeration; solutions that are written out by names are one tuple each.

    `p=5, q=2; p=7, q=2` is `(5, 2), (7, 2)`: the names repeat.
    """
    pieces = split(text)
    parts = [part(piece) for piece in pieces]
    names = [item.name for item in parts]
    if None in names or len(set(names)) == len(names):
        return pieces
    size = len(set(names))
    if size < 2 or len(names) % size or any(name != names[place % size] for place, name in enumerate(names)):
        return pieces
    groups = [parts[place : place + size] for place in range(0, len(parts), size)]
    return ["(" + ", ".join(item.value for item in group) + ")" for group in groups]


def _both_signs(piece: str) -> list[str]:
    if piece.count("\\pm") != 1:
        return [piece]
    return [piece.replace("\\pm", sign).strip().removeprefix("+").strip() for sign in ("+", "-")]


def bracketed(text: str) -> tuple[str, list[str], str] | None:
    """Return (opening, components, closing) of a tuple or interval; None if `text` is not one pair of brackets."""
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]" or not _one_pair(text):
        return None
    components = split(text[1:-1])
    return (text[0], components, text[-1]) if len(components) > 1 else None


def _one_pair(text: str) -> bool:
    depth = 0
    for place, character in enumerate(text):
        depth += (character in OPENING) - (character in CLOSING)
        if depth == 0 and place < len(text) - 1:
            return False
    return depth == 0


def matrix(text: str) -> list[list[str]] | None:
    """Return the rows of a matrix written out; None if `text` is not one matrix."""
    match = MATRIX.fullmatch(text)
    if not match or "\\begin" in match["body"]:
        return None
    rows = [row for row in re.split(r"\\\\", match["body"]) if row.strip()]
    return [[entry.strip() for entry in row.split("&")] for row in rows]


def interval(text: str) -> tuple[str | None, str]:
    """Return `a < x \\leq b`, `x < b` or `x \\in (a, b]` as (name, interval); another answer as it is."""
    text = condition(text)
    if match := MEMBER.fullmatch(text):
        return match["name"], match["set"]
    if match := CHAIN.fullmatch(text):
        return match["name"], _brackets(match["low"], match["first"], match["second"], match["high"])
    if match := CHAIN_DOWN.fullmatch(text):
        return match["name"], _brackets(match["low"], match["second"], match["first"], match["high"])
    if match := HALF.fullmatch(text):
        if "<" in match["sign"] or "leq" in match["sign"]:
            return match["name"], _brackets("-\\infty", "<", match["sign"], match["bound"])
        return match["name"], _brackets(match["bound"], match["sign"], "<", "\\infty")
    if match := HALF_TURNED.fullmatch(text):
        return interval(f"{match['name']} {TURNED[match['sign']]} {match['bound']}")
    return None, text


def _brackets(low: str, first: str, second: str, high: str) -> str:
    opening, closing = "(" if first in "<>" else "[", ")" if second in "<>" else "]"
    return f"{opening}{low.strip()}, {high.strip()}{closing}"


def condition(text: str) -> str:
    """Return the condition of `\\{x | condition\\}`, else `text`."""
    match = SET_BUILDER.fullmatch(text)
    return match["condition"].strip() if match else text


def is_words(text: str) -> bool:
    """Return whether an answer is words: it is not read as a formula, in which every letter would be a variable."""
    if TEXT.fullmatch(text):
        return bool(re.search(r"[^\W\d_]{2,}", text[5:]))
    if LABELLED.fullmatch(text) or (
        len(pieces := split(text)) > 1 and all(LABELLED.fullmatch(piece) for piece in pieces)
    ):
        return False
    unknown = [word for word in WORD.findall(TEXT.sub(r" \1 ", text)) if word.lower() not in NO_WORDS]
    signs = re.search(r"[\d=^_+*/<>|&]|\\(?!text|\s|,|ldots)", TEXT.sub(r"\1", text))
    if not signs:
        return bool(unknown) or text.strip().lower() in SHORT_WORDS
    return len(unknown) > 1 and not re.search(r"[=<>^_]|\\(?!text)", text)


def plain_words(text: str) -> str:
    """Return words as they are compared: without `\\text`, case, punctuation, articles and accents of typing."""
    words = unicodedata.normalize("NFKC", TEXT.sub(r"\1", text)).casefold().replace("\\", " ")
    words = re.sub(r"[\"'`*_{}]", "", words)
    words = " ".join(re.sub(r"[.,;:!?()\[\]]", " ", words).split())
    words = re.sub(r"^(?:the|a|an) ", "", words)
    return MEANINGS.get(words, words)
