"""Parameter blocks of what is asked, sampled, judged and critiqued. Blocks and keys: params.py."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cgrpo_core.critiques import ModelKind, critique_kind
from cgrpo_core.param_checks import FORBID, at_least, fraction
from cgrpo_core.verifier_table import VerifierChoice

MAX_SAMPLES = 1000  # of a problem: maj@k is summed in float64, which binomial coefficients of more do not fit


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParams:
    """How much is run. A longer run shares every artifact with a shorter one, so `iterations` is in no key.

    slots_per_prompt: places in the schedule that an iteration takes for each prompt, its own and one for each time that
    the graph may replace it (dapo.py). chunks: `auto` is settled when a run is planned (flows/chunk_choice.py).
    """

    __pydantic_config__: ClassVar = FORBID
    NOT_IN_KEY: ClassVar = frozenset({"iterations"})
    seed: int = 17
    iterations: int = 300
    prompts_per_iteration: int = 128
    chunks: int | Literal["auto"] = 1
    slots_per_prompt: int = 1

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "prompts_per_iteration", "slots_per_prompt")
        if self.chunks != "auto":
            at_least(self, 1, "chunks")

    @property
    def chunk_count(self) -> int:
        """The number of chunks. Raises ValueError where it is not settled yet."""
        if self.chunks == "auto":
            raise ValueError("run.chunks is auto, and is settled only when a new run is planned: give a number")
        return self.chunks


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
        at_least(self, 1, "group_size", "max_prompt_tokens", "max_response_tokens")
        at_least(self, 0, "temperature")
        fraction(self, "top_p")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyParams:
    """How answers are judged. `verifier`: verifier_table.py says which one a data source demands, or one for all.
    `timeout_s`: seconds of CPU time that one answer may take. Worker count changes no verdict, so it is in no key."""

    __pydantic_config__: ClassVar = FORBID
    NOT_IN_KEY: ClassVar = frozenset({"workers"})
    verifier: VerifierChoice = "by_source"
    timeout_s: float = 5.0
    max_characters: int = 20_000
    workers: int = 1

    def __post_init__(self) -> None:
        at_least(self, 1, "max_characters", "workers")
        at_least(self, 0.01, "timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueParams:
    """Which critique a response gets, and how a model is asked for it (kinds: cgrpo_core/critique_kinds/).

    with_solution, with_ground_truth: what the critique model is shown. attempts: how often at most it is asked of one
    response. keep: `agreeing` keeps a critique with the verifier's verdict (paper, step 3), `any` whatever it says.
    degraded: what becomes of a response without such a critique: it is skipped, or gets the indicative critique, or
    fails the run. max_prompt_tokens: for a model behind an API counted by the policy's tokenizer.
    responses: which ones of a group that passes the gate get a critique.
    """

    __pydantic_config__: ClassVar = FORBID
    kind: str = "indicative_gt"
    responses: Literal["all", "wrong"] = "all"
    with_solution: bool = False
    with_ground_truth: bool = False
    attempts: int = 3
    keep: Literal["agreeing", "any"] = "agreeing"
    degraded: Literal["skip", "indicative", "fail"] = "skip"
    temperature: float = 0.7
    top_p: float = 1.0
    max_prompt_tokens: int = 9216
    max_critique_tokens: int = 2048

    def __post_init__(self) -> None:
        kind = critique_kind(self.kind)
        may_show = kind.may_show if isinstance(kind, ModelKind) else frozenset()
        for shown in ("solution", "ground_truth"):
            if getattr(self, f"with_{shown}") and shown not in may_show:
                raise ValueError(f"with_{shown} means nothing to the kind {self.kind}: no prompt of it shows that")
        at_least(self, 1, "attempts", "max_prompt_tokens", "max_critique_tokens")
        at_least(self, 0, "temperature")
        fraction(self, "top_p")

    @staticmethod
    def key_additions(values: dict[str, Any]) -> dict[str, Any]:
        """Return what else belongs into a stage key: the version of the kind's wording."""
        return {"kind_version": critique_kind(values["kind"]).version}


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineParams:
    """Which groups are refined, and how refinements are sampled.

    gate low_reward: groups whose mean reward is below `gate_below`. mode: a refinement of each response, one of all
    critiqued responses of a group together (golf.py), or each response restarted at the step that its critique names
    (restarts.py), or as many new responses to the question alone, the control of what critiques add. `unnamed_step`:
    where a response is restarted whose critique names none.
    """

    __pydantic_config__: ClassVar = FORBID
    gate: Literal["zero_correct", "low_reward", "all", "never"] = "zero_correct"
    gate_below: float = 0.125
    mode: Literal["each", "aggregate", "restart", "resample"] = "each"
    unnamed_step: Literal["start", "half", "skip"] = "start"
    per_response: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_prompt_tokens: int = 8192
    max_response_tokens: int = 6144

    def __post_init__(self) -> None:
        at_least(self, 1, "per_response", "max_prompt_tokens", "max_response_tokens")
        at_least(self, 0, "temperature")
        fraction(self, "top_p", "gate_below")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateParams:
    """Greedy by default. Policy 0 and the last policy are always evaluated, and every `every` iterations.

    benchmark, shards: set by `cgrpo evaluate` for each benchmark; in training there is one set of problems and one
    shard. template: `as_trained` is that of `rollout`; `choice` and `letter` are for multiple choice.
    """

    __pydantic_config__: ClassVar = FORBID
    NOT_IN_KEY: ClassVar = frozenset({"every"})
    every: int = 50
    benchmark: str = "eval_problems"
    template: Literal["as_trained", "boxed", "number", "choice", "letter"] = "as_trained"
    shards: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    samples_per_problem: int = 1
    max_prompt_tokens: int = 2048
    max_response_tokens: int = 6144

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "shards", "samples_per_problem", "max_prompt_tokens", "max_response_tokens")
        at_least(self, 0, "temperature")
        fraction(self, "top_p")
        if self.temperature == 0 and self.samples_per_problem > 1:
            raise ValueError(
                f"samples_per_problem = {self.samples_per_problem} at temperature 0: greedy samples of one problem are "
                "all the same; raise evaluate.temperature or ask for one"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PassAtKParams:
    """How `cgrpo evaluate` samples for pass@k, avg@k and maj@k, beside the greedy answers (paper: 0.6 and 0.95).

    samples: for every benchmark; null: what the catalogue says of each, 0: greedy answers only.
    """

    __pydantic_config__: ClassVar = FORBID
    samples: int | None = None
    temperature: float = 0.6
    top_p: float = 0.95

    def __post_init__(self) -> None:
        at_least(self, 0, "samples", "temperature")
        if self.samples is not None and self.samples > MAX_SAMPLES:
            raise ValueError(f"samples must be at most {MAX_SAMPLES}, not {self.samples}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}: pass@k needs samples that differ")
        fraction(self, "top_p")
