"""Problems from reasoning-gym: procedural, so that a declaration of one line is a whole data set."""

import difflib
import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.problems import normalised_question, part_of

DRAWS_PER_PROBLEM = 50
MINIMUM_DRAWS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A task of reasoning-gym with its options. `wording` replaces its question, `{expression}` being the task's own;
    `operator`: only expressions with this one."""

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    wording: str | None = None
    operator: str | None = None


def _two_terms(digits: int) -> dict[str, int]:
    return {"min_terms": 2, "max_terms": 2, "min_digits": digits, "max_digits": digits}


# chain_sum also subtracts; a sum here is a sum. The questions are worded alike, in few words, because small models
# answer a short question better: of 40 sums SmolLM2-135M-Instruct has 31 right so worded, 21 in the task's words.
PRESETS: dict[str, Preset] = {
    "one_digit_sums": Preset(task="chain_sum", options=_two_terms(1), wording="What is {expression}?", operator="+"),
    "two_digit_sums": Preset(task="chain_sum", options=_two_terms(2), wording="What is {expression}?", operator="+"),
    "one_digit_products": Preset(task="products", options=_two_terms(1), wording="What is {expression}?"),
    # One kind of animal: a product in words, of which one factor has to be known.
    "one_step_word_problems": Preset(
        task="leg_counting", options={"min_animals": 1, "max_animals": 1, "min_instances": 2, "max_instances": 9}
    ),
}


class GymTaskInvalid(UserError):
    """The declaration names a task or options that reasoning-gym does not have."""


class GymTaskExhausted(UserError):
    """A task has fewer distinct questions than the declaration asks for."""


def gym_version() -> str:
    """Return the installed version of reasoning-gym, without importing it."""
    return importlib.metadata.version("reasoning-gym")


def gym_rows(declaration: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return `size` rows with distinct questions of the declared part, and how many draws were passed over and why.

    Draw i of a seed is always the same, so a larger `size` begins with the same problems. Raises GymTaskInvalid, and
    GymTaskExhausted when the questions run out.
    """
    preset = PRESETS.get(declaration["task"]) or Preset(task=declaration["task"])
    size, split = declaration["size"], declaration.get("split")
    counts = {"repeated": 0, "in_other_part": 0}
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for entry in _draws(preset, declaration):
        row = _row(entry, preset, declaration["task"])
        question = normalised_question(row["question"])
        if question in seen:
            counts["repeated"] += 1
            continue
        seen.add(question)
        if split and part_of(row["question"], split["eval_share"]) != split["part"]:
            counts["in_other_part"] += 1
            continue
        rows.append(row)
        if len(rows) == size:
            return rows, counts
    side = f" in its {split['part']} part" if split else ""
    raise GymTaskExhausted(
        f"reasoning-gym task {declaration['task']} has {len(rows)} distinct questions{side}, {size} were asked for",
        f"set size to {len(rows)} or less",
    )


def _draws(preset: Preset, declaration: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    draws = max(MINIMUM_DRAWS, DRAWS_PER_PROBLEM * declaration["size"])
    dataset = _dataset(preset, declaration, draws)
    for index in range(draws):
        entry = dataset[index]
        if preset.operator is None or preset.operator in entry["metadata"]["expression"].split():
            yield entry


def _dataset(preset: Preset, declaration: Mapping[str, Any], size: int) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if preset.task not in DATASETS:
        near = difflib.get_close_matches(preset.task, [*PRESETS, *DATASETS], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise GymTaskInvalid(
            f"reasoning-gym {gym_version()} has no task {preset.task}", f"{hint}presets: {', '.join(PRESETS)}"
        )
    options = {**preset.options, **(declaration.get("options") or {})}
    try:
        return reasoning_gym.create_dataset(preset.task, size=size, seed=declaration["seed"], **options)
    except (TypeError, AssertionError, ValueError) as fault:
        raise GymTaskInvalid(
            f"reasoning-gym task {preset.task} refuses its options: {fault}", "see `options`"
        ) from None


def _row(entry: Mapping[str, Any], preset: Preset, name: str) -> dict[str, Any]:
    question, expression = entry["question"], entry["metadata"].get("expression")
    if preset.wording is not None:
        question = preset.wording.format(expression=expression)
    # A step is all that these problems need; other tasks come without a derivation.
    solution = f"{expression} = {entry['answer']}" if preset.wording is not None else _legs(entry)
    return {
        "question": question,
        "answer": entry["answer"],
        "solution": solution,
        "source": f"reasoning_gym/{name}",
    }


def _legs(entry: Mapping[str, Any]) -> str | None:
    """Return the product that a count of legs of one kind of animal is, None for any other problem."""
    animals = entry["metadata"].get("animals") or {}
    if len(animals) != 1:
        return None
    (count,) = animals.values()
    return f"{count} * {int(entry['answer']) // count} = {entry['answer']}"
