"""What models write between `<think>` and `</think>`: how it is told apart from what they say.

The rule, for every text that a prompt quotes: tags are never quoted, since inside a message they would look like the
thinking of whoever reads it. A response's thinking is quoted as plain text before what it says, because errors are made
in it; it is what is cut first. A critique's thinking is not quoted at all. Thinking that never ended (the reply was
cut) is thinking to its end.
"""

START, END = "<think>", "</think>"


def split_thinking(text: str) -> tuple[str, str]:
    """Return (thinking, what is said after it), without tags and outer white space; either may be empty."""
    if END in text:
        thinking, _, said = text.rpartition(END)
    elif START in text:
        said, _, thinking = text.partition(START)
    else:
        thinking, said = "", text
    return _plain(thinking), _plain(said)


def without_thinking(text: str) -> str:
    """Return what a text says after its thinking; of thinking that never ended, nothing."""
    return "" if START in text.rpartition(END)[2] else split_thinking(text)[1]


def _plain(text: str) -> str:
    return text.replace(START, "").replace(END, "").strip()
