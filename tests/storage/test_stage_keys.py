"""The key of a stage: the same for the same ingredients, another one when anything among them changes."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from storage.keys import stage_ingredients, stage_key

words = st.text(max_size=8)
plain = (
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | words
)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))
places = st.none() | st.integers(0, 400)
ingredients = st.fixed_dictionaries(
    {
        "stage": words,
        "stage_version": st.integers(1, 9),
        "record_schemas": st.dictionaries(words, words, max_size=2),
        "params": st.dictionaries(words, values, max_size=3),
        "inputs": st.dictionaries(words, st.lists(words, max_size=3), max_size=3),
        "engine": st.none() | st.dictionaries(words, plain, max_size=2),
        "iteration": places,
        "chunk": places,
        "salt": words,
        "seed": st.integers(0, 2**31),
    }
)


def key_of(parts: dict[str, Any]) -> str:
    return stage_key(stage_ingredients(**parts))


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(list(value))}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(ingredients)
def test_the_same_ingredients_give_the_same_key_in_any_order_and_after_json(parts: dict[str, Any]) -> None:
    assert key_of(reordered(parts)) == key_of(parts)
    assert stage_key(json.loads(json.dumps(stage_ingredients(**parts)))) == key_of(parts)
    assert len(key_of(parts)) == 64


@given(ingredients, ingredients)
def test_any_changed_ingredient_gives_another_key(parts: dict[str, Any], others: dict[str, Any]) -> None:
    for name, other in others.items():
        if json.dumps(other, sort_keys=True) != json.dumps(parts[name], sort_keys=True):
            assert key_of(parts | {name: other}) != key_of(parts), name


@given(ingredients)
def test_the_order_of_input_chunks_is_part_of_the_key(parts: dict[str, Any]) -> None:
    forward, backward = {"samples": ["a/samples", "b/samples"]}, {"samples": ["b/samples", "a/samples"]}
    assert key_of(parts | {"inputs": forward}) != key_of(parts | {"inputs": backward})
