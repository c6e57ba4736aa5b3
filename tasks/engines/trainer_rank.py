"""One process of the trainer: a rank that holds its share of weights and optimizer state of one policy.

All ranks get every call at the same time with the same arguments, because they meet in collectives. Whatever a rank
decides (a mismatch, an exceeded gap, a skipped step) follows from values that all ranks share, so all decide alike.
Heavy imports wait until a method runs: the driver imports this file to start the actors.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cgrpo_core.params import LossParams
from tasks.engines.memory import peak_memory
from tasks.engines.protocol import LogprobGapExceeded, PolicyMismatch, PolicyRef, UpdateReport, UpdateRequest
from tasks.engines.trainer_options import TrainerOptions

if TYPE_CHECKING:
    from tasks.engines.gradients import GradientReport
    from tasks.engines.policy_module import PolicyModule
    from tasks.engines.trainer_checkpoint import TrainerState
    from tasks.engines.update_steps import UpdateSums
    from tasks.engines.zero import ZeroEngine


Meeting = Literal["alone", "joining", "joined"]
HASHING_THREADS = 4  # of the digest, about 1 GB a second each


class TrainerRank:
    """The body of one rank's actor."""

    def __init__(self, rank: int, world_size: int, base_dir: str, options: TrainerOptions) -> None:
        self._rank, self._world_size = rank, world_size
        self._base_dir, self._options = base_dir, options
        self._engine: ZeroEngine | None = None
        self._held: PolicyRef | None = None
        self._digest = ""  # of the weights as exported; differs from policy 0's when those are cast on loading
        self._optimizer_step = 0
        self._learning_rate = 0.0
        self._meeting: Meeting = "alone"

    def meeting(self) -> Meeting:
        """Return how far this rank has come in meeting the others; answered in a thread of its own."""
        return self._meeting

    def meeting_file(self) -> str:
        """Return the path of a file, not made yet, at which the ranks can meet."""
        import tempfile

        return str(Path(tempfile.mkdtemp(prefix="cgrpo-ranks-")) / "meeting")

    def join(self, meeting_file: str) -> None:
        """Join the process group of all ranks (collective)."""
        import logging

        import torch

        self._meeting = "joining"
        torch.set_num_threads(self._options.num_threads)
        from tasks.engines.zero import join_process_group

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        local_rank = self._rank if self._options.on_cpu else 0  # Ray shows each actor its own device as device 0
        join_process_group(
            self._rank, self._world_size, meeting_file, local_rank=local_rank, on_cpu=self._options.on_cpu
        )
        self._meeting = "joined"

    def held(self) -> PolicyRef | None:
        """Return the policy held, or None."""
        return self._held

    def load_weights(self, policy: PolicyRef, weights_dir: str) -> PolicyRef:
        """Start from weights with a fresh optimizer (collective). Raises PolicyMismatch and then holds nothing.

        The policy may be known by its files or by what they are once loaded: a base model may come in another dtype, or
        with a copy of the embedding as its head.
        """
        from tasks.models import model_weights_digest

        self._build_engine(weights_dir)
        self._accept(policy, weights_dir, model_weights_digest(weights_dir))
        self._optimizer_step, self._learning_rate = 0, 0.0
        return policy

    def load_checkpoint(self, policy: PolicyRef, checkpoint_dir: str) -> PolicyRef:
        """Take everything from a checkpoint (collective). Raises PolicyMismatch and then holds nothing."""
        from tasks.engines.trainer_checkpoint import read_state, restore_checkpoint

        state = read_state(checkpoint_dir)
        engine = self._build_engine(checkpoint_dir)
        restore_checkpoint(engine, checkpoint_dir, state, dtype=self._options.dtype)
        self._accept(policy, checkpoint_dir, None)
        self._optimizer_step, self._learning_rate = state.optimizer_step, state.learning_rate
        return policy

    def update(self, request: UpdateRequest, expect: PolicyRef) -> UpdateReport:
        """Take the optimizer steps of one iteration (collective); hold version `expect` + 1 afterwards.

        Raises PolicyMismatch or LogprobGapExceeded and holds what it held; after any other error it holds nothing.
        """
        from tasks.engines.update_steps import Split, is_trained, take_steps

        engine, started = self._expect(expect), time.perf_counter()
        split = Split(rank=self._rank, world_size=self._world_size, packed_tokens=self._options.packed_tokens)
        self._hold_reference(engine, request.loss)
        self._held = None  # should a step fail half-way, what is left is no known policy
        try:
            result = take_steps(engine, request, split)
        except LogprobGapExceeded:
            self._held = expect
            raise
        steps = len(result.grad_norms)
        began = time.perf_counter()
        if steps:
            self._digest = self._compute_digest()
        hashed = time.perf_counter() - began
        self._held = PolicyRef(policy_version=expect.policy_version + 1, weights_sha256=self._digest)
        self._optimizer_step += steps
        self._learning_rate = request.optimizer.lr
        trained = sum(is_trained(sample, request.loss) for sample in request.samples)
        return self._report(result, request.loss, trained, time.perf_counter() - started, hashed)

    def gradients(self, requests: dict[str, UpdateRequest], rows: Sequence[str], expect: PolicyRef) -> "GradientReport":
        """Return what each loss makes of its batch, without a step (collective). Raises PolicyMismatch."""
        from tasks.engines.gradients import GradientReport, measure_gradients, most_penalised
        from tasks.engines.update_steps import Split

        engine = self._expect(expect)
        split = Split(rank=self._rank, world_size=self._world_size, packed_tokens=self._options.packed_tokens)
        self._held = None  # should it fail half-way, gradients are left over
        self._hold_reference(engine, most_penalised(requests))
        losses, cosines = measure_gradients(engine, requests, rows, split)
        after = self._compute_digest()
        if after != self._digest:
            raise RuntimeError(f"measuring gradients changed the weights from {self._digest[:12]} to {after[:12]}")
        self._held = expect
        return GradientReport(losses=tuple(losses), cosines=cosines, weights_before=self._digest, weights_after=after)

    def export_weights(self, directory: str, expect: PolicyRef) -> None:
        """Write the weights in Hugging Face format (collective; rank 0 writes)."""
        from tasks.engines.export import WEIGHTS_FILE, copy_model_files, create_directory, write_tensors

        weights = self._expect(expect).named_weights()
        if self._rank:
            for _ in weights:
                pass
            return
        path = create_directory(directory)
        # At stage 3 a gathered tensor is gone when the next one comes, so it is copied.
        copied = self._options.zero_stage == 3
        write_tensors(path / WEIGHTS_FILE, ((name, t.cpu().clone() if copied else t) for name, t in weights))
        copy_model_files(self._base_dir, path, self._options.dtype)

    def send_weights(self, samplers: Sequence[str], backend: str, expect: PolicyRef) -> None:
        """Send the weights to these sampler actors by a backend of vLLM's weight-transfer API (collective)."""
        from tasks.engines.actors import find_actor
        from tasks.engines.weight_transfer import RayReplicas, send_weights, trainer_info

        weights = self._expect(expect).named_weights()
        copied = self._options.zero_stage == 3  # there a gathered tensor is gone when the next one comes
        tensors = ((name, tensor.clone() if copied else tensor) for name, tensor in weights)
        replicas = RayReplicas([find_actor(name) for name in samplers])
        send_weights(tensors, replicas, trainer_info(backend, self._rank, len(samplers)))

    def save_checkpoint(self, directory: str, expect: PolicyRef) -> None:
        """Write a checkpoint (collective; rank 0 writes)."""
        from tasks.engines.trainer_checkpoint import write_checkpoint

        engine = self._expect(expect)
        write_checkpoint(engine, directory, self._base_dir, self._state(engine), writes=self._rank == 0)

    def peak_rss_bytes(self) -> int:
        """Return the largest resident set of this process so far."""
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def peak_memory(self) -> dict[str, int]:
        """Return the largest use of memory, and of a GPU, by this process so far."""
        return peak_memory()

    def _state(self, engine: "ZeroEngine") -> "TrainerState":
        from tasks.engines.trainer_checkpoint import TrainerState

        assert self._held is not None
        return TrainerState(
            weights_sha256=self._held.weights_sha256,
            optimizer_step=self._optimizer_step,
            adam_step=engine.adam_step(),
            learning_rate=self._learning_rate,
            dtype=self._options.dtype,
        )

    def _build_engine(self, weights_dir: str) -> "ZeroEngine":
        import gc

        from tasks.engines.zero import ZeroEngine

        self._held = None
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            gc.collect()
        module = self._load(weights_dir, gradient_checkpointing=self._options.gradient_checkpointing)
        bf16 = self._options.dtype == "bfloat16"
        self._engine = ZeroEngine(module, zero_stage=self._options.zero_stage, bf16=bf16)
        return self._engine

    def _hold_reference(self, engine: "ZeroEngine", loss: LossParams) -> None:
        """Have the base model at hand where the loss has a KL term, as each rank's own whole copy."""
        if not loss.kl_coef:
            engine.hold_reference(None)
        elif engine.reference is None:
            engine.hold_reference(self._load(self._base_dir, gradient_checkpointing=False))

    def _load(self, directory: str, *, gradient_checkpointing: bool) -> "PolicyModule":
        import torch

        from tasks.engines.policy_module import load_policy_module

        # Weights of a checkpoint are float32; the engine makes the training dtype of them.
        return load_policy_module(
            directory,
            dtype=getattr(torch, self._options.dtype),
            chunk_tokens=self._options.chunk_tokens,
            gradient_checkpointing=gradient_checkpointing,
            compile_body=self._options.compile,
            products=self._options.products,
        )

    def _accept(self, policy: PolicyRef, directory: str, digest_of_files: str | None) -> None:
        self._digest = self._compute_digest()
        if policy.weights_sha256 not in (self._digest, digest_of_files):
            raise PolicyMismatch(
                f"{directory} holds weights {self._digest[:12]} as {self._options.dtype}, "
                f"not {policy.weights_sha256[:12]} of policy {policy.policy_version}"
            )
        self._held = policy

    def _expect(self, expect: PolicyRef) -> "ZeroEngine":
        if self._held != expect or self._engine is None:
            raise PolicyMismatch(f"the trainer holds {self._held}, not {expect}")
        return self._engine

    def _compute_digest(self) -> str:
        """Return the weights digest, the same on all ranks (collective); rank 0 computes it."""
        import torch

        from cgrpo_core.weights import weights_digest

        assert self._engine is not None
        weights = self._engine.named_weights()
        # At stage 3 a gathered tensor is gone when the next one comes, so it cannot wait for a thread.
        threads = 1 if self._options.zero_stage == 3 else HASHING_THREADS
        digest = [weights_digest(weights, threads=threads) if self._rank == 0 else ""]
        for _ in weights:
            pass
        torch.distributed.broadcast_object_list(digest, src=0)
        return digest[0]

    def _report(
        self, result: "UpdateSums", loss: LossParams, samples_trained: int, seconds: float, hashed: float
    ) -> UpdateReport:
        assert self._held is not None
        sums, gap, steps = result.sums, result.gap, len(result.grad_norms)
        responses, others = sums["response_tokens"], sums["off_policy_tokens"]
        corrected = loss.mismatch.kind != "none"

        def mean(total: float, count: float) -> float | None:
            return total / count if count else None

        tried = steps + result.non_finite_steps
        return UpdateReport(
            status="ok" if steps else "non_finite" if tried else "no_gradient",
            policy=self._held,
            optimizer_step=self._optimizer_step,
            loss=mean(sum(result.losses), steps) or 0.0,
            grad_norm=mean(sum(result.grad_norms), steps),
            learning_rate=self._learning_rate,
            entropy=mean(sums["entropy_sum"], responses + others),
            clip_fraction_low=mean(sums["clip_low_count"], responses),
            clip_fraction_high=mean(sums["clip_high_count"], responses),
            shaping_mean=mean(sums["shaping_sum"], others if loss.kind == "critique_grpo" else 0),
            off_policy_prob_mean=mean(sums["off_policy_prob_sum"], others),
            mismatch_weight_mean=mean(sums["mismatch_sum"], responses if corrected else 0),
            mismatch_capped_fraction=mean(sums["mismatch_capped_count"], responses if corrected else 0),
            kl_to_reference=mean(sums["kl_sum"], responses if loss.kl_coef else 0),
            divergence_mean=mean(sums["divergence_sum"], responses if loss.kind == "sdpo" else 0),
            kl_to_sampler=mean(gap.signed, gap.tokens),
            logprob_gap_mean=mean(gap.absolute, gap.tokens),
            logprob_gap_max=gap.largest if gap.tokens else None,
            samples_trained=samples_trained,
            non_finite_steps=result.non_finite_steps,
            seconds=seconds,
            digest_seconds=hashed,
            old_logprobs=result.old_logprobs,
            padding_share=result.padding_share,
        )
