"""Parameter blocks of the method. A block enters the key of every stage that names it, but for `NOT_IN_KEY` fields.

Plain dataclasses, so that the science depends on no validation library; flows/spec.py validates them with pydantic.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

FORBID: dict[str, Any] = {"extra": "forbid"}


def _at_least(block: object, minimum: float, *names: str) -> None:
    """Raise ValueError unless each named field of `block` is finite and at least `minimum`."""
    for name in names:
        value = getattr(block, name)
        if value is not None and not minimum <= value < math.inf:
            raise ValueError(f"{name} must be at least {minimum:g}, not {value}")


def _fraction(block: object, *names: str) -> None:
    """Raise ValueError unless each named field of `block` is in (0, 1]."""
    for name in names:
        value = getattr(block, name)
        if not 0.0 < value <= 1.0:
            raise ValueError(f"{name} must be above 0 and at most 1, not {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParams:
    """How much is run. A longer run shares every artifact with a shorter one, so `iterations` is in no key."""

    __pydantic_config__: ClassVar = FORBID
    NOT_IN_KEY: ClassVar = frozenset({"iterations"})
    seed: int = 17
    iterations: int = 300
    prompts_per_iteration: int = 128
    chunks: int = 1

    def __post_init__(self) -> None:
        _at_least(self, 1, "iterations", "prompts_per_iteration", "chunks")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutParams:
    """First attempts: `group_size` responses to each prompt (paper: n = 7, and 8 for GRPO). `template`: prompts.py."""

    __pydantic_config__: ClassVar = FORBID
    template: Literal["boxed", "number"] = "boxed"
    group_size: int = 7
    temperature: float = 1.0
    top_p: float = 1.0
    max_prompt_tokens: int = 2048
    max_response_tokens: int = 6144

    def __post_init__(self) -> None:
        _at_least(self, 1, "group_size", "max_prompt_tokens", "max_response_tokens")
        _at_least(self, 0, "temperature")
        _fraction(self, "top_p")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyParams:
    """How answers are judged. Worker count changes no verdict, so it is in no key."""

    __pydantic_config__: ClassVar = FORBID
    NOT_IN_KEY: ClassVar = frozenset({"workers"})
    verifier: Literal["math_verify"] = "math_verify"
    timeout_s: float = 5.0
    max_characters: int = 20_000
    workers: int = 1

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_characters", "workers")
        _at_least(self, 0.01, "timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueParams:
    """Which critique a wrong or right response gets."""

    __pydantic_config__: ClassVar = FORBID
    kind: Literal["indicative", "indicative_gt"] = "indicative_gt"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineParams:
    """Which groups are refined, and how refinements are sampled."""

    __pydantic_config__: ClassVar = FORBID
    gate: Literal["zero_correct", "all", "never"] = "zero_correct"
    per_response: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_prompt_tokens: int = 8192
    max_response_tokens: int = 6144

    def __post_init__(self) -> None:
        _at_least(self, 1, "per_response", "max_prompt_tokens", "max_response_tokens")
        _at_least(self, 0, "temperature")
        _fraction(self, "top_p")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectParams:
    """Which refinements join the group. `correct`: correct ones first, else random (paper); `first_best`: the first
    with reward 1, else the first of the highest reward (release)."""

    __pydantic_config__: ClassVar = FORBID
    keep: int = 1
    prefer: Literal["correct", "first_best"] = "correct"
    placement: Literal["add", "replace_wrong", "replace_first"] = "add"

    def __post_init__(self) -> None:
        _at_least(self, 1, "keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageParams:
    """Baseline and row weights. `per_origin_mean` is the paper's 1/n and 1/k, `one_sum` the release's 1/(n+k)."""

    __pydantic_config__: ClassVar = FORBID
    baseline: Literal["group_mean"] = "group_mean"
    divide_by_std: bool = False
    epsilon: float = 1e-6
    weights: Literal["per_origin_mean", "one_sum"] = "per_origin_mean"

    def __post_init__(self) -> None:
        _at_least(self, 0, "epsilon")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapingParams:
    """f(p) on refinement tokens: p / (p + gamma), or p itself."""

    __pydantic_config__: ClassVar = FORBID
    kind: Literal["p_over_p_plus_gamma", "none"] = "p_over_p_plus_gamma"
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _at_least(self, 1e-6, "gamma")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossParams:
    """The objective. A `clip_low` and `clip_high` of None switch the clip off."""

    __pydantic_config__: ClassVar = FORBID
    kind: Literal["critique_grpo", "grpo"] = "critique_grpo"
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    shaping: ShapingParams = field(default_factory=ShapingParams)
    aggregate: Literal["token_sum_over_constant", "sequence_mean"] = "token_sum_over_constant"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        _at_least(self, 0, "clip_low", "clip_high", "kl_coef", "entropy_coef")
        if (self.clip_low is None) != (self.clip_high is None):
            raise ValueError("clip_low and clip_high are set together, or both null")
        if self.kl_coef:
            raise ValueError("kl_coef must be 0: no pipeline has a reference policy (the paper removed the KL term)")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerParams:
    """AdamW, constant learning rate. `tokens_per_micro_batch` counts padded tokens, prompt and completion."""

    __pydantic_config__: ClassVar = FORBID
    lr: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    mini_batch_prompts: int = 64
    tokens_per_micro_batch: int = 32768

    def __post_init__(self) -> None:
        _at_least(self, 0, "lr", "beta1", "beta2", "epsilon", "weight_decay")
        _at_least(self, 1e-12, "max_grad_norm")
        _at_least(self, 1, "mini_batch_prompts", "tokens_per_micro_batch")
        if self.beta1 >= 1 or self.beta2 >= 1:
            raise ValueError("beta1 and beta2 must be below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointParams:
    """When full checkpoints are written, and how many superseded weight directories stay on disk."""

    __pydantic_config__: ClassVar = FORBID
    NOT_IN_KEY: ClassVar = frozenset({"every", "keep"})
    every: int = 25
    keep: int = 3

    def __post_init__(self) -> None:
        _at_least(self, 1, "every", "keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateParams:
    """Greedy by default. Policy 0 and the last policy are always evaluated, and every `every` iterations."""

    __pydantic_config__: ClassVar = FORBID
    NOT_IN_KEY: ClassVar = frozenset({"every"})
    every: int = 50
    temperature: float = 0.0
    top_p: float = 1.0
    samples_per_problem: int = 1
    max_prompt_tokens: int = 2048
    max_response_tokens: int = 6144

    def __post_init__(self) -> None:
        _at_least(self, 1, "every", "samples_per_problem", "max_prompt_tokens", "max_response_tokens")
        _at_least(self, 0, "temperature")
        _fraction(self, "top_p")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitParams:
    """What fails a run. `logprob_gap_max`: largest |sampler - trainer| log-prob of a response token; None: no limit."""

    __pydantic_config__: ClassVar = FORBID
    NOT_IN_KEY: ClassVar = frozenset({"logprob_gap_max"})
    logprob_gap_max: float | None = 1e-3

    def __post_init__(self) -> None:
        _at_least(self, 0, "logprob_gap_max")


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
