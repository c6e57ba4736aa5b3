"""Whether the engines of a plan fit the machine: what they need, estimated, against what is there, and later measured.

The estimate of a run is kept beside its plan (runs/<name>/estimate.json) and compared with the peaks in the manifests.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cgrpo_core.memory import kv_bytes_per_token, sampler_memory, trainer_memory
from storage.artifacts import Store
from storage.durable import json_bytes
from storage.journal import write_recorded
from storage.plans import AnyPlace, Plan
from storage.runs import run_directory
from tasks.machine import available_memory, gpu_memory
from tasks.model_shape import model_shape

Estimate = dict[str, Any]
FILE = "estimate.json"
PEAKS_READ = 20  # of each engine; a peak counts from the start of its process, so the newest ones hold the others
LOOKED_AT = 100  # published stages of each engine: one that does not measure is not looked for in a whole long run
GIB = 2**30


def estimate_memory(home: Path, plan: Plan) -> Estimate:
    """Return what the plan's engines need in bytes, on which device, and whether that is there.

    short: what is not there, in words; None where it cannot be told, as the model is not at hand yet.
    """
    used = {stage.engine["name"]: stage.engine for stage in plan.stages if stage.engine is not None}
    found = {name: _engine(home, plan, engine) for name, engine in sorted(used.items())}
    engines = {name: estimate for name, estimate in found.items() if estimate is not None}
    gpus = gpu_memory() if any(one["gpus"] for one in engines.values()) else []
    need = {
        "memory": sum(one["bytes"] * one["replicas"] for one in engines.values() if not one["gpus"] and "bytes" in one),
        "gpus": sum(one["gpus"] * one["replicas"] for one in engines.values()),
    }
    available = {"memory": available_memory(), "gpus": gpus}
    return {"engines": engines, "need": need, "available": available, "short": shortages(engines, available)}


def shortages(engines: Mapping[str, Estimate], available: Mapping[str, Any]) -> list[str] | None:
    """Return in words what is not there, an empty list if all fits; None if that cannot be told.

    Engines that ask for less than a GPU share one. A vLLM engine takes its share of a GPU whatever it needs of it.
    """
    found = []
    known = [one for one in engines.values() if "bytes" in one]
    memory, gpus = available["memory"], available["gpus"]
    need = sum(one["bytes"] * one["replicas"] for one in known if not one["gpus"])
    if memory is not None and need > memory:
        found.append(f"memory: {need / GIB:.1f} GiB of {memory / GIB:.1f} GiB")
    wanted = sum(one["gpus"] * one["replicas"] for one in engines.values())
    if wanted > len(gpus):
        found.append(f"GPUs: {wanted:g} of {len(gpus)}")
    elif gpus:
        size = min(gpus)
        sharing = [one for one in known if 0 < one["gpus"] < 1]
        alone = [one for one in known if one["gpus"] >= 1]
        takes = [sum(_takes(one, size) * one["replicas"] for one in sharing), *(_takes(one, size) for one in alone)]
        found += [f"memory of a GPU: {take / GIB:.1f} GiB of {size / GIB:.1f} GiB" for take in takes if take > size]
    unknown = len(known) < len(engines) or memory is None
    return None if unknown and not found else found


def _takes(engine: Estimate, size: int) -> float:
    """Return the bytes of a GPU of this size that a replica takes."""
    return max(float(engine["bytes"]), size * float(engine.get("share", 0)))


def _engine(home: Path, plan: Plan, declaration: dict[str, Any]) -> Estimate | None:
    """The estimate of one engine, or None for one that lives elsewhere."""
    if declaration["kind"] not in ("vllm", "deepspeed"):
        return None
    gpus = float(declaration["resources"].get("num_gpus", 0))
    estimate: Estimate = {"kind": declaration["kind"], "replicas": declaration["replicas"], "gpus": gpus}
    shape = model_shape(declaration["model"], home, Path(plan.config["base_dir"]))
    if shape is None:
        return {**estimate, "unknown": "the model is not at hand yet: cgrpo model gets it"}
    if declaration["kind"] == "vllm":
        parts = _sampler(shape, declaration)
        estimate["share"] = declaration["options"].get("gpu_memory_utilization", 0.9) if gpus else 0
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
        with_reference=params["loss"]["kl_coef"] > 0,
    )


def keep_estimate(home: Path, run: str, estimate: Estimate) -> None:
    """Write the estimate beside the plan of a run."""
    write_recorded(run_directory(home, run), FILE, json_bytes(estimate))


def kept_estimate(home: Path, run: str) -> Estimate | None:
    """Return the estimate of a run, or None if it has none."""
    path = run_directory(home, run) / FILE
    return dict(json.loads(path.read_bytes())) if path.is_file() else None


def measured_peaks(home: Path, places: Sequence[AnyPlace]) -> dict[str, int]:
    """Return the peak of each engine on its device, as its newest stages measured it since the engine started."""
    store, found, looked = Store(home), dict[str, list[int]](), Counter[str]()
    for place in reversed(places):
        if place.engine is None:
            continue
        name, peaks = place.engine["name"], found.setdefault(place.engine["name"], [])
        if len(peaks) >= PEAKS_READ or looked[name] >= LOOKED_AT or not store.has(place.key):
            continue
        manifest = store.find(place.key)
        looked[name] += 1
        peak = "peak_device_bytes" if place.engine["resources"].get("num_gpus") else "peak_rss_bytes"
        if manifest is not None and peak in manifest.metrics:
            peaks.append(int(manifest.metrics[peak]))
    return {name: max(peaks) for name, peaks in found.items() if peaks}


def memory_figures(home: Path, run: str, places: Sequence[AnyPlace]) -> dict[str, dict[str, int]]:
    """Return for each engine of a run what was estimated before it and what was measured, as far as either is known."""
    estimate, measured = kept_estimate(home, run), measured_peaks(home, places)
    engines = estimate["engines"] if estimate else {}
    figures: dict[str, dict[str, int]] = {name: {} for name in sorted({*engines, *measured})}
    for name, figure in figures.items():
        if "bytes" in engines.get(name, {}):
            figure["estimated_bytes"] = engines[name]["bytes"]
        if name in measured:
            figure["measured_bytes"] = measured[name]
    return {name: figure for name, figure in figures.items() if figure}
