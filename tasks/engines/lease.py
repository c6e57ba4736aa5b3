"""Get or create the engine that a stage names, and have it hold the policy that the stage names.

An engine is a cache: leasing finds the named Ray actors, replaces those that died or broke, and loads the policy if
another is held. Engines are always detached actors. One that is not would belong to the Prefect task that made it, and
end with that task's worker process. On a local Ray they end when that Ray ends; on a cluster that was joined they stay
for the next run, until `stop_engines`. Retrying is Prefect's: a stage that gets EngineLost or EngineBroken is run
again, and leases again.
"""

import fcntl
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.ids import digest
from cgrpo_core.records import Policy
from storage.policies import complete, damaged_files, drop
from tasks.engines.actors import INFO, NAMESPACE, find_actor, stop_actors
from tasks.engines.engine_loop import SamplerStats
from tasks.engines.faults import EngineBroken, EngineLost, WeightsMissing
from tasks.engines.protocol import PolicyMismatch, PolicyRef, Sampler, Trainer
from tasks.engines.sampler_options import identity_options
from tasks.engines.vllm_sampler import VllmSampler, add_stats, as_progress, start_sampler, stop_sampler

ATTEMPTS = 2  # the one that finds a dead engine, and the one that starts a new engine
MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_REPLICA = re.compile(r".+-[0-9a-f]{12}-\d+")
PROGRESS_TIMEOUT_S = 2.0


def lease_sampler(
    home: Path,
    declaration: Mapping[str, Any],
    base_model_dir: Path,
    policy: Policy,
    rebuild: Callable[[Policy], str] | None = None,
    trainer_of: Callable[[Policy], Trainer | None] | None = None,
) -> VllmSampler:
    """Return a sampler that serves exactly this policy.

    declaration: kind, name, replicas, resources, options. rebuild: returns a directory with the policy's weights; asked
    when the store has them no more. trainer_of: the trainer that holds the policy, if one does: it sends the weights
    where the declaration's weight_transfer says so; load_times().by tells which way they came.

    Raises UserError or EngineNotStarted for a declaration that cannot be, WeightsMissing, PolicyMismatch when the
    weights are not the policy's, EngineLost or EngineBroken after ATTEMPTS.
    """
    _check_kind(declaration, "vllm")
    name = engine_name(home, declaration, base_model_dir)
    wanted = PolicyRef(policy_version=policy.policy_version, weights_sha256=policy.weights_sha256)
    with _one_at_a_time(home, name):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                sampler = start_sampler(name, declaration, str(base_model_dir))
                if sampler.held() != wanted:
                    trainer = trainer_of(policy) if trainer_of and sampler.weight_transfer != "files" else None
                    if trainer is not None:
                        sampler.receive(wanted, partial(_send, trainer, wanted))
                    else:
                        load_stored(home, sampler, wanted, policy, rebuild)
                return sampler
            except (EngineLost, EngineBroken):
                stop_sampler(name, declaration)
                if attempt == ATTEMPTS:
                    raise
    raise AssertionError("the loop returns or raises")


def lease_trainer(home: Path, declaration: Mapping[str, Any], base_model_dir: Path) -> Trainer:
    """Return the running trainer, or a new one that holds nothing yet; the caller brings it to its policy.

    Raises UserError for a declaration that cannot be.
    """
    from tasks.engines.deepspeed_trainer import find_trainer, start_trainer

    _check_kind(declaration, "deepspeed")
    name = engine_name(home, declaration, base_model_dir)
    with _one_at_a_time(home, name):
        return find_trainer(name, declaration) or start_trainer(name, declaration, str(base_model_dir), True)


def running_trainer(home: Path, declaration: Mapping[str, Any], base_model_dir: Path) -> Trainer | None:
    """Return the trainer of this declaration if it runs; none is started."""
    from tasks.engines.deepspeed_trainer import find_trainer

    return find_trainer(engine_name(home, declaration, base_model_dir), declaration)


