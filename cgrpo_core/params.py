"""Parameter blocks of the method. A block enters the key of every stage that names it, but for `NOT_IN_KEY` fields.

Plain dataclasses, so that the science depends on no validation library; flows/spec.py validates them with pydantic.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from cgrpo_core.learning_params import (
    AdvantageParams,
    CheckpointParams,
    LimitParams,
    LossParams,
    OptimizerParams,
    SelectParams,
    ShapingParams,
)
from cgrpo_core.param_checks import FORBID
from cgrpo_core.sampling_params import (
    CritiqueParams,
    EvaluateParams,
    RefineParams,
    RolloutParams,
    RunParams,
    VerifyParams,
)

__all__ = [
    "BLOCKS",
    "AdvantageParams",
    "CheckpointParams",
    "CritiqueParams",
    "EvaluateParams",
    "LimitParams",
    "LossParams",
    "OptimizerParams",
    "Params",
    "RefineParams",
    "RolloutParams",
    "RunParams",
    "SelectParams",
    "ShapingParams",
    "VerifyParams",
    "build_block",
    "key_values",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """All blocks of a run, by the names that pipelines.yaml uses."""

    __pydantic_config__: ClassVar = FORBID
    run: RunParams = field(default_factory=RunParams)
    rollout: RolloutParams = field(default_factory=RolloutParams)
    verify: VerifyParams = field(default_factory=VerifyParams)
    critique: CritiqueParams = field(default_factory=CritiqueParams)
    refine: RefineParams = field(default_factory=RefineParams)
    select: SelectParams = field(default_factory=SelectParams)
    advantage: AdvantageParams = field(default_factory=AdvantageParams)
    loss: LossParams = field(default_factory=LossParams)
    optimizer: OptimizerParams = field(default_factory=OptimizerParams)
    checkpoint: CheckpointParams = field(default_factory=CheckpointParams)
    evaluate: EvaluateParams = field(default_factory=EvaluateParams)
    limits: LimitParams = field(default_factory=LimitParams)


BLOCKS: dict[str, type] = {name: item.default_factory for name, item in Params.__dataclass_fields__.items()}  # type: ignore[misc]


def build_block(name: str, values: dict[str, Any]) -> Any:
    """Return the block called `name` from plain values, as a plan stores them. Raises KeyError or TypeError."""
    if name == "loss":
        values = {**values, "shaping": ShapingParams(**values["shaping"])}
    return BLOCKS[name](**values)


def key_values(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a block that belong into a stage key."""
    skipped: frozenset[str] = getattr(BLOCKS[name], "NOT_IN_KEY", frozenset())
    return {field_name: value for field_name, value in values.items() if field_name not in skipped}
