"""How much memory an engine needs, estimated from the shape of its model and its options, in bytes by part.

The parts are those that can be written down: weights, gradients and optimizer state are exact; activations count what
a transformer block keeps for its backward pass; the runtime is what a process with torch takes before any weight.
"""

from dataclasses import dataclass

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SAMPLER_RUNTIME_BYTES, TRAINER_RUNTIME_BYTES = 768 * 2**20, 512 * 2**20  # torch with vLLM, with DeepSpeed
LOGIT_COPIES = 3  # of a chunk of logits in float32: themselves, their log-softmax, their gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a decoder. parameters: of the stored weights, a tied head counted once."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    vocabulary: int


def sampler_memory(
    shape: ModelShape, *, dtype: str, kv_cache_bytes: int, max_num_seqs: int, on_cpu: bool
) -> dict[str, int]:
    """Return what one replica of a sampler needs. Loading new weights holds them twice for a moment."""
    weights = shape.parameters * BYTES[dtype]
    return {
        "weights": weights,
        "weights_loading": weights if on_cpu else 0,
        "kv_cache": kv_cache_bytes,
        "logits": max_num_seqs * shape.vocabulary * 4 * LOGIT_COPIES,
        "runtime": SAMPLER_RUNTIME_BYTES,
    }


def kv_bytes_per_token(shape: ModelShape, dtype: str) -> int:
    """Return the size of the keys and values of one token over all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * BYTES[dtype]


def trainer_memory(
    shape: ModelShape,
    *,
    dtype: str,
    zero_stage: int,
    world_size: int,
    micro_batch_tokens: int,
    chunk_tokens: int,
    gradient_checkpointing: bool,
    with_reference: bool = False,
) -> dict[str, int]:
    """Return what one rank of a trainer needs: ZeRO 1 splits optimizer state over ranks, 2 gradients, 3 weights too.

    From stage 1 on the float32 weights that the optimizer steps are a copy of their own. A reference policy (of a KL
    term) is whole on every rank.
    """
    size = BYTES[dtype]
    split = [world_size if zero_stage >= stage else 1 for stage in (1, 2, 3)]
    masters = 4 * shape.parameters // split[0] if zero_stage else 0
    return {
        "weights": size * shape.parameters // split[2],
        "gradients": size * shape.parameters // split[1],
        "optimizer": 8 * shape.parameters // split[0] + masters,
        "activations": _activations(shape, size, micro_batch_tokens, gradient_checkpointing),
        "logits": min(chunk_tokens, micro_batch_tokens) * shape.vocabulary * 4 * LOGIT_COPIES,
        "runtime": TRAINER_RUNTIME_BYTES,
        **({"reference": size * shape.parameters} if with_reference else {}),
    }


def _activations(shape: ModelShape, size: int, tokens: int, checkpointing: bool) -> int:
    """A block keeps its two norms' inputs and outputs, queries, attention output and residuals (8 hidden), keys and
    values, and four intermediates of the gated MLP; with checkpointing each block keeps its input alone."""
    block = (8 * shape.hidden + 2 * shape.kv_heads * shape.head_dim + 4 * shape.intermediate) * size
    kept = shape.layers * shape.hidden * size + block if checkpointing else shape.layers * block
    return tokens * kept
