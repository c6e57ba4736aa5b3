"""What a stage may ask of an engine. An engine is a cache of a Policy: each call names the policy that it expects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cgrpo_core.errors import UserError
from cgrpo_core.params import LossParams, OptimizerParams
from cgrpo_core.prompts import Message
from cgrpo_core.records import FinishReason, OldLogprobs, TrainingSample, UpdateStatus


class PolicyMismatch(RuntimeError):
    """An engine holds another policy than the call expects. Never served over; the caller must `load` first."""


class LogprobGapExceeded(UserError):
    """Sampler and trainer disagree about the log-probs of the same tokens by more than the declared limit."""

    def __init__(
        self, message: str, hint: str = "give both engines one dtype, or set limits.logprob_gap_max to what you accept"
    ) -> None:
        super().__init__(message, hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRef:
    """Identity of a policy: the version says where in a run, the digest says which weights."""

    policy_version: int
    weights_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One completion to sample. The seed makes it independent of whatever shares its batch."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """Temperature 0 is greedy. `max_tokens` bounds the completion; reaching it gives finish_reason `length`."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Token ids include the end-of-sequence token when the model ended by itself; `text` has no special tokens.

    `logprobs[t]` is the log-prob of `token_ids[t]` under the distribution that was sampled from.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    cached_prompt_tokens: int = 0  # of the prompt, whose keys and values the prefix cache had


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters since the engine started; what a stage stores of them is the difference over its call."""

    prompt_tokens: int
    completion_tokens: int
    busy_seconds: float
    load_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTimes:
    """Seconds of one load of weights. `digest` is hashing beside the rest; the others follow each other in `total`.

    weights: into the kernels of the engine, read from the file included. reset: of the prefix cache. check: that what
    is served is what was read.
    """

    total: float
    digest: float
    weights: float
    reset: float
    check: float
    by: str = "files"  # or the backend of vLLM's weight-transfer API


class Sampler(Protocol):
    """Samples completions from a policy."""

    def held(self) -> PolicyRef | None:
        """Return the policy being served, or None."""

    def load(self, policy: PolicyRef, weights_dir: str) -> PolicyRef:
        """Serve the weights in `weights_dir`; raise PolicyMismatch if their digest is not the policy's."""

    def load_times(self) -> LoadTimes | None:
        """Return what the last load that was asked through this object took; None if it read no weights."""

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings, expect: PolicyRef
    ) -> list[Completion]:
        """Return one completion a request, in their order; raise PolicyMismatch if not serving `expect`."""

    def stats(self) -> EngineStats:
        """Return the counters."""

    def peak_memory(self) -> dict[str, int]:
        """Return the most that one of its processes has used so far, as memory.peak_memory names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRequest:
    """One update: every sample of an iteration, and how to learn from them.

    max_response_tokens: T, the constant denominator. sampling_temperature: log-probs are of the logits divided by it.
    """

    samples: tuple[TrainingSample, ...]
    loss: LossParams
    optimizer: OptimizerParams
    max_response_tokens: int
    sampling_temperature: float
    logprob_gap_max: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What an update did; fields as in records.UpdateMetrics."""

    status: UpdateStatus
    policy: PolicyRef
    optimizer_step: int
    loss: float
    grad_norm: float | None
    learning_rate: float
    entropy: float | None
    clip_fraction_low: float | None
    clip_fraction_high: float | None
    shaping_mean: float | None
    off_policy_prob_mean: float | None
    mismatch_weight_mean: float | None
    mismatch_capped_fraction: float | None
    kl_to_reference: float | None
    divergence_mean: float | None
    kl_to_sampler: float | None
    logprob_gap_mean: float | None
    logprob_gap_max: float | None
    samples_trained: int
    non_finite_steps: int
    seconds: float
    digest_seconds: float  # of them, for the digest of the new weights
    old_logprobs: OldLogprobs
    padding_share: float = 0.0  # of the positions that were computed


class Trainer(Protocol):
    """Holds weights and optimizer state of one policy. World size is its own affair."""

    def held(self) -> PolicyRef | None:
        """Return the policy held, or None."""

    def load_weights(self, policy: PolicyRef, weights_dir: str) -> PolicyRef:
        """Start from weights alone, with a fresh optimizer; raise PolicyMismatch if the digest is another."""

    def load_checkpoint(self, policy: PolicyRef, checkpoint_dir: str) -> PolicyRef:
        """Take weights, optimizer, scheduler and RNG from a checkpoint; raise PolicyMismatch for another digest."""

    def update(self, request: UpdateRequest, expect: PolicyRef) -> UpdateReport:
        """Take the optimizer steps of one iteration; the policy held afterwards has version `expect` + 1."""

    def export_weights(self, directory: str, expect: PolicyRef) -> None:
        """Write the weights as Hugging Face safetensors with config and tokenizer into `directory` (new or empty)."""

    def send_weights(self, samplers: Sequence[str], backend: str, expect: PolicyRef) -> None:
        """Send the weights to sampler actors, by name, through a backend of vLLM's weight-transfer API."""

    def save_checkpoint(self, directory: str, expect: PolicyRef) -> None:
        """Write a checkpoint into `directory` (new or empty)."""

    def peak_memory(self) -> dict[str, int]:
        """Return the most that one of its processes has used so far, as memory.peak_memory names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueRequest:
    """One critique to write. `attempt` counts from 1; the seed is for engines that take one."""

    request_id: str
    messages: tuple[Message, ...]
    prompt_token_ids: tuple[int, ...]  # the messages as the tokenizer of an engine of ours renders them
    attempt: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueReply:
    """What a critique model answered, or why there is no answer: then `fault` says so, and `text` is empty.

    reply_id: of the content that was asked; requests with the same content share one reply, and its cost.
    """

    request_id: str
    reply_id: str
    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float
    fault: Literal["malformed", "refused", "unanswered"] | None = None
    error: str | None = None


class Critiquer(Protocol):
    """Writes critiques: a model behind an API, or a sampler."""

    def ask(self, requests: Sequence[CritiqueRequest]) -> list[CritiqueReply]:
        """Return one reply a request, in their order. A server that fails is a fault of the reply, never an error."""
