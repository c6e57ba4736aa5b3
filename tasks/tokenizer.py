"""The policy's tokenizer: chat messages in, the text and token ids of a prompt out."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.prompt_bounds import TokenMap, plain_quote
from cgrpo_core.prompts import Message


class ChatTemplateMissing(UserError):
    """The tokenizer has no chat template, so messages cannot be rendered."""


@lru_cache(maxsize=8)
def load_tokenizer(model_dir: str) -> Any:
    """Return the fast tokenizer in a model directory; kept for the life of the process.

    Raises ChatTemplateMissing.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    if not tokenizer.chat_template:
        raise ChatTemplateMissing(
            f"the tokenizer in {model_dir} has no chat template", "use an instruction-tuned model, which brings one"
        )
    return tokenizer


def render(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, list[int]]:
    """Return the prompt of `messages`, up to where the assistant begins, as text and as token ids.

    The template writes every special token itself, so tokenising adds none.
    """
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return text, list(tokenizer(text, add_special_tokens=False)["input_ids"])


def token_map(tokenizer: Any) -> TokenMap:
    """Return the tokenizer as the functions that cgrpo_core bounds prompts with."""
    return TokenMap(
        render=lambda messages: render(tokenizer, messages)[1],
        encode=lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]),
        decode=lambda token_ids: str(tokenizer.decode(list(token_ids), skip_special_tokens=False)),
    )


def quotable(tokenizer: Any, text: str) -> str:
    """Return a model's text as a prompt may quote it: without whole special tokens of this tokenizer."""
    return plain_quote(text, special_tokens(tokenizer))


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """Return every text that the tokenizer reads as one special token."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added | set(tokenizer.all_special_tokens))
