"""Prompts that quote texts of any length, cut to a stated number of tokens by a stated rule; the tokenizer is given.

The rule. A prompt that fits is not touched. Else the quoted passages share the room that the rest of the prompt leaves,
and are cut in the order in which they are given (the response before its critique), each at most down to an equal share
of the room. Of a passage the thinking gives way first, then what was said after it; each loses its middle, because the
beginning says what is being tried and the end what came out. A line says how many tokens are left out there. If less
than MIN_SHARE tokens a passage would remain, the prompt does not fit, and nothing is asked.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cgrpo_core.prompts import Message
from cgrpo_core.thinking import split_thinking

MIN_SHARE = 16
MIN_THINKING = 16  # thinking of which less than this would remain is left out whole
LEFT_OUT = "[... {count} tokens are left out here ...]"
BROKEN = "\ufffd"  # what a decoder writes for the bytes of a character that a cut went through


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMap:
    """The tokenizer, as functions: a whole prompt of messages, and plain text there and back."""

    render: Callable[[Sequence[Message]], list[int]]
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A quoted text in two parts; `thinking` may be empty, and is cut before `said`."""

    thinking: str
    said: str

    @property
    def text(self) -> str:
        """The passage as it is quoted."""
        return "\n\n".join(part for part in (self.thinking, self.said) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A prompt of at most the allowed tokens. `cut_tokens[i]`: how many tokens of passage i are left out."""

    messages: list[Message]
    token_ids: list[int]
    cut_tokens: tuple[int, ...]


def response_passage(text: str) -> Passage:
    """Return a response as it is quoted: its thinking first, without tags."""
    thinking, said = split_thinking(text)
    return Passage(thinking=thinking, said=said)


def fit(
    passages: Sequence[Passage], build: Callable[[Sequence[str]], list[Message]], tokens: TokenMap, max_tokens: int
) -> Fitted | None:
    """Return the prompt that `build` makes of the passages, cut by the rule above; None if it cannot fit."""
    messages = build([passage.text for passage in passages])
    token_ids = tokens.render(messages)
    cuts = tuple(0 for _ in passages)
    parts = [_Parts(passage, tokens) for passage in passages]
    room = sum(part.size for part in parts)
    while len(token_ids) > max_tokens:
        room -= len(token_ids) - max_tokens
        if room < MIN_SHARE * len(passages):
            return None
        shortened = [
            part.cut_to(share) for part, share in zip(parts, _shares([p.size for p in parts], room), strict=True)
        ]
        cuts = tuple(left_out for _, left_out in shortened)
        messages = build([text for text, _ in shortened])
        token_ids = tokens.render(messages)
    return Fitted(messages=messages, token_ids=token_ids, cut_tokens=cuts)


def plain_quote(text: str, special_tokens: Iterable[str]) -> str:
    """Return `text` as it may be quoted in a prompt: no special token of the tokenizer is left whole in it.

    A model can write `<|im_end|>` as text; tokenised as the special token it would end the message that quotes it. A
    space after the first character makes it plain text. Lone surrogates, which no tokenizer takes, become `?`.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    for token in sorted(special_tokens, key=len, reverse=True):
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


class _Parts:
    """A passage, tokenised once."""

    def __init__(self, passage: Passage, tokens: TokenMap) -> None:
        self._passage, self._tokens = passage, tokens
        self._thinking, self._said = tokens.encode(passage.thinking), tokens.encode(passage.said)
        self.size = len(self._thinking) + len(self._said)

    def cut_to(self, size: int) -> tuple[str, int]:
        """Return the text of about `size` tokens, and how many are left out."""
        if size >= self.size:
            return self._passage.text, 0
        thinking_share = size - len(self._said)
        thinking_share = thinking_share if thinking_share >= MIN_THINKING else 0
        thinking, first = self._cut_middle(self._passage.thinking, self._thinking, thinking_share)
        said, second = self._cut_middle(self._passage.said, self._said, size - thinking_share)
        return Passage(thinking=thinking, said=said).text, first + second

    def _cut_middle(self, text: str, ids: list[int], size: int) -> tuple[str, int]:
        if len(ids) <= size:
            return text, 0
        head, tail = ids[: size - size // 2], ids[len(ids) - size // 2 :]
        left_out = len(ids) - size
        ends = (
            self._tokens.decode(head).rstrip(BROKEN).rstrip(),
            LEFT_OUT.format(count=left_out),
            self._tokens.decode(tail).lstrip(BROKEN).lstrip(),
        )
        return "\n".join(end for end in ends if end), left_out


def _shares(sizes: Sequence[int], room: int) -> list[int]:
    """Return how many tokens each passage may have: cut in order, none below an equal share of the room."""
    shares = list(sizes)
    for place, size in enumerate(sizes):
        excess = sum(shares) - room
        shares[place] = max(min(size, room // len(sizes)), size - max(excess, 0))
    return shares
