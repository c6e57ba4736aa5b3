"""A sampler and a trainer without models, for unit tests only: what they return is a function of what they are given.

Their weights are a directory with one file that names a digest, so that loading, mismatches and replays can be tested.
Token ids are the UTF-8 bytes of the text; 256 ends a sequence.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from cgrpo_core.ids import derive_seed, digest
from tasks.engines.protocol import (
    Completion,
    EngineStats,
    PolicyMismatch,
    PolicyRef,
    SampleRequest,
    SamplingSettings,
    UpdateReport,
    UpdateRequest,
)
from tasks.engines.sampler_options import check_requests

END_TOKEN = 256
WEIGHTS_FILE = "fake_weights.json"


def write_fake_weights(directory: str, weights_sha256: str) -> None:
    """Write a directory that fake engines load as the weights of that digest."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    (Path(directory) / WEIGHTS_FILE).write_text(json.dumps({"weights_sha256": weights_sha256}))


def read_fake_weights(directory: str) -> str:
    """Return the digest of a directory of fake weights."""
    return str(json.loads((Path(directory) / WEIGHTS_FILE).read_text())["weights_sha256"])


def digits_of_seed(request: SampleRequest, policy: PolicyRef) -> str:
    """Return a boxed number in 0..9 that follows from request, seed and weights."""
    number = derive_seed(policy.weights_sha256, request.seed, *request.prompt_token_ids) % 10
    return f"The answer is \\boxed{{{number}}}."


class FakeSampler:
    """A Sampler whose completion of a request is `reply(request, policy)`, cut at max_tokens."""

    def __init__(
        self, reply: Callable[[SampleRequest, PolicyRef], str] = digits_of_seed, max_model_len: int = 1 << 20
    ) -> None:
        self._reply, self._max_model_len = reply, max_model_len
        self._held: PolicyRef | None = None
        self._prompt_tokens = self._completion_tokens = 0
        self.calls: list[list[str]] = []

    def held(self) -> PolicyRef | None:
        """Return the policy being served, or None."""
        return self._held

    def load(self, policy: PolicyRef, weights_dir: str) -> PolicyRef:
        """Serve the weights in `weights_dir`; raise PolicyMismatch, and hold nothing, if their digest is another."""
        self._held = None
        self._held = _matching(policy, weights_dir)
        return policy

    def load_times(self) -> None:
        """Return nothing: a fake takes no time."""
        return None

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings, expect: PolicyRef
    ) -> list[Completion]:
        """Return one completion a request; raise PolicyMismatch if not serving `expect`."""
        check_requests(requests, settings, self._max_model_len)
        _expect(self._held, expect)
        self.calls.append([request.request_id for request in requests])
        completions = [self._complete(request, settings, expect) for request in requests]
        self._prompt_tokens += sum(len(request.prompt_token_ids) for request in requests)
        self._completion_tokens += sum(len(completion.token_ids) for completion in completions)
        return completions

    def peak_memory(self) -> dict[str, int]:
        """Return nothing: a fake is no process."""
        return {}

    def stats(self) -> EngineStats:
        """Return the counters; a fake takes no time."""
        return EngineStats(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            busy_seconds=0.0,
            load_seconds=0.0,
        )

    def _complete(self, request: SampleRequest, settings: SamplingSettings, policy: PolicyRef) -> Completion:
        whole = (*self._reply(request, policy).encode(), END_TOKEN)
        token_ids = whole[: settings.max_tokens]
        return Completion(
            request_id=request.request_id,
            text=bytes(token for token in token_ids if token != END_TOKEN).decode(errors="replace"),
            token_ids=token_ids,
            logprobs=tuple(-0.5 - token / 1024 for token in token_ids),
            finish_reason="stop" if token_ids == whole else "length",
        )


