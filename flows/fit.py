"""Whether the engines of a plan fit the machine: what they need, estimated, against what is there, and later measured.

The estimate of a run is kept beside its plan (runs/<name>/estimate.json) and compared with the peaks in the manifests.
"""

import json
from pathlib import Path
from typing import Any

from cgrpo_core.memory import kv_bytes_per_token, sampler_memory, trainer_memory
from storage.artifacts import Store
from storage.durable import json_bytes
from storage.journal import write_recorded
from storage.plans import Plan
from storage.runs import run_directory
from tasks.machine import available_memory, gpu_memory
from tasks.model_shape import model_shape

Estimate = dict[str, Any]
FILE = "estimate.json"
PEAKS_READ = 20  # of each engine; a peak counts from the start of its process, so the newest ones hold the others
GIB = 2**30


def estimate_memory(home: Path, plan: Plan) -> Estimate:
    """Return what the plan's engines need in bytes, on which device, and whether that is there.

    fits is None where it cannot be told: the model is not at hand yet, or the machine does not say.
    """
    used = {stage.engine["name"]: stage.engine for stage in plan.stages if stage.engine is not None}
    found = {name: _engine(home, plan, engine) for name, engine in sorted(used.items())}
    engines = {name: estimate for name, estimate in found.items() if estimate is not None}
    on_gpu = any(estimate["device"] == "gpu" for estimate in engines.values())
    there = {"memory": available_memory(), "gpu": sum(gpu_memory()) if on_gpu else None}
    need = {device: _need(engines, device) for device in there}
    known = all("bytes" in estimate for estimate in engines.values())
    short = [device for device, size in there.items() if size is not None and need[device] > size]
    unknown = [device for device, size in there.items() if need[device] and not size]
    fits = False if short else None if unknown or not known else True
    return {"engines": engines, "need": need, "available": there, "fits": fits}


def _need(engines: dict[str, Estimate], device: str) -> int:
    return sum(one["bytes"] * one["replicas"] for one in engines.values() if one["device"] == device and "bytes" in one)


def _engine(home: Path, plan: Plan, declaration: dict[str, Any]) -> Estimate | None:
    """The estimate of one engine, or None for one that lives elsewhere."""
    if declaration["kind"] not in ("vllm", "deepspeed"):
        return None
    device = "gpu" if declaration["resources"].get("num_gpus") else "memory"
    estimate: Estimate = {"kind": declaration["kind"], "replicas": declaration["replicas"], "device": device}
    shape = model_shape(declaration["model"], home, Path(plan.config["base_dir"]))
    if shape is None:
        return {**estimate, "unknown": "the model is not at hand yet: cgrpo model gets it"}
    if declaration["kind"] == "vllm":
        parts = _sampler(shape, declaration)
    else:
        parts = _trainer(shape, declaration, plan.config["params"])
    return {**estimate, "parts": parts, "bytes": sum(parts.values())}


def _sampler(shape: Any, declaration: dict[str, Any]) -> dict[str, int]:
    from tasks.engines.sampler_options import read_declaration

    options = read_declaration(declaration).options
    kv_cache = options.kv_cache_gib
    if kv_cache is None:  # vLLM takes the share of the GPU that it is given; what it needs is one sequence
        kv_bytes = kv_bytes_per_token(shape, options.dtype) * options.max_model_len
    else:
        kv_bytes = int(kv_cache * GIB)
    return sampler_memory(
        shape,
        dtype=options.dtype,
        kv_cache_bytes=kv_bytes,
        max_num_seqs=options.max_num_seqs,
        on_cpu=options.on_cpu,
    )


def _trainer(shape: Any, declaration: dict[str, Any], params: dict[str, Any]) -> dict[str, int]:
    from tasks.engines.deepspeed_trainer import read_options

    options = read_options(declaration)
    rollout, optimizer = params["rollout"], params["optimizer"]
    row = rollout["max_prompt_tokens"] + rollout["max_response_tokens"]
    return trainer_memory(
        shape,
        dtype=options.dtype,
        zero_stage=options.zero_stage,
        world_size=declaration["replicas"],
        micro_batch_tokens=max(row, optimizer["tokens_per_micro_batch"]),
        chunk_tokens=options.chunk_tokens,
        gradient_checkpointing=options.gradient_checkpointing,
    )


def keep_estimate(home: Path, run: str, estimate: Estimate) -> None:
    """Write the estimate beside the plan of a run."""
    write_recorded(run_directory(home, run), FILE, json_bytes(estimate))


def kept_estimate(home: Path, run: str) -> Estimate | None:
    """Return the estimate of a run, or None if it has none."""
    path = run_directory(home, run) / FILE
    return dict(json.loads(path.read_bytes())) if path.is_file() else None


def measured_peaks(home: Path, plan: Plan) -> dict[str, int]:
    """Return the peak of each engine on its device, as its newest stages measured it since the engine started."""
    store, found = Store(home), dict[str, list[int]]()
    for stage in reversed(plan.stages):
        if stage.engine is None or len(found.setdefault(stage.engine["name"], [])) >= PEAKS_READ:
            continue
        manifest = store.find(stage.key)
        name = "peak_device_bytes" if stage.engine["resources"].get("num_gpus") else "peak_rss_bytes"
        if manifest is not None and name in manifest.metrics:
            found[stage.engine["name"]].append(int(manifest.metrics[name]))
    return {name: max(peaks) for name, peaks in found.items() if peaks}


def memory_figures(home: Path, run: str, plan: Plan) -> dict[str, dict[str, int]]:
    """Return for each engine of a run what was estimated before it and what was measured, as far as either is known."""
    estimate, measured = kept_estimate(home, run), measured_peaks(home, plan)
    engines = estimate["engines"] if estimate else {}
    figures: dict[str, dict[str, int]] = {name: {} for name in sorted({*engines, *measured})}
    for name, figure in figures.items():
        if "bytes" in engines.get(name, {}):
            figure["estimated_bytes"] = engines[name]["bytes"]
        if name in measured:
            figure["measured_bytes"] = measured[name]
    return {name: figure for name, figure in figures.items() if figure}
