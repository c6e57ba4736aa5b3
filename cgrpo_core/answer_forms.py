"""One spelling for one answer: the single place where an answer, or a ground truth, is rewritten before it is compared.

In this order: characters (other scripts' digits, typographic signs), wrappers (dollar signs, boxes, spacing commands,
full stops), numerals (`4.5e33`, thousands separators, `np.`), Python and sympy notation (`**`, `Eq(a, b)`), and units.
Nothing here evaluates: what is left is LaTeX of the same value.
"""

import re
import unicodedata

CHARACTERS = {
    **{"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "∞": r"\infty ", "∪": r"\cup "},
    **{"∩": r"\cap ", "π": r"\pi ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "⩽": r"\leq ", "⩾": r"\geq "},
    **{
        "°": r"^\circ ",
        "∈": r"\in ",
        "±": r"\pm ",
        "≈": r"\approx ",
        "θ": r"\theta ",
        "√": r"\sqrt ",
        "∅": r"\emptyset ",
    },
    **{"“": '"', "”": '"', "’": "'", "，": ",", "；": ";", "。": ".", "\u00a0": " ", "\u2009": " ", "\u202f": " "},
}
DROPPED = frozenset({"So", "Sk", "Cc", "Cf", "Cn", "Co", "Cs"})
SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True))
SPACING = re.compile(
    r"(?<!\\)\\[,;:! ]|\\q?quad\b|~|\\displaystyle\b|\\limits\b|\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\.?"
)
SAME_COMMANDS = (
    (re.compile(r"\\[dtc]frac\b"), r"\\frac"),
    (re.compile(r"\\(?:leqslant|le|leqq)(?![A-Za-z])"), r"\\leq "),
    (re.compile(r"\\(?:geqslant|ge|geqq)(?![A-Za-z])"), r"\\geq "),
    (re.compile(r"\\ne(?![A-Za-z])"), r"\\neq "),
    (re.compile(r"\\(?:mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|operatorname)\s*\{"), r"\\text{"),
    (re.compile(r"\\(?:lbrace|\{)"), r"\\{"),
    (re.compile(r"\\textcirc\b|\\degree\b|\^\s*\{\s*\\circ\s*\}|\^\s*\\circ\b"), r"^\\circ "),
    (re.compile(r"\\cupdot\b"), r"\\cup "),
    (re.compile(r"\\sqrt\s*(\w)"), r"\\sqrt{\1}"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\text\s*\{\s*([+-]?[\d./]+)\s*\}"), r"\1"),
)
SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3}){2,}(?![\d.,])")
SEPARATED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
E_NOTATION = re.compile(r"(?<![\w.])((?:\d+\.?\d*|\.\d+))[eE]([+-]?\d+)(?![\w.])")
SUBSCRIPT = re.compile(
    r"(?<![A-Za-z\\][A-Za-z])(?<=[A-Za-z])\s*_\s*(\{(?:\\text\s*\{[^{}]*\}|[^{}])*\}|\\?[A-Za-z]+|\d)"
)
AT_ZERO = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\s*\(\s*0\s*\)")  # an initial value, and no product with 0
PYTHON_CALLS = re.compile(r"\b(?:np|numpy|math|sympy|sp)\.")
FUNCTION_WORD = re.compile(r"(?<![A-Za-z\\{ ])(pi|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp)(?![A-Za-z])")
ORDINAL = re.compile(r"(?<=\d)\s*(?:\^\s*\{?\s*)?(?:\\text\s*\{\s*(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th)\b)\s*\}?")
UNIT = r"\\text\s*\{[A-Za-zµΩ\s./\-()]*(?:\^\s*\{?-?\d\}?)?\s*\}\s*(?:\^\s*\{?\s*-?\d\s*\}?)?"
TEXT_UNIT = re.compile(rf"\s*{UNIT}(?:\s*(?:/|\\cdot)?\s*{UNIT})*$")
SENTENCE = re.compile(r"\b(?:is|are|was|not|no|or|and|wrong|false|incorrect|than|if|but)\b")  # no unit says so
POWER = r"\.?(?:\^\s*\{?\s*\d\s*\}?)?$"
KNOWN_UNITS = (
    "cm mm km kg ft mph hour hr minute min second sec day feet inche meter dollar cent degree unit mile lb pound"
)
BARE_UNIT = re.compile(
    rf"(?<=[\d}}])\s+(?:per\s+)?[A-Za-z]{{2,}}(?:[ -][A-Za-z]+)*{POWER}"
    rf"|(?<=\d)\s*(?:{KNOWN_UNITS.replace(' ', '|')})s?{POWER}"
)
CURRENCY = re.compile(r"^(\s*[+-]?)\s*(?:\\?\$|€|£|¥|₹|Rs\.?|USD|US\\?\$)\s*(?=[\d.])|(?<=\d)\s*(?:\\?\$|€|£|¥|₹)\s*$")
SCALES = {"hundred": "00", "thousand": "000", "million": "000000", "billion": "000000000", "trillion": "0" * 12}
PERCENT_WORD = r"percentage points?|percent|percentage|pct"
PERCENT = re.compile(rf"\s*(?:\\?%|\\text\s*\{{\s*(?:\\?%|{PERCENT_WORD})\s*\}}|\b(?:{PERCENT_WORD})\b)\.?")


