"""Parameter blocks of what is learnt from: rows, advantages, loss, optimizer. Blocks and keys: params.py."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cgrpo_core.param_checks import FORBID, at_least, fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectParams:
    """Which refinements join the group. `correct`: correct ones first, else random (paper); `first_best`: the first
    with reward 1, else the first of the highest reward (release); `random`: whatever their reward (an ablation)."""

    __pydantic_config__: ClassVar = FORBID
    keep: int = 1
    prefer: Literal["correct", "first_best", "random"] = "correct"
    placement: Literal["add", "replace_wrong", "replace_first"] = "add"

    def __post_init__(self) -> None:
        at_least(self, 1, "keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedParams:
    """Which correct completions are imitated, and how many of a group and of each origin at most; null: all."""

    __pydantic_config__: ClassVar = FORBID
    imitate: Literal["responses", "refinements", "both"] = "both"
    keep: int | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageParams:
    """Baseline and row weights (advantages.py).

    baseline: `group_mean`, or `leave_one_out`, the mean of the other rows (RLOO). weights: `per_origin_mean` is the
    paper's 1/n and 1/k, `one_sum` the release's 1/(n+k), `equal` 1 for every row, where the loss divides by rows or
    tokens itself. overlong_share: the last share of the token limit, in which the penalty for length grows from 0 to
    overlong_penalty (dapo.py); null: no penalty. equal_rewards: whether groups whose rewards are all equal stay in the
    batch, without gradient, or are dropped from it and counted.

    Of successors, the baselines `first_attempt_mean`: of the group's responses, for refinements too (RLTF), and
    `origin_mean`: of responses and of refinements apart (ICRL). positive_scale: factor of every advantage above 0
    (R3L). restarts: a response whose refinement goes on from its first tokens is trained `whole`, or on the `suffix`
    that comes after them, as that refinement is (R3L).
    """

    __pydantic_config__: ClassVar = FORBID
    baseline: Literal["group_mean", "leave_one_out", "first_attempt_mean", "origin_mean"] = "group_mean"
    divide_by_std: bool = False
    epsilon: float = 1e-6
    weights: Literal["per_origin_mean", "one_sum", "equal"] = "per_origin_mean"
    equal_rewards: Literal["keep", "drop"] = "keep"
    overlong_share: float | None = None
    overlong_penalty: float = 1.0
    positive_scale: float = 1.0
    restarts: Literal["whole", "suffix"] = "whole"

    def __post_init__(self) -> None:
        at_least(self, 0, "epsilon", "overlong_penalty", "positive_scale")
        if self.overlong_share is not None:
            fraction(self, "overlong_share")
        if self.baseline == "leave_one_out" and self.divide_by_std:
            raise ValueError(
                "divide_by_std must be false with leave_one_out: each row has a group of its own there, that of the "
                "others, and another deviation"
            )
        if self.baseline == "first_attempt_mean" and self.divide_by_std:
            raise ValueError(
                "divide_by_std must be false with first_attempt_mean: where all first attempts agree, which is where "
                "refinements count, their deviation is 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapingParams:
    """What is raised on refinement and solution tokens: f(p) = p / (p + gamma), or p itself; log p (RLTF); or log p
    weighted by p(y | question) / p(y | question, response, critique), `cap` at most (ICRL)."""

    __pydantic_config__: ClassVar = FORBID
    kind: Literal["p_over_p_plus_gamma", "none", "log_p", "context_ratio"] = "p_over_p_plus_gamma"
    gamma: float = 0.1
    cap: float = 2.0

    def __post_init__(self) -> None:
        at_least(self, 1e-6, "gamma", "cap")


@dataclass(frozen=True, slots=True, kw_only=True)
class MismatchParams:
    """Correction for a sampler whose log-probs are not the trainer's: none, or weights of at most `cap`."""

    __pydantic_config__: ClassVar = FORBID
    kind: Literal["none", "truncated"] = "none"
    cap: float = 2.0

    def __post_init__(self) -> None:
        at_least(self, 1, "cap")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossParams:
    """The objective (losses.py).

    kind: `critique_grpo` shapes the rows that the policy did not sample from the question; `grpo` takes the ratio on
    every row. ratio: of each `token`, of the whole `sequence` (GSPO), the detached weight of `cispo`, or `none`
    (REINFORCE). A `clip_low` and `clip_high` of None switch the clip off. entropy_aggregate: the bonus is part of each
    token's loss, or the step's mean entropy of a token. kl_coef: of the KL to the base model, on responses. scaling:
    by prompts, or as in the authors' release, for comparisons with it. old_logprobs (old_logprobs.py): what the ratio
    compares with after the first optimizer step, by the trainer, by the sampler, or `auto`: by the sampler where the
    largest gap between the two, on the rows of the first step, is at most `old_logprobs_gap`. trained_rows: with `all`,
    rows of advantage 0 are trained too, which changes only the means that are measured over trained tokens.

    Two kinds have no advantage, ratio or clip: `sft`, the cross-entropy of every row, and `sdpo`, the `divergence` of
    each token of a response from what the policy would have said given the critique.
    """

    __pydantic_config__: ClassVar = FORBID
    kind: Literal["critique_grpo", "grpo", "sft", "sdpo"] = "critique_grpo"
    ratio: Literal["token", "sequence", "cispo", "none"] = "token"
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    shaping: ShapingParams = field(default_factory=ShapingParams)
    mismatch: MismatchParams = field(default_factory=MismatchParams)
    aggregate: Literal["token_sum_over_constant", "sequence_mean", "token_mean"] = "token_sum_over_constant"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    entropy_aggregate: Literal["as_loss", "token_mean"] = "as_loss"
    scaling: Literal["prompts", "release"] = "prompts"
    divergence: Literal["jsd", "reverse_kl", "forward_kl"] = "jsd"
    old_logprobs: Literal["trainer", "sampler", "auto"] = "trainer"
    old_logprobs_gap: float = 1e-3
    trained_rows: Literal["with_gradient", "all"] = "with_gradient"

    def __post_init__(self) -> None:
        at_least(self, 0, "clip_low", "clip_high", "kl_coef", "entropy_coef", "old_logprobs_gap")
        self._check_clip()
        if self.old_logprobs != "trainer" and (self.ratio == "none" or self.mismatch.kind != "none"):
            raise ValueError(
                f"old_logprobs {self.old_logprobs} goes with a ratio, and with mismatch none: without a ratio nothing "
                "is old, and a mismatch correction compares the trainer's old log-probs with the sampler's"
            )
        if self.kind in ("sft", "sdpo") and (self.ratio != "none" or self.mismatch.kind != "none"):
            raise ValueError(
                f"kind {self.kind} goes with ratio none and mismatch none: it has no policy gradient that they could "
                "correct"
            )
        if self.ratio == "sequence" and self.aggregate != "sequence_mean":
            raise ValueError(
                f"ratio sequence goes with aggregate sequence_mean, not {self.aggregate}: a completion has one ratio, "
                "and a sum over tokens would count it once for each of them"
            )
        if self.scaling == "release" and self.aggregate != "token_sum_over_constant":
            raise ValueError("scaling release goes with aggregate token_sum_over_constant: the release has no other")
        if self.scaling == "release" and self.entropy_coef and self.entropy_aggregate != "token_mean":
            raise ValueError("scaling release goes with entropy_aggregate token_mean: the release has no other")
        if self.kl_coef and self.kind == "sft":
            raise ValueError("kl_coef must be 0 with kind sft: the term is of sampled responses, and sft has none")
        if self.kl_coef and self.scaling == "release":
            raise ValueError("kl_coef must be 0 with scaling release: the release has no such term beside its loss")

    def _check_clip(self) -> None:
        edges = (self.clip_low, self.clip_high)
        if self.ratio == "none" and edges != (None, None):
            raise ValueError("clip_low and clip_high must be null with ratio none: there is no ratio to clip")
        if self.ratio == "cispo":
            if self.clip_high is None:
                raise ValueError("clip_high must be a number with ratio cispo: it is what bounds the detached weight")
        elif (self.clip_low is None) != (self.clip_high is None):
            raise ValueError("clip_low and clip_high are set together, or both null")


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
    """What fails a run; None: no limit. `logprob_gap_max`: largest |sampler - trainer| log-prob of a response token.
    `degraded_critiques_max`: largest share of the critiques of a chunk that are not of the kind asked for."""

    __pydantic_config__: ClassVar = FORBID
    NOT_IN_KEY: ClassVar = frozenset({"logprob_gap_max", "degraded_critiques_max"})
    logprob_gap_max: float | None = 1e-3
    degraded_critiques_max: float | None = None

    def __post_init__(self) -> None:
        at_least(self, 0, "logprob_gap_max", "degraded_critiques_max")
        if self.degraded_critiques_max is not None and self.degraded_critiques_max > 1:
            raise ValueError("degraded_critiques_max is a share: at most 1")
