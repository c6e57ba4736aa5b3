"""One rank's DeepSpeed engine: set-up without a launcher, gradient accumulation, steps, and access to full tensors.

Facts of DeepSpeed 0.19 that this file lives with: ZeRO 1-3 refuse a step whose gradient norm is not finite and drop
the gradients, also in float32, while stage 0 does neither; gradients are averaged over ranks, so losses are multiplied
by the world size; stages 1-3 keep float32 copies of the weights in flat partitions that only `safe_*` functions reach.
"""

import math
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from cgrpo_core.divergences import Divergence
from cgrpo_core.logprobs import Pull
from cgrpo_core.params import OptimizerParams
from tasks.engines.micro_batch import MicroBatch, build_micro_batch
from tasks.engines.policy_module import PolicyModule

BUCKET_ELEMENTS = 20_000_000  # 80 MB in float32; DeepSpeed's default of 5e8 would allocate 2 GB
PERSISTENT_ELEMENTS = 10_000  # stage 3 keeps smaller parameters (norms, biases) whole on every rank
COLLECTIVE_TIMEOUT = timedelta(hours=2)
OPTIMIZER_STATES = ("exp_avg", "exp_avg_sq")


def join_process_group(rank: int, world_size: int, meeting_file: str, *, local_rank: int, on_cpu: bool) -> None:
    """Join the group of `world_size` trainer processes on this machine, which meet at a file that none has made yet.

    A file, because the usual meeting place, a TCP store, listens on every interface whatever address it is given.
    """
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
        GLOO_SOCKET_IFNAME="lo",
        NCCL_SOCKET_IFNAME="lo",
    )
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        # oneDNN keeps a kernel a shape, by default 1,024, and every micro-batch has a shape of its own.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        # Otherwise the gradients of a position that several rows of a pack go on from are added up by whichever thread
        # comes first, and a replay on a busy machine gives other weights than the update that it repeats.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    import deepspeed

    # An all-reduce for inference that training never calls, yet it would be compiled (a minute) at every first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="gloo" if on_cpu else None,
        auto_mpi_discovery=False,
        init_method=f"file://{meeting_file}",
        rank=rank,
        world_size=world_size,
        verbose=False,
        timeout=COLLECTIVE_TIMEOUT,
    )


