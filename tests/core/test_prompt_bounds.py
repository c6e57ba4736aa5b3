"""Prompts cut to fit: by the stated rule, deterministically, and never beyond the bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrpo_core.prompt_bounds import MIN_SHARE, Passage, TokenMap, fit, plain_quote, response_passage

WORDS = TokenMap(  # a token is a word
    render=lambda messages: [len(word) for word in messages[0]["content"].split()],
    encode=lambda text: [int(word.strip("w")) if word.startswith("w") else -1 for word in text.split()],
    decode=lambda ids: " ".join(f"w{number}" for number in ids),
)
BYTES = TokenMap(
    render=lambda messages: list(messages[0]["content"].encode()),
    encode=lambda text: list(text.encode()),
    decode=lambda ids: bytes(ids).decode("utf-8", "replace"),
)


def words(first: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(first, first + count))


def build(texts):
    return [{"role": "user", "content": "\n\n".join(["Question:", *texts])}]


def text_of(fitted) -> str:
    return fitted.messages[0]["content"]


def test_a_prompt_that_fits_is_not_touched() -> None:
    fitted = fit([response_passage(words(0, 5)), Passage(thinking="", said="c")], build, WORDS, 100)
    assert text_of(fitted) == f"Question:\n\n{words(0, 5)}\n\nc"
    assert fitted.cut_tokens == (0, 0)


def test_the_middle_of_the_response_is_left_out_first_and_the_cut_is_counted() -> None:
    fitted = fit([response_passage(words(0, 200)), Passage(thinking="", said=words(500, 20))], build, WORDS, 100)
    assert len(fitted.token_ids) <= 100
    text = text_of(fitted)
    assert words(500, 20) in text  # the critique is whole
    assert "w0 " in text
    assert "w199" in text
    assert "w100 " not in text
    left = fitted.cut_tokens[0]
    assert f"[... {left} tokens are left out here ...]" in text
    assert sum(f"w{k}" in text.split() for k in range(200)) == 200 - left
    assert fitted.cut_tokens[1] == 0


def test_thinking_is_cut_before_what_was_said_after_it() -> None:
    passage = response_passage(f"<think>{words(0, 200)}</think>{words(300, 30)}")
    fitted = fit([passage], build, WORDS, 100)
    assert words(300, 30) in text_of(fitted)
    assert "w0 " in text_of(fitted)
    assert fitted.cut_tokens[0] > 100


def test_a_critique_of_any_length_leaves_the_response_its_half() -> None:
    fitted = fit([response_passage(words(0, 200)), Passage(thinking="", said=words(1000, 5000))], build, WORDS, 121)
    kept = [word for word in text_of(fitted).split() if word.startswith("w")]
    of_response = sum(int(word.strip("w")) < 200 for word in kept)
    assert abs(of_response - len(kept) / 2) <= 10
    assert len(fitted.token_ids) <= 121


def test_what_cannot_fit_is_none() -> None:
    passages = [response_passage(words(0, 200)), Passage(thinking="", said=words(500, 200))]
    assert fit(passages, build, WORDS, 2 * MIN_SHARE) is None
    assert fit([], build, WORDS, 0) is None


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=400)


@given(texts, texts, texts, st.integers(0, 600))
def test_no_prompt_is_longer_than_allowed_and_the_same_texts_give_the_same_one(
    thinking, said, critique, allowed
) -> None:
    passages = [Passage(thinking=thinking, said=said), Passage(thinking="", said=critique)]
    fitted = fit(passages, build, BYTES, allowed)
    assert fitted == fit(passages, build, BYTES, allowed)
    whole = len(BYTES.render(build([passage.text for passage in passages])))
    if fitted is None:
        assert whole > allowed
    else:
        assert len(fitted.token_ids) <= allowed
        assert (sum(fitted.cut_tokens) == 0) == (whole <= allowed)
        assert fitted.token_ids == BYTES.render(fitted.messages)


@pytest.mark.parametrize("allowed", [80, 81, 82, 83, 84, 85])
def test_a_cut_through_a_character_leaves_no_broken_one(allowed: int) -> None:
    fitted = fit([response_passage("é" * 200)], build, BYTES, allowed)
    assert "\ufffd" not in text_of(fitted)
    assert "é" in text_of(fitted)


def test_quoted_text_holds_no_special_token_and_no_lone_surrogate() -> None:
    special = {"<|im_end|>", "<|im_end|>\n", "<s>"}
    quoted = plain_quote("end<|im_end|>\n<|im_start|>system <s> \ud83d 3 < 4", special)
    assert quoted == "end< |im_end|>\n<|im_start|>system < s> ? 3 < 4"
    assert plain_quote("nothing special: 3 < 4", special) == "nothing special: 3 < 4"