def normalised(answer: str) -> str:
    """Return `answer` as it is compared: LaTeX without wrappers, units and typographic variants."""
    text = _plain_characters(answer)
    text = _unwrapped(text)
    for pattern, replacement in SAME_COMMANDS:
        text = pattern.sub(replacement, text)
    text = ORDINAL.sub("", PYTHON_CALLS.sub("", text))
    text = FUNCTION_WORD.sub(r"\\\1", text)
    text = _from_python(text)
    text = _without_separators(text)
    text = E_NOTATION.sub(r"\1\\times 10^{\2}", text)
    text = PERCENT.sub(r"\\%", text)
    text = SUBSCRIPT.sub(lambda match: "_{" + re.sub(r"\\text|[^A-Za-z0-9+-]", "", match.group(1)) + "}", text)
    text = CURRENCY.sub(r"\1", AT_ZERO.sub(r"\1_{0}", text))
    text = _without_unit(text)
    return " ".join(text.split()).strip()


def _plain_characters(text: str) -> str:
    """Return `text` in ASCII digits and LaTeX signs. Full-width forms and decimal digits of any script are digits;
    circled and the like are not, because `②③` is no 23. Pictures, controls and what is no character are dropped."""
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\n", " ").replace("\t", " ")
    out = []
    for character in text:
        if character in CHARACTERS:
            out.append(CHARACTERS[character])
        elif character in SUPERSCRIPTS:
            out.append(f"^{{{SUPERSCRIPTS[character]}}}")
        elif (digit := unicodedata.decimal(character, None)) is not None:
            out.append(str(digit))
        elif "\uff01" <= character <= "\uff5e":
            out.append(chr(ord(character) - 0xFEE0))
        elif " " <= character <= "~" or unicodedata.category(character) not in DROPPED:
            out.append(character)
    return "".join(out)


def _unwrapped(text: str) -> str:
    """Return `text` without dollar signs, brackets of display mathematics, spacing commands and a final full stop."""
    text = re.sub(r"\\\\(?=[A-Za-z()\[\]])", r"\\", text) if "matrix" not in text and "array" not in text else text
    text = re.sub(r"(?<!\\)\$\$?(?!\d[\d.,]*\s*$)|\\[()\[\]]", " ", text) if text.count("$") != 1 else text
    text = SPACING.sub(" ", re.sub(r"(?<=\d)(?:,\s*\\!\s*|\{,\})(?=\d{3})", "", text))
    previous = None
    while text != previous:
        previous = text
        text = re.sub(r"(?<!\\)[.,;:]+$", "", text.strip())
        inner = re.fullmatch(r"\*\*(.*)\*\*|\{([^{}]*)\}|\\boxed\{(.*)\}", text)
        if inner:
            text = next(group for group in inner.groups() if group is not None)
    return text


def _without_separators(text: str) -> str:
    """Return `text` without thousands separators outside brackets: `(3,331)` is a pair."""

    def joined(match: re.Match[str]) -> str:
        before = text[: match.start()]
        inside = sum(before.count(bracket) for bracket in "([") > sum(before.count(bracket) for bracket in ")]")
        return match.group() if inside else match.group().replace(",", "")

    text = SPACED.sub(lambda match: match.group().replace(" ", ""), text)
    return SEPARATED.sub(joined, text) if "," in text else text


def _from_python(text: str) -> str:
    """Return sympy's and Python's notation as LaTeX: `Eq(a, b)`, `x**2`, `sqrt(2)`, `2*x`, `oo`."""
    if "**" not in text and "Eq(" not in text and "sqrt(" not in text and "*" not in text:
        return text
    equation = re.fullmatch(r"Eq\((.*),([^,]*)\)", text)
    if equation:
        text = f"{equation.group(1)} = {equation.group(2)}"
    text = re.sub(r"\*\*\s*\(([^()]*)\)", r"^{\1}", text)
    text = re.sub(r"\*\*\s*(-?\w+)", r"^{\1}", text)
    text = re.sub(r"(?<!\\)\bsqrt\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt\(([^()]*)\)", r"\\sqrt{\1}", text)
    return re.sub(r"(?<=[\w)}\]])\s*\*\s*(?=[\w(\\])", r" \\cdot ", text)


def _without_unit(text: str) -> str:
    """Return a number with its unit as the number alone; a scale such as `million` is multiplied out.

    A letter that touches a number, as in `2m`, is a variable; units are words, or stand in `\\text`.
    """
    scale = re.fullmatch(r"([+-]?\d+)\s*(?:\\text\s*\{\s*)?(hundred|thousand|million|billion|trillion)\s*\}?", text)
    if scale:
        return scale.group(1) + SCALES[scale.group(2)]
    stripped = TEXT_UNIT.sub("", text)
    if stripped != text and SENTENCE.search(text[len(stripped) :]):
        return text
    if stripped.strip() and re.search(r"[\w})]\s*$", stripped) and not re.search(r"[,;=<>]|\\text", stripped):
        text = stripped
    shorter = BARE_UNIT.sub("", text)
    if shorter != text and re.fullmatch(
        r"[+-]?\s*[\d.,/ ]+|[+-]?\s*\d*\s*\\frac\{[^{}]*\}\{[^{}]*\}|[^A-Za-z]*\\times 10\^\{[+-]?\d+\}",
        shorter.strip(),
    ):
        text = shorter
    return text