def engine_name(home: Path, declaration: Mapping[str, Any], base_model_dir: Path) -> str:
    """Return the name of an engine: the declared one, and 12 characters that differ where the engine must be another.

    They are of the home, the files of the base model that shape an engine (its weights are loaded by policy), and the
    options that change results. A sampler with more replicas is the same engine; a trainer's sums depend on the number.
    """
    if declaration["kind"] == "vllm":
        options: dict[str, Any] = identity_options(declaration)
    else:
        given = dict(declaration.get("options") or {})
        for placement in ("num_threads", "deadline_s"):
            given.pop(placement, None)
        options = {**given, "replicas": declaration.get("replicas", 1)}
    ingredients = [str(Path(home).resolve()), declaration["kind"], options, _model_identity(Path(base_model_dir))]
    return f"{declaration['name']}-{digest(ingredients)[:12]}"


def list_engines() -> list[str]:
    """Return the names of the actors of all engines on the Ray that this process has joined."""
    import ray

    return sorted(
        entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE
    )


def stop_engines(names: Sequence[str]) -> None:
    """End actors by the names that `list_engines` gives, and wait until they are gone."""
    stop_actors(names)


def sampling_progress() -> dict[str, float] | None:
    """Return the counters of all samplers together, or None while there is none to answer; for a display.

    requests_total, requests_done, tokens, seconds; those of VllmSampler.progress.
    """
    import ray

    if not ray.is_initialized():
        return None
    try:
        actors = [find_actor(name) for name in list_engines() if _REPLICA.fullmatch(name)]
    except ray.exceptions.RayError:
        return None  # the cluster is gone; whoever works on it says so
    calls = [actor.stats.options(concurrency_group=INFO).remote() for actor in actors if actor is not None]
    answered: list[SamplerStats] = []
    for call in calls:
        try:
            answered.append(ray.get(call, timeout=PROGRESS_TIMEOUT_S))
        except ray.exceptions.RayError:
            continue  # gone or starting: whoever samples from it hears of that; a display leaves it out
    return as_progress(add_stats(answered)) if answered else None


@contextmanager
def _one_at_a_time(home: Path, name: str) -> Iterator[None]:
    """Let one process at a time start an engine or load it; the kernel releases the lock of a process that died."""
    directory = Path(home) / "engines"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load_stored(
    home: Path, sampler: Sampler, wanted: PolicyRef, policy: Policy, rebuild: Callable[[Policy], str] | None
) -> None:
    """Load the stored weights; damaged ones are dropped, being a cache, and made again."""
    try:
        sampler.load(wanted, _weights_directory(home, policy, rebuild))
    except (PolicyMismatch, WeightsMissing):
        if policy.weights is None or rebuild is None or not damaged_files(home, policy.weights):
            raise
        drop(home, policy.weights)
        sampler.load(wanted, rebuild(policy))


def _send(trainer: Trainer, policy: PolicyRef, actors: list[str], backend: str) -> None:
    trainer.send_weights(actors, backend, policy)


def _weights_directory(home: Path, policy: Policy, rebuild: Callable[[Policy], str] | None) -> str:
    if policy.weights is not None and complete(Path(home), policy.weights):
        return str(Path(home) / policy.weights)
    if rebuild is None:
        raise WeightsMissing(
            f"the weights of policy {policy.policy_version} are not in the store", "run `cgrpo resume`: it makes them"
        )
    return rebuild(policy)


def _model_identity(directory: Path) -> dict[str, str]:
    files = sorted({path for pattern in MODEL_FILES for path in directory.glob(pattern)})
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} is no model: it has no config.json", "give a directory in Hugging Face format")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _check_kind(declaration: Mapping[str, Any], expected: str) -> None:
    if declaration.get("kind") != expected:
        raise UserError(
            f"engines.{declaration.get('name')} is of kind {declaration.get('kind')!r} where {expected!r} is needed",
            "bind the stage to another engine in pipelines.yaml",
        )
