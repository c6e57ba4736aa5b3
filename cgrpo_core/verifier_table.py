"""Which data source demands which verifier, and how its ground truths are written: one table.

A source is known by its name, in lower case with signs as `_`; the first row that begins it, or a part of it after a
slash, holds. Any other source is judged by math-verify.
"""

import re
from dataclasses import dataclass
from typing import Literal

VERIFIER_VERSION = 3  # raised, with the stages in tasks/versions.py, when a verdict changes
VerifierName = Literal["math_verify", "multiple_choice", "boolean", "theoremqa"]
VerifierChoice = Literal["by_source", "math_verify", "multiple_choice", "boolean", "theoremqa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRule:
    """What a data source demands. `truth_after`: the ground truth is what stands after the last such mark."""

    source: str
    verifier: VerifierName
    truth_after: str | None = None


TABLE = (
    SourceRule(source="mmlu", verifier="multiple_choice"),  # ten letters in MMLU-Pro
    SourceRule(source="gpqa", verifier="multiple_choice"),
    SourceRule(source="arc_", verifier="multiple_choice"),
    SourceRule(source="theoremqa", verifier="theoremqa"),  # numbers, lists, options, true and false
    SourceRule(source="boolq", verifier="boolean"),
    SourceRule(source="strategyqa", verifier="boolean"),
    SourceRule(source="gsm8k", verifier="math_verify", truth_after="####"),
)
ANY = SourceRule(source="", verifier="math_verify")


def rule_of(source: str | None) -> SourceRule:
    """Return the rule of a data source."""
    parts = [re.sub(r"\W+", "_", part) for part in (source or "").lower().split("/")]
    joined = [re.sub(r"_", "", part) for part in parts]
    for rule in TABLE:
        plain = rule.source.rstrip("_")
        if any(part.startswith(rule.source) for part in parts) or any(
            part.startswith(plain) for part in joined if "_" not in rule.source
        ):
            return rule
    return ANY


def verifier_for(choice: VerifierChoice, source: str | None) -> VerifierName:
    """Return the verifier that judges a problem of `source`: the one that is set, or what the table says."""
    return rule_of(source).verifier if choice == "by_source" else choice


def written_truth(ground_truth: str, source: str | None) -> str:
    """Return the ground truth without what its source writes before it."""
    mark = rule_of(source).truth_after
    return ground_truth.rpartition(mark)[2].strip() if mark and mark in ground_truth else ground_truth