def leave_process_group() -> None:
    """Close the group's sockets."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class ZeroEngine:
    """A PolicyModule under DeepSpeed with AdamW. Methods that say "collective" must be called by all ranks at once."""

    def __init__(self, module: PolicyModule, *, zero_stage: int, bf16: bool) -> None:
        import deepspeed

        torch.manual_seed(0)
        self.zero_stage = zero_stage
        self.world_size = torch.distributed.get_world_size()
        module.accumulate_head = zero_stage == 0  # the other stages take gradients from autograd, in hooks
        # Sets of hyperparameters come with every update; these values are never used for a step.
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)
        self._engine, _, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=_config(zero_stage, bf16), dist_init_required=False
        )
        self._optimizer = optimizer
        self.reference: PolicyModule | None = None
        self.device = self._engine.device

    def set_hyperparameters(self, params: OptimizerParams) -> None:
        """Use these AdamW settings and this clip norm from now on."""
        for group in self._optimizer.param_groups:
            group.update(
                lr=params.lr,
                betas=(params.beta1, params.beta2),
                eps=params.epsilon,
                weight_decay=params.weight_decay,
            )
        self._max_grad_norm = params.max_grad_norm
        if self.zero_stage > 0:
            self._engine.optimizer.clip_grad = params.max_grad_norm

    def logprobs(
        self, batch: MicroBatch, temperature: float, *, with_entropy: bool, pull: Pull | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return log-probs and entropy (or None), both [B, T] (collective at stage 3). pull: see taken_logprobs."""
        logprobs, entropy, _ = self._engine(*batch.inputs(), temperature, with_entropy, pull)
        return logprobs, entropy

    def taught_logprobs(
        self, batch: MicroBatch, teaching: MicroBatch, temperature: float, divergence: Divergence
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return log-probs, entropy and the divergence from `teaching`, all [B, T] (collective at stage 3).

        teaching: the same completions after other prompts, row by row.
        """
        found: tuple[Tensor, Tensor | None, Tensor | None] = self._engine(
            *batch.inputs(), temperature, True, None, teaching.inputs(), divergence
        )
        return found

    def hold_reference(self, module: PolicyModule | None) -> None:
        """Keep a policy that is never trained, whole on every rank, or let go of it with None."""
        self.reference = None if module is None else module.to(self.device).eval().requires_grad_(False)

    def ref_logprobs(self, batch: MicroBatch, temperature: float) -> Tensor | None:
        """Return the log-probs [B, T] of the reference policy, None if there is none."""
        if self.reference is None:
            return None
        with torch.no_grad():
            logprobs: Tensor = self.reference(*batch.inputs(), temperature, False)[0]
        return logprobs

    def accumulate(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of this rank's share of the loss; `last` before a step (collective)."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.world_size)

    def step(self) -> float | None:
        """Take one optimizer step; return the global gradient norm before clipping (collective).

        None: the norm is not finite, and weights and optimizer state are as they were, the gradients dropped.
        """
        if self.zero_stage == 0:
            return self._step_unpartitioned()
        self._engine.step()
        if not self._engine.was_step_applied():
            return None
        return float(self._engine.get_global_grad_norm())

    def _step_unpartitioned(self) -> float | None:
        parameters = [p for p in self._engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if not math.isfinite(norm):
            self._engine.zero_grad()
            return None
        torch.nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        self._engine.step()
        return float(norm)

    def drop_gradients(self) -> None:
        """Forget what was accumulated since the last step (collective).

        A last share of NaN makes DeepSpeed drop everything by itself, in every stage, without touching its insides.
        """
        self._dummy_backward(math.nan)
        if self.step() is not None:
            raise RuntimeError("DeepSpeed took a step over gradients of NaN")

    def create_optimizer_state(self) -> None:
        """Make AdamW allocate its moments, all zero, by a step of learning rate 0 over zero gradients (collective)."""
        self.set_hyperparameters(OptimizerParams(lr=0.0, weight_decay=0.0))
        self._dummy_backward(0.0)
        self.step()

    def _dummy_backward(self, factor: float) -> None:
        logprobs, _ = self.logprobs(build_micro_batch((), self.device), 1.0, with_entropy=False)
        self.accumulate(logprobs.sum() * factor, last=True)

    def _named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Yield parameters by their exported names; a head tied to the embedding comes once, as the embedding."""
        for name, parameter in self._engine.module.named_parameters():
            yield name.removeprefix("causal_lm."), parameter

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (exported name, full tensor in the training dtype), valid until the next one (collective)."""
        import deepspeed

        for name, parameter in self._named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero_stage == 3):
                yield name, parameter.data

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (exported name, full gradient added up since the last step, mean over ranks), after a last share.

        Collective. A parameter that no row reached has a gradient of zero.
        """
        from deepspeed.utils import safe_get_full_grad

        for name, parameter in self._named_parameters():
            gradient = parameter.grad if self.zero_stage == 0 else safe_get_full_grad(parameter)
            yield name, torch.zeros_like(parameter.data) if gradient is None else gradient

    def named_masters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (exported name, full float32 tensor that the optimizer steps on) (collective)."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self._named_parameters():
            yield name, parameter.data if self.zero_stage == 0 else safe_get_full_fp32_param(parameter)

    def set_masters(self, tensors: dict[str, Tensor]) -> None:
        """Set the float32 tensors that the optimizer steps on, where training runs in another dtype (collective)."""
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self._named_parameters():
            safe_set_full_fp32_param(parameter, tensors[name])

    def adam_step(self) -> int:
        """Return the number of steps that AdamW's bias correction counts; 0 before the first."""
        return max((int(state["step"]) for state in self._optimizer.state.values()), default=0)

    def named_optimizer_state(self, key: str) -> Iterator[tuple[str, Tensor]]:
        """Yield (exported name, full float32 tensor) of one of OPTIMIZER_STATES (collective)."""
        from deepspeed.utils import safe_get_full_optimizer_state

        for name, parameter in self._named_parameters():
            if self.zero_stage == 0:
                yield name, self._optimizer.state[parameter][key]
            else:
                yield name, safe_get_full_optimizer_state(parameter, key)

    def set_optimizer_state(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Set one of OPTIMIZER_STATES after `create_optimizer_state` (collective)."""
        from deepspeed.utils import safe_set_full_optimizer_state

        for name, parameter in self._named_parameters():
            if self.zero_stage == 0:
                self._optimizer.state[parameter][key].copy_(tensors[name])
            else:
                safe_set_full_optimizer_state(parameter, tensors[name], key)

    def set_adam_step(self, step: int) -> None:
        """Set the step count of the bias correction."""
        for state in self._optimizer.state.values():
            state["step"].fill_(step)

    def close(self) -> None:
        """Free what DeepSpeed holds."""
        self._engine.destroy()


def _config(zero_stage: int, bf16: bool) -> dict[str, Any]:
    # Micro-batches and ranks are added up in float32: a bfloat16 sum loses what is 1/256 of it.
    sums = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"} if bf16 else {}
    return {
        **sums,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        "steps_per_print": 1_000_000_000,
        "gradient_clipping": 0.0,
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
        },
    }
