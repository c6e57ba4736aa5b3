"""The records: one frozen dataclass per artifact table, ids first.

Records are joined by id, never by position. Token ids are what the engine returned or was given; nothing that is
trained on was ever decoded and tokenised again.
"""

from dataclasses import dataclass
from typing import Literal

VerdictStatus = Literal["ok", "unparsable", "timeout", "error"]
FinishReason = Literal["stop", "length"]
Origin = Literal["response", "refinement", "solution", "critique"]
Restart = Literal["none", "named", "unnamed"]
# What became of one request to a critique model: `agreed` and `disagreed` with the verifier; no verdict in the reply;
# nothing in it; a reply that is none; a request that was refused; no reply, or a server that does not answer.
AttemptStatus = Literal["agreed", "disagreed", "no_verdict", "empty", "malformed", "refused", "unanswered"]
# ok: the critique is of the kind that was asked for. Else why not: the last attempt, or nothing could be asked at all.
CritiqueStatus = Literal[
    "ok", "disagreed", "no_verdict", "empty", "malformed", "refused", "unanswered", "too_long", "no_solution"
]
Degraded = Literal["skipped", "indicative"]
SkipReason = Literal["no_critique", "too_long", "restarts_skipped"]
SelectionReason = Literal["correct", "random", "first_best"]
UpdateStatus = Literal["ok", "no_gradient", "non_finite"]
# Where old log-probs came from: there was no ratio; the forward pass of the only step; a pass of the trainer before the
# first step; the sampler; the trainer, because the gap was above loss.old_logprobs_gap.
OldLogprobs = Literal["none", "same_pass", "trainer", "sampler", "trainer_for_gap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with the ground truth that a verifier compares answers to."""

    problem_id: str
    question: str
    ground_truth: str
    solution: str | None
    source: str
    level: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """A row of a data set that is no problem, with its line (counted from 1) and the reason."""

    row_id: str
    source: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem as the policy sees it in one iteration. Its id is the group id of the responses to it."""

    prompt_id: str
    problem_id: str
    iteration: int
    slot: int  # position in the iteration's batch, over all chunks; a problem may occur twice in a batch
    template: str
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A first attempt, as sampled. `sampling_logprobs[t]` is of `token_ids[t]`, under the sampling distribution."""

    response_id: str
    group_id: str
    problem_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    sampling_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the verifier said of a response or a refinement. A fault is a status of its own, never a reward of 0."""

    subject_id: str
    answer: str | None
    correct: bool
    status: VerdictStatus
    reward: float | None  # None exactly when the status is timeout or error: nothing was judged
    verifier: str
    elapsed_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique:
    """Natural-language remarks on one response, or the statement that there are none (`degraded` is skipped)."""

    critique_id: str
    response_id: str
    kind: str  # of this text: `indicative` where it stands in for another kind
    text: str  # what is quoted; empty exactly when it was skipped: the response then gets no refinement
    verdict_in_text: bool | None
    agreed: bool | None
    attempts: int  # requests to a critique model; 0 for a rule
    model: str  # `rule`, `policy`, or the name of another model
    prompt_tokens: int  # over all attempts
    completion_tokens: int
    latency_ms: float
    status: CritiqueStatus
    with_solution: bool = False  # what its writer was shown, or the text itself names, besides problem and response
    with_ground_truth: bool = False
    degraded: Degraded | None = None  # what the declared policy made of a status that is not ok


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueAttempt:
    """One request to a critique model, and what came of it."""

    attempt_id: str
    critique_id: str
    response_id: str
    attempt: int  # from 1
    kind: str
    model: str
    reply_id: str  # of the content asked for; two attempts with one id share one reply, which was paid for once
    status: AttemptStatus
    text: str  # the whole reply, thinking included
    verdict_in_text: bool | None
    finish_reason: str | None
    cut_tokens: int  # tokens of the response that were left out of the request
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float  # of the reply when it was first given; of a batch, that of the whole batch
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """A second attempt, sampled given question, response and critique (`prompt_token_ids` holds all three).

    Of several responses of a group together (refine.mode aggregate; `responses_quoted` says how many, and 0 in the mode
    resample, whose prompt is the question's), response_id and critique_id are the first. Of a response that was
    restarted it goes on from the first `kept_tokens` tokens of that response: they end `prompt_token_ids`, `token_ids`
    are what follows, `text` is both; `restart` says whether the critique named the step.
    """

    refinement_id: str
    response_id: str
    critique_id: str
    group_id: str
    problem_id: str
    index: int  # 0..per_response-1 within its response
    prompt_token_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    sampling_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int  # of the model that wrote it: a fixed one is its own version 0
    seed: int
    responses_quoted: int = 1
    kept_tokens: int = 0
    restart: Restart = "none"
    model: str = "policy"  # or the name of the engine whose fixed model wrote it
    cut_response_tokens: int = 0  # tokens of the response, and of the critique, that were left out of the prompt
    cut_critique_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedRefinement:
    """A critique without a refinement, and why: there is no text to be read, or the prompt cannot be made to fit."""

    critique_id: str
    response_id: str
    group_id: str
    reason: SkipReason
    max_prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The worked solution of a prompt's problem as the policy's tokens, ended if it was not cut at the token limit."""

    solution_id: str
    group_id: str
    problem_id: str
    token_ids: tuple[int, ...]
    cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedRefinement:
    """A refinement that joins its group's training rows, and why."""

    group_id: str
    refinement_id: str
    reason: SelectionReason


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One row of the training batch: a completion as a continuation of `prompt_token_ids`.

    For a refinement the prompt is the original question alone (paper step 7), so its `sampling_logprobs`, which were
    conditioned on the refinement prompt, are kept for the record and never enter a ratio; that prompt is
    `context_token_ids`, empty where the row was sampled from `prompt_token_ids` or, as a solution, by no engine. A
    solution has no sampling_logprobs, nor has a critique, whose prompt is a request for it. The context of a response
    is the prompt that shows its critique (SDPO). The advantage is of reward + penalty, and 1 where a loss has none.
    """

    sample_id: str  # the response_id, refinement_id or solution_id; of a critique an id of its own
    group_id: str
    origin: Origin
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    sampling_logprobs: tuple[float, ...]
    reward: float  # the verifier's, whatever is learnt from it; 0 for a critique, which has none
    advantage: float
    weight: float  # factor of its token losses; adds up to 1 over each origin, or the group; or 1 for every row
    context_token_ids: tuple[int, ...] = ()
    penalty: float = 0.0  # for length (DAPO), 0 or below; added to the reward before the baseline is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A version of the weights. The digest is its identity; the directories may be absent, and are recoverable."""

    policy_version: int
    parent: str | None  # stage key of the update or init_policy that wrote the policy this one was trained from
    weights_sha256: str
    weights: str | None  # directory (relative to the store) in Hugging Face format
    checkpoint: str | None  # directory (relative to the store): weights + optimizer + scheduler + RNG


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMetrics:
    """What one update did. Means are over the trained tokens of that origin; NaN never stands for absent."""

    policy_version: int
    optimizer_step: int
    status: UpdateStatus
    loss: float
    grad_norm: float | None
    learning_rate: float
    entropy: float | None
    clip_fraction_low: float | None
    clip_fraction_high: float | None
    shaping_mean: float | None  # mean f(p), or weight (ICRL), over shaped tokens
    off_policy_prob_mean: float | None  # mean p over refinement and solution tokens, given the question alone
    mismatch_weight_mean: float | None  # over response tokens; None without a correction
    mismatch_capped_fraction: float | None
    kl_to_reference: float | None  # mean estimate over response tokens; None without a KL term
    divergence_mean: float | None  # SDPO: over response tokens, from what the critique would have said
    kl_to_sampler: float | None  # mean (sampling - trainer) log-prob over response tokens
    logprob_gap_mean: float | None  # mean |sampling - trainer| log-prob over response tokens
    logprob_gap_max: float | None
    samples: int
    samples_trained: int  # rows with a non-zero advantage
    samples_skipped: int
    response_tokens: int
    refinement_tokens: int
    solution_tokens: int
    critique_tokens: int
    non_finite_steps: int
    seconds: float
    old_logprobs: OldLogprobs | None = None  # None: older than this field


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One evaluation problem answered by one policy, without any critique."""

    problem_id: str
    policy_version: int
    sample_index: int
    benchmark: str  # its name in the catalogue, or `eval_problems` for those that training itself evaluates
    template: str
    temperature: float
    correct: bool
    status: VerdictStatus
    answer: str | None
    text: str
    tokens: int
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkFigure:
    """One figure of a benchmark, a policy and a way of sampling. low and high: where it lies in 95% of resamples."""

    figure_id: str
    benchmark: str
    policy_version: int
    template: str
    temperature: float  # 0 is greedy
    samples_per_problem: int
    metric: str  # pass@k, avg@k, maj@k, mean_tokens, truncated (a share), unjudged and unanswered (counts)
    value: float
    low: float | None  # None where there is no interval: counts, lengths, fewer than two problems
    high: float | None
    problems: int  # over which the value was taken
