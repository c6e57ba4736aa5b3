"""The rise of a process's memory over one loss and its gradients, TRL's or ours, for against_trl.py.

Without decoder layers what rises is the head's; with one, its activations come on top, the same for both.
"""

import sys
import time
from pathlib import Path
from typing import Any

from trl_arms import THREADS, reply

CHUNK = 256  # tokens


def run_memory(arm: str, rows: int, length: int, vocabulary: int, layers: int) -> None:
    """Print the rise of this process's memory over one loss and its gradients."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(THREADS)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    ids = torch.randint(2, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    advantages = torch.linspace(-1, 1, rows)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss = memory_loss_trl(model, ids, advantages) if arm == "trl" else memory_loss_own(model, ids, advantages)
    before = reset_peak()
    began, cpu = time.perf_counter(), time.process_time()
    loss().backward()
    reply(
        peak_gib=(peak() - before) / 2**20,
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu,
        table_gib=rows * length * vocabulary * 4 / 2**30,
    )


def reset_peak() -> int:
    """Forget the peak of this process's resident set; return the set in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> int:
    """Return the peak of the resident set since then, in KiB."""
    return status("VmHWM")


def status(name: str) -> int:
    """Return a figure of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def memory_loss_trl(model: Any, ids: Any, advantages: Any) -> Any:
    """Return a function that computes TRL's loss over rows of all but one token."""
    import types

    import torch
    from accelerate import Accelerator
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    trainer = GRPOTrainer.__new__(GRPOTrainer)
    trainer.accelerator = Accelerator(cpu=True)
    trainer.args = types.SimpleNamespace(delta=None, use_bias_correction_kl=False)
    settings = GRPOConfig.__dataclass_fields__
    values = {name: settings[name].default for name in ("top_entropy_quantile", "importance_sampling_level")}
    values |= {"off_policy_mask_threshold": None, "beta": 0.0, "loss_type": "dr_grpo", "use_vllm": False}
    values |= {"epsilon_low": 0.2, "epsilon_high": 0.2, "max_completion_length": ids.shape[1] - 1, "temperature": 1.0}
    for name, value in values.items():
        setattr(trainer, name, value)
    model.train()
    mask = torch.ones_like(ids)

    def loss() -> Any:
        logprobs, _, _ = trainer._get_per_token_logps_and_entropies(
            model, ids, mask, ids.shape[1] - 1, compute_entropy=True
        )
        ratio = (logprobs - logprobs.detach()).exp()
        clipped = ratio.clamp(0.8, 1.2)
        terms = -torch.min(ratio * advantages[:, None], clipped * advantages[:, None])
        return terms.sum() / (ids.shape[0] * (ids.shape[1] - 1))

    return loss


def memory_loss_own(model: Any, ids: Any, advantages: Any) -> Any:
    """Return a function that computes our loss over the same rows."""
    import torch

    from cgrpo_core.aggregation import denominators, step_size
    from cgrpo_core.loss_pull import loss_pull
    from cgrpo_core.loss_rows import LossRows
    from cgrpo_core.losses import policy_loss
    from cgrpo_core.params import LossParams
    from cgrpo_core.products import products_by
    from cgrpo_core.records import TrainingSample
    from tasks.engines.micro_batch import build_micro_batch
    from tasks.engines.policy_module import PolicyModule

    length = ids.shape[1] - 1
    rows = [
        (
            TrainingSample(
                sample_id=str(row),
                group_id=str(row),
                origin="response",
                prompt_token_ids=(int(ids[row, 0]),),
                token_ids=tuple(ids[row, 1:].tolist()),
                sampling_logprobs=(0.0,) * length,
                reward=0.0,
                advantage=float(advantages[row]),
                weight=1.0,
            ),
        )
        for row in range(ids.shape[0])
    ]
    batch = build_micro_batch(rows, torch.device("cpu"))
    params = LossParams(kind="grpo")
    weights = [1.0] * ids.shape[0]
    size = step_size([length] * ids.shape[0], weights, prompts=ids.shape[0], max_response_tokens=length)
    divide_by = denominators(params, size)
    module = PolicyModule(model.train(), CHUNK, products_by("onednn"))
    module.accumulate_head = True  # as under ZeRO stage 0
    shared = {name: getattr(batch, name) for name in ("advantages", "weights", "off_policy", "mask")}
    pull = loss_pull(
        **shared,
        old_logprobs=None,
        sampling_logprobs=batch.sampling_logprobs,
        ref_logprobs=None,
        context_logprobs=None,
        params=params,
        divide_by=divide_by,
        factor=1.0,
    )

    def loss() -> Any:
        logprobs, entropy, *_ = module(*batch.inputs(), 1.0, True, pull)
        rows = LossRows(logprobs=logprobs, old_logprobs=logprobs.detach(), entropy=entropy, **shared)
        return policy_loss(rows, params, divide_by).loss

    return loss


if __name__ == "__main__":
    run_memory(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