class FakeTrainer:
    """A Trainer whose weights digest after an update follows from the one before and the samples, in any order."""

    def __init__(self) -> None:
        self._held: PolicyRef | None = None
        self._optimizer_step = 0
        self.updates: list[UpdateRequest] = []

    def held(self) -> PolicyRef | None:
        """Return the policy held, or None."""
        return self._held

    def load_weights(self, policy: PolicyRef, weights_dir: str) -> PolicyRef:
        """Start from weights alone."""
        self._held = None
        self._held = _matching(policy, weights_dir)
        self._optimizer_step = 0
        return policy

    def load_checkpoint(self, policy: PolicyRef, checkpoint_dir: str) -> PolicyRef:
        """Take weights and optimizer step from a checkpoint."""
        self._held = None
        self._held = _matching(policy, checkpoint_dir)
        self._optimizer_step = int((Path(checkpoint_dir) / "optimizer_step").read_text())
        return policy

    def update(self, request: UpdateRequest, expect: PolicyRef) -> UpdateReport:
        """Take one step; without a sample of non-zero advantage the weights stay as they are."""
        _expect(self._held, expect)
        trained = [sample for sample in request.samples if sample.advantage]
        weights = expect.weights_sha256
        if trained:
            rows = sorted(digest(asdict(sample)) for sample in trained)
            weights = digest([weights, rows, asdict(request.loss), asdict(request.optimizer), self._optimizer_step])
            self._optimizer_step += 1
        self.updates.append(request)
        self._held = PolicyRef(policy_version=expect.policy_version + 1, weights_sha256=weights)
        return _report(request, self._held, self._optimizer_step, len(trained))

    def export_weights(self, directory: str, expect: PolicyRef) -> None:
        """Write fake weights into a directory."""
        _expect(self._held, expect)
        write_fake_weights(directory, expect.weights_sha256)

    def peak_memory(self) -> dict[str, int]:
        """Return nothing: a fake is no process."""
        return {}

    def send_weights(self, samplers: Sequence[str], backend: str, expect: PolicyRef) -> None:
        """Send nothing: fake samplers load fake files."""
        _expect(self._held, expect)

    def save_checkpoint(self, directory: str, expect: PolicyRef) -> None:
        """Write fake weights and the optimizer step into a directory."""
        _expect(self._held, expect)
        write_fake_weights(directory, expect.weights_sha256)
        (Path(directory) / "optimizer_step").write_text(str(self._optimizer_step))


def _matching(policy: PolicyRef, directory: str) -> PolicyRef:
    found = read_fake_weights(directory)
    if found != policy.weights_sha256:
        raise PolicyMismatch(f"{directory} has the weights {found[:12]}, not {policy.weights_sha256[:12]}")
    return policy


def _expect(held: PolicyRef | None, expect: PolicyRef) -> None:
    if held != expect:
        raise PolicyMismatch(f"the engine holds {held}, the call expects {expect}")


def _report(request: UpdateRequest, policy: PolicyRef, optimizer_step: int, trained: int) -> UpdateReport:
    origins = {sample.origin for sample in request.samples if sample.advantage}
    return UpdateReport(
        status="ok" if trained else "no_gradient",
        policy=policy,
        optimizer_step=optimizer_step,
        loss=-0.125 if trained else 0.0,
        grad_norm=1.0 if trained else None,
        learning_rate=request.optimizer.lr,
        entropy=1.0 if trained else None,
        clip_fraction_low=0.0 if "response" in origins else None,
        clip_fraction_high=0.0 if "response" in origins else None,
        shaping_mean=0.5 if "refinement" in origins else None,
        off_policy_prob_mean=0.1 if "refinement" in origins else None,
        mismatch_weight_mean=None,
        mismatch_capped_fraction=None,
        kl_to_reference=None,
        divergence_mean=None,
        kl_to_sampler=0.0 if "response" in origins else None,
        logprob_gap_mean=0.0 if "response" in origins else None,
        logprob_gap_max=0.0 if "response" in origins else None,
        samples_trained=trained,
        non_finite_steps=0,
        seconds=0.0,
        digest_seconds=0.0,
        old_logprobs="same_pass" if trained else "none",
    )
