"""Parameter blocks of the method. A block enters the key of every stage that names it, but for `NOT_IN_KEY` fields.

Plain dataclasses, so that the science depends on no validation library; flows/spec.py validates them with pydantic.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

from cgrpo_core.critiques import ModelKind, critique_kind
from cgrpo_core.learning_params import (
    AdvantageParams,
    CheckpointParams,
    LimitParams,
    LossParams,
    MismatchParams,
    OptimizerParams,
    SelectParams,
    ShapingParams,
    SupervisedParams,
)
from cgrpo_core.param_checks import FORBID
from cgrpo_core.sampling_params import (
    CritiqueParams,
    EvaluateParams,
    PassAtKParams,
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
    "MismatchParams",
    "OptimizerParams",
    "Params",
    "PassAtKParams",
    "RefineParams",
    "RolloutParams",
    "RunParams",
    "SelectParams",
    "ShapingParams",
    "SupervisedParams",
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
    supervised: SupervisedParams = field(default_factory=SupervisedParams)
    advantage: AdvantageParams = field(default_factory=AdvantageParams)
    loss: LossParams = field(default_factory=LossParams)
    optimizer: OptimizerParams = field(default_factory=OptimizerParams)
    checkpoint: CheckpointParams = field(default_factory=CheckpointParams)
    evaluate: EvaluateParams = field(default_factory=EvaluateParams)
    pass_at_k: PassAtKParams = field(default_factory=PassAtKParams)
    limits: LimitParams = field(default_factory=LimitParams)

    def __post_init__(self) -> None:
        """Refuse what no single block can see: combinations of blocks that mean nothing."""
        adds_up = self.loss.aggregate == "token_mean" or self.loss.scaling == "release"
        if self.advantage.weights == "equal" and not adds_up:
            raise ValueError(
                "advantage.weights equal goes with loss.aggregate token_mean or loss.scaling release: elsewhere the "
                "loss is a mean over groups, and would grow with the rows of a group"
            )
        if self.loss.scaling == "release" and self.advantage.weights != "equal":
            raise ValueError("loss.scaling release goes with advantage.weights equal: it divides by rows itself")
        if self.loss.mismatch.kind != "none" and self.rollout.top_p < 1:
            raise ValueError(
                "loss.mismatch goes with rollout.top_p 1: below it the sampler's log-probs are of a cut distribution, "
                "and differ from the trainer's for that reason"
            )
        if self.loss.old_logprobs != "trainer" and self.rollout.top_p < 1:
            raise ValueError(
                f"loss.old_logprobs {self.loss.old_logprobs} goes with rollout.top_p 1: below it the sampler's "
                "log-probs are of a cut distribution, which the ratio is not taken in"
            )
        if self.refine.mode == "resample" and isinstance(critique_kind(self.critique.kind), ModelKind):
            raise ValueError(
                f"refine.mode resample reads no critique, and critique.kind {self.critique.kind} would ask a model for "
                "each: choose indicative or indicative_gt, which are written by rule"
            )
        if (self.evaluate.benchmark, self.evaluate.shards) != (EvaluateParams().benchmark, 1):
            raise ValueError("evaluate.benchmark and evaluate.shards are set by `cgrpo evaluate`, from benchmarks.NAME")


BLOCKS: dict[str, type] = {name: item.default_factory for name, item in Params.__dataclass_fields__.items()}  # type: ignore[misc]


def build_block(name: str, values: dict[str, Any]) -> Any:
    """Return the block called `name` from plain values, as a plan stores them. Raises KeyError or TypeError.

    A field that is absent, because the plan is older than it, has its default.
    """
    inner = {item.name: item.default_factory for item in fields(BLOCKS[name]) if is_dataclass(item.default_factory)}
    nested = {key: inner[key](**value) for key, value in values.items() if key in inner}  # type: ignore[operator]
    return BLOCKS[name](**{**values, **nested})


def key_values(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a block that belong into a stage key, and what else the block adds to it."""
    skipped: frozenset[str] = getattr(BLOCKS[name], "NOT_IN_KEY", frozenset())
    kept = {field_name: value for field_name, value in values.items() if field_name not in skipped}
    additions = getattr(BLOCKS[name], "key_additions", None)
    return kept | (additions(values) if additions else {})
