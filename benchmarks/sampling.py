"""Tokens a second of the sampler engine against vLLM's own `LLM.generate`: same prompts, settings, options and machine.

    python benchmarks/sampling.py MODEL_DIRECTORY [--option num_threads=2] [--option enforce_eager=false]

Both engines are alive in one Ray and take turns in ABBA order, so that a drift of the machine hits both alike. vLLM is
timed inside its own process, the sampler from the caller's side, with Ray and the split into chunks. The prompts of a
turn are new, as in a rollout: only the group of a prompt shares its prefix.
"""

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cgrpo_core.ids import derive_seed
from cgrpo_core.weights import weights_digest
from tasks.engines.protocol import PolicyRef, SampleRequest, SamplingSettings
from tasks.engines.sampler_options import SamplerOptions, read_declaration
from tasks.engines.vllm_sampler import VllmSampler, start_sampler, stop_sampler
from tasks.engines.vllm_weights import WeightStream

Turn = list[SampleRequest]


class RawVllm:
    """vLLM as its documentation uses it, in an actor with the environment and options of the sampler."""

    def __init__(self, options: SamplerOptions, model_dir: str) -> None:
        from vllm import LLM

        self._llm: Any = LLM(**options.engine_arguments(model_dir))

    def generate(self, turn: Turn, settings: SamplingSettings) -> tuple[int, float]:
        """Return completion tokens and seconds."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_tokens,
                seed=request.seed,
                logprobs=0,
            )
            for request in turn
        ]
        prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in turn]
        began = time.perf_counter()
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - began
        return sum(len(output.outputs[0].token_ids) for output in outputs), seconds


def turns_of(model_dir: Path, count: int, prompts: int, group: int) -> list[Turn]:
    """Return `count` turns of `prompts` x `group` requests; no prompt occurs in two turns."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    turns = []
    for turn in range(count):
        requests = []
        for place in range(prompts):
            question = f"What is {turn} + {place} + 10? Answer with just the number."
            chat = [{"role": "user", "content": question}]
            token_ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
            requests += [
                SampleRequest(
                    request_id=f"{turn}.{place}.{index}",
                    prompt_token_ids=tuple(token_ids),
                    seed=derive_seed(turn, place, index),
                )
                for index in range(group)
            ]
        turns.append(requests)
    return turns


def sample_turn(
    sampler: VllmSampler, turn: Turn, settings: SamplingSettings, policy: PolicyRef, chunks: int
) -> tuple[int, float]:
    """Return completion tokens and seconds of a turn that `chunks` callers ask for at once."""
    shares = [turn[place::chunks] for place in range(chunks)]
    began = time.perf_counter()
    with ThreadPoolExecutor(chunks) as callers:
        answers = list(callers.map(lambda share: sampler.sample(share, settings, policy), shares))
    seconds = time.perf_counter() - began
    return sum(len(completion.token_ids) for answer in answers for completion in answer), seconds


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all turns and return the figures."""
    import ray

    declaration = {"name": "benchmark", "kind": "vllm", "options": dict(arguments.option)}
    plan = read_declaration(declaration)
    model_dir = arguments.model.resolve()
    settings = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=arguments.max_tokens)
    turns = turns_of(model_dir, arguments.repeats + 1, arguments.prompts, arguments.group)
    environment = {"env_vars": plan.options.environment()}
    raw = (
        ray.remote(RawVllm)
        .options(num_cpus=0, num_gpus=plan.num_gpus, runtime_env=environment)
        .remote(plan.options, str(model_dir))
    )
    ray.get(raw.generate.remote(turns[0], settings))
    began = time.perf_counter()
    sampler = start_sampler("benchmark", declaration, str(model_dir), detached=False)
    start_seconds = time.perf_counter() - began
    try:
        policy = sampler.load(PolicyRef(policy_version=0, weights_sha256=base_digest(model_dir)), str(model_dir))
        sample_turn(sampler, turns[0], settings, policy, 1)
        pairs = []
        for place, turn in enumerate(turns[1:]):
            order = ("raw", "sampler") if place % 2 == 0 else ("sampler", "raw")
            speeds = {}
            for who in order:
                if who == "raw":
                    tokens, seconds = ray.get(raw.generate.remote(turn, settings))
                else:
                    tokens, seconds = sample_turn(sampler, turn, settings, policy, arguments.chunks)
                speeds[who] = tokens / seconds
            pairs.append(speeds)
            print(f"turn {place + 1}: raw {speeds['raw']:.0f}, sampler {speeds['sampler']:.0f} tokens/s", flush=True)
        stats, peak = sampler.stats(), sampler.peak_rss_bytes()
    finally:
        stop_sampler("benchmark", declaration)
    return {
        "raw_tokens_per_second": round(statistics.median(pair["raw"] for pair in pairs), 1),
        "sampler_tokens_per_second": round(statistics.median(pair["sampler"] for pair in pairs), 1),
        "ratio": round(statistics.median(pair["sampler"] / pair["raw"] for pair in pairs), 3),
        "start_seconds": round(start_seconds, 1),
        "load_seconds": round(stats.load_seconds, 2),
        "peak_rss_gib": [round(size / 2**30, 2) for size in peak],
        "weights_verified": stats.weights_verified,
        "requests_of_a_turn": arguments.prompts * arguments.group,
        "repeats": arguments.repeats,
        "chunks": arguments.chunks,
        "options": dict(arguments.option),
    }


def base_digest(model_dir: Path) -> str:
    """Return the digest of the weights in a model directory."""
    return weights_digest(WeightStream(str(model_dir)))


def option(text: str) -> tuple[str, Any]:
    """Return (name, value) of `name=value`; values are JSON, or else plain text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main() -> None:
    """Parse, measure, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory in Hugging Face format")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=7)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--chunks", type=int, default=1, help="callers that share each turn at once")
    parser.add_argument("--option", type=option, action="append", default=[], help="an option of the sampler")
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        namespace="cgrpo",
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        print(json.dumps(measure(arguments)))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
