"""Parameter blocks of what is learnt from: rows, advantages, loss, optimizer. Blocks and keys: params.py."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cgrpo_core.param_checks import FORBID, at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectParams:
    """Which refinements join the group. `correct`: correct ones first, else random (paper); `first_best`: the first
    with reward 1, else the first of the highest reward (release)."""

    __pydantic_config__: ClassVar = FORBID
    keep: int = 1
    prefer: Literal["correct", "first_best"] = "correct"
    placement: Literal["add", "replace_wrong", "replace_first"] = "add"

    def __post_init__(self) -> None:
        at_least(self, 1, "keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageParams:
    """Baseline and row weights. `per_origin_mean` is the paper's 1/n and 1/k, `one_sum` the release's 1/(n+k)."""

    __pydantic_config__: ClassVar = FORBID
    baseline: Literal["group_mean"] = "group_mean"
    divide_by_std: bool = False
    epsilon: float = 1e-6
    weights: Literal["per_origin_mean", "one_sum"] = "per_origin_mean"

    def __post_init__(self) -> None:
        at_least(self, 0, "epsilon")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapingParams:
    """f(p) on refinement tokens: p / (p + gamma), or p itself."""

    __pydantic_config__: ClassVar = FORBID
    kind: Literal["p_over_p_plus_gamma", "none"] = "p_over_p_plus_gamma"
    gamma: float = 0.1

    def __post_init__(self) -> None:
        at_least(self, 1e-6, "gamma")


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
        at_least(self, 0, "clip_low", "clip_high", "kl_coef", "entropy_coef")
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
        at_least(self, 0, "lr", "beta1", "beta2", "epsilon", "weight_decay")
        at_least(self, 1e-12, "max_grad_norm")
        at_least(self, 1, "mini_batch_prompts", "tokens_per_micro_batch")
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
        at_least(self, 1, "every", "keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitParams:
    """What fails a run. `logprob_gap_max`: largest |sampler - trainer| log-prob of a response token; None: no limit."""

    __pydantic_config__: ClassVar = FORBID
    NOT_IN_KEY: ClassVar = frozenset({"logprob_gap_max"})
    logprob_gap_max: float | None = 1e-3

    def __post_init__(self) -> None:
        at_least(self, 0, "logprob_gap_max")
