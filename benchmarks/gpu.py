"""What needs a GPU to be measured: the head (log-probs and their gradients), and whole updates with their MFU.

    python benchmarks/gpu.py head [--device cpu]
    python benchmarks/gpu.py update [--models 0.5b 1.5b] [--compile] [--checkpointing]

Models have the shapes of Qwen2.5 and random weights; rows have random tokens. Nothing is downloaded. `update` runs the
trainer's own code, one rank in this process, so it needs neither Ray nor vLLM. MFU counts the products of weights with
tokens that a forward and a backward pass need, and causal attention; what is computed twice counts once.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgrpo_core.logprobs import taken_logprobs
from cgrpo_core.products import products_by

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, as the makers state them
SHAPES = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
}
VOCABULARY = 151_936
HEADS = [(8192, 896, 151_936), (8192, 1536, 151_936), (16384, 576, 49_152)]
REPEATS = 5


def say(**row: Any) -> None:
    """Print one measurement as a line of JSON."""
    print(json.dumps({name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in row.items()}), flush=True)


def seconds_and_peak(body: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return the median seconds of a call, and the GiB that it allocates at its peak above what was there."""
    cuda = device.type == "cuda"
    for _ in range(2):
        body()
    times, peak = [], 0.0
    for _ in range(REPEATS):
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        began = time.perf_counter()
        body()
        if cuda:
            torch.cuda.synchronize()
            peak = max(peak, (torch.cuda.max_memory_allocated() - before) / 2**30)
        times.append(time.perf_counter() - began)
    return sorted(times)[REPEATS // 2], peak


def plain(hidden: Tensor, head: Tensor, targets: Tensor, pull: Tensor) -> None:
    """The whole table of logits, by autograd."""
    logs = torch.log_softmax((hidden @ head.T).float(), dim=-1)
    (logs.gather(-1, targets[..., None]).squeeze(-1) * pull).sum().backward()


def chunked(
    *, promised: bool, entropy: bool, chunk: int, library: str = "torch"
) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    """Ours, with or without the promise that saves a pass."""

    def run(hidden: Tensor, head: Tensor, targets: Tensor, pull: Tensor) -> None:
        flat = pull.reshape(-1)
        promise = (lambda logprobs, part: flat[part]) if promised else None
        settings: dict[str, Any] = {"temperature": 1.0, "with_entropy": entropy, "chunk_tokens": chunk}
        settings["products"] = products_by(library)
        logprobs, _ = taken_logprobs(hidden, head, targets, **settings, pull=promise)
        (logprobs * pull).sum().backward()

    return run


def liger(hidden: Tensor, head: Tensor, targets: Tensor, pull: Tensor) -> None:
    """liger-kernel's fused linear cross-entropy, without reduction and with float32 sums: log-probs, no entropy."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="none", accum_dtype=torch.float32)
    nll = loss(head, hidden.flatten(0, 1), targets.flatten())
    (-nll * pull.flatten()).sum().backward()


def head_inputs(tokens: int, width: int, vocabulary: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return hidden [1, N, H], head [V, H], targets and pull [1, N], from a seed; bfloat16 on a GPU."""
    draw = torch.Generator(device=device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden = torch.randn(1, tokens, width, generator=draw, device=device, dtype=dtype).requires_grad_()
    head = (torch.randn(vocabulary, width, generator=draw, device=device, dtype=dtype) * 0.02).requires_grad_()
    targets = torch.randint(0, vocabulary, (1, tokens), generator=draw, device=device)
    return hidden, head, targets, torch.randn(1, tokens, generator=draw, device=device)


def error_to_float64(run: Callable[..., None], inputs: tuple[Tensor, ...], tokens: int = 256) -> float:
    """Return the relative error of the head's gradient on the first tokens, against float64 from the same inputs."""
    hidden, head, targets, pull = (tensor.detach() for tensor in inputs)
    few = (hidden[:, :tokens].clone(), targets[:, :tokens], pull[:, :tokens])
    found = head.clone().requires_grad_()
    run(few[0].requires_grad_(), found, few[1], few[2])
    exact = head.double().requires_grad_()
    logs = torch.log_softmax(few[0].detach().double() @ exact.T, dim=-1)
    (logs.gather(-1, few[1][..., None]).squeeze(-1) * few[2]).sum().backward()
    assert found.grad is not None
    assert exact.grad is not None
    return float((found.grad.double() - exact.grad).norm() / exact.grad.norm())


def measure_head(device: torch.device, chunks: list[int]) -> None:
    """Print seconds, peak memory above the gradients' own, and error of each way to compute the head."""
    for tokens, width, vocabulary in HEADS:
        ways: dict[str, Callable[..., None]] = {"plain": plain}
        for chunk in chunks:
            ways[f"chunked {chunk}"] = chunked(promised=False, entropy=False, chunk=chunk)
            ways[f"promised {chunk}"] = chunked(promised=True, entropy=False, chunk=chunk)
            ways[f"promised, entropy {chunk}"] = chunked(promised=True, entropy=True, chunk=chunk)
        if device.type == "cuda":
            ways["liger"] = liger
        for name, run in ways.items():
            inputs = head_inputs(tokens, width, vocabulary, device)

            def body(run: Callable[..., None] = run, inputs: tuple[Tensor, ...] = inputs) -> None:
                run(*inputs)
                inputs[0].grad = inputs[1].grad = None

            try:
                seconds, peak = seconds_and_peak(body, device)
                error = error_to_float64(run, inputs)
                say(head=name, tokens=tokens, width=width, V=vocabulary, ms=1e3 * seconds, peak_gib=peak, error=error)
            except (RuntimeError, ImportError, AttributeError, TypeError) as fault:
                say(head=name, tokens=tokens, width=width, V=vocabulary, failed=str(fault)[:200])


def build_model(shape: str, directory: Path) -> None:
    """Write a model of this shape with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        **SHAPES[shape], num_key_value_heads=2, vocab_size=VOCABULARY, tie_word_embeddings=True, dtype="bfloat16"
    )
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(directory)


def training_samples(rows: int, prompt: int, completion: int) -> tuple[Any, ...]:
    """Return rows in groups of eight, of random tokens, every one with an advantage."""
    from cgrpo_core.records import TrainingSample

    draw = random.Random(0)
    samples = []
    for row in range(rows):
        if row % 8 == 0:
            question = tuple(draw.randrange(VOCABULARY) for _ in range(prompt))
        tokens = tuple(draw.randrange(VOCABULARY) for _ in range(completion))
        samples.append(
            TrainingSample(
                sample_id=f"s{row}",
                group_id=f"g{row // 8}",
                origin="refinement" if row % 8 == 7 else "response",
                prompt_token_ids=question,
                token_ids=tokens,
                sampling_logprobs=(-11.9,) * completion,
                reward=0.0,
                advantage=0.875 if row % 8 == 7 else -0.125,
                weight=1.0,
            )
        )
    return tuple(samples)


def update_flops(shape: str, rows: int, prompt: int, completion: int) -> float:
    """Return the floating-point operations of a forward and a backward pass over all rows."""
    size = SHAPES[shape]
    width, inner, layers, heads = (size[name] for name in size)
    key_value = 2 * width // heads
    layer = width * (2 * width + 2 * key_value) + 3 * width * inner
    tokens, length = rows * (prompt + completion), prompt + completion
    attention = 2 * length * width * layers * tokens  # two products, half of the square
    products = 2 * layers * layer * tokens + 2 * VOCABULARY * width * rows * completion
    return 3.0 * (products + attention)


def measure_update(shape: str, arguments: argparse.Namespace) -> None:
    """Print tokens/s, MFU and peak memory of whole updates, and what the digest and the export of weights take."""
    from cgrpo_core.params import LossParams, OptimizerParams
    from tasks.engines.protocol import PolicyRef, UpdateRequest
    from tasks.engines.trainer_options import TrainerOptions
    from tasks.engines.trainer_rank import TrainerRank
    from tasks.engines.update_steps import Split, take_steps
    from tasks.models import model_weights_digest

    rows, prompt, completion = arguments.rows, 128, arguments.length - 128
    with tempfile.TemporaryDirectory() as directory:
        build_model(shape, Path(directory) / "model")
        base = str(Path(directory) / "model")
        options = TrainerOptions(
            zero_stage=2,
            dtype="bfloat16",
            gradient_checkpointing=arguments.checkpointing,
            compile=arguments.compile,
            chunk_tokens=arguments.chunk,
            on_cpu=False,
        )
        rank = TrainerRank(0, 1, base, options)
        if not torch.distributed.is_initialized():
            rank.join(rank.meeting_file())
        policy = PolicyRef(policy_version=0, weights_sha256=model_weights_digest(base))
        rank.load_weights(policy, base)
        request = UpdateRequest(
            samples=training_samples(rows, prompt, completion),
            loss=LossParams(),
            optimizer=OptimizerParams(mini_batch_prompts=rows, tokens_per_micro_batch=arguments.micro_batch),
            max_response_tokens=completion,
            sampling_temperature=1.0,
            logprob_gap_max=None,
        )
        flops, card = update_flops(shape, rows, prompt, completion), torch.cuda.get_device_name()
        peak_flops = next((value for name, value in PEAK_FLOPS.items() if name in card), float("nan"))
        assert rank._engine is not None
        split = Split(rank=0, world_size=1, packed_tokens=0)
        for turn in range(arguments.updates):
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            began = time.perf_counter()
            result = take_steps(rank._engine, request, split)
            torch.cuda.synchronize()
            step = time.perf_counter() - began
            began = time.perf_counter()
            rank._compute_digest()
            digest = time.perf_counter() - began
            say(
                update=shape,
                turn=turn,
                card=card,
                compile=arguments.compile,
                checkpointing=arguments.checkpointing,
                tokens_per_s=rows * arguments.length / step,
                mfu=flops / step / peak_flops,
                seconds=step,
                digest_seconds=digest,
                peak_gib=torch.cuda.max_memory_allocated() / 2**30,
                grad_norm=result.grad_norms[0],
            )
        began = time.perf_counter()
        rank.export_weights(str(Path(directory) / "export"), policy)
        say(update=shape, export_seconds=time.perf_counter() - began)
        rank._engine.close()
    del rank
    torch.cuda.empty_cache()


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["head", "update"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--chunks", type=int, nargs="+", default=[2048])
    parser.add_argument("--models", nargs="+", default=list(SHAPES))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row, 128 of them its prompt")
    parser.add_argument("--micro-batch", type=int, default=32768)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "head":
        measure_head(torch.device(arguments.device), arguments.chunks)
    else:
        for shape in arguments.models:
            measure_update(shape, arguments)


if __name__ == "__main__":
    main()
