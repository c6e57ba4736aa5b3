"""A policy in an engine when a stage needs it: leased if it is there, rebuilt from what is stored if it is not.

Any engine may be killed at any time. A trainer gets the nearest checkpoint back and replays the stored training samples
since then; each replayed update must give the digest that was published, or the run stops.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prefect.logging import get_logger

from cgrpo_core.errors import UserError
from cgrpo_core.params import LimitParams, LossParams, OptimizerParams, RolloutParams, build_block
from cgrpo_core.records import Policy, TrainingSample
from storage.artifacts import Manifest, Store
from storage.policies import complete, damaged_files, publish_directory
from tasks.engines.lease import lease_sampler, lease_trainer, running_trainer
from tasks.engines.protocol import (
    Completion,
    PolicyMismatch,
    PolicyRef,
    Sampler,
    SampleRequest,
    SamplingSettings,
    Trainer,
    UpdateRequest,
)
from tasks.fixed_policy import fixed_policy
from tasks.models import resolve_model
from tasks.stage import StageContext

LOAD_PARTS = ("digest", "weights", "reset", "check")
NOTHING_SAMPLED = {"prompt_tokens": 0, "cached_prompt_tokens": 0, "completion_tokens": 0, "sampling_seconds": 0.0}


class ReplayDiverged(UserError):
    """Stored samples, trained on again, gave other weights than were published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Completions in the order of their requests, what sampling them took, and which weights the sampler served."""

    completions: list[Completion]
    metrics: dict[str, float]
    evidence: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """A published policy, the key of the stage that wrote it, and that stage's manifest."""

    key: str
    policy: Policy
    manifest: Manifest


def policy_ref(policy: Policy) -> PolicyRef:
    """Return what an engine is asked for."""
    return PolicyRef(policy_version=policy.policy_version, weights_sha256=policy.weights_sha256)


def engine_of(context: StageContext) -> dict[str, Any]:
    """Return the declaration of the stage's engine. Raises UserError if none is bound."""
    if context.plan.engine is None:
        raise UserError(f"stage {context.plan.stage} has no engine", "name one under `engine:` in pipelines.yaml")
    return context.plan.engine


def model_directory(context: StageContext) -> Path:
    """Return the directory of the base model of the stage's engine."""
    return resolve_model(engine_of(context)["model"], context.home, Path(context.base_dir))


def model_of_engine(context: StageContext) -> str:
    """Return what records call the model of the stage's engine: `policy`, or the engine's name if that is fixed."""
    engine = engine_of(context)
    return str(engine["name"]) if _is_fixed(engine) else "policy"


def served_policy(context: StageContext, policy: Policy) -> Policy:
    """Return what the stage's engine is to serve: the policy that was carried here, or version 0 of a fixed model."""
    if not _is_fixed(engine_of(context)):
        return policy
    return fixed_policy(context.home, engine_of(context)["model"], model_directory(context))


def _is_fixed(engine: dict[str, Any]) -> bool:
    return engine.get("policy") == "fixed"


def sample_with(
    context: StageContext, policy: Policy, requests: Sequence[SampleRequest], settings: SamplingSettings
) -> Sampled:
    """Sample the requests from exactly this policy, or from the fixed model of the engine, at its version 0.

    Nothing is asked of the engine when there are no requests.
    """
    if not requests:
        return Sampled(completions=[], metrics=dict(NOTHING_SAMPLED))
    policy = served_policy(context, policy)
    began = time.monotonic()
    lease = (
        partial(lease_sampler, trainer_of=partial(trainer_that_holds, context)) if _is_sent(context) else lease_sampler
    )
    sampler = lease(context.home, engine_of(context), model_directory(context), policy, weights_rebuilder(context))
    leased = time.monotonic()
    completions = sampler.sample(requests, settings, policy_ref(policy))
    metrics = {
        "prompt_tokens": sum(len(request.prompt_token_ids) for request in requests),
        "cached_prompt_tokens": sum(completion.cached_prompt_tokens for completion in completions),
        "completion_tokens": sum(len(completion.token_ids) for completion in completions),
        "lease_seconds": leased - began,
        "sampling_seconds": time.monotonic() - leased,
        **_load_metrics(sampler),
        **sampler.peak_memory(),
    }
    times = sampler.load_times()
    way = {} if times is None else {"weights_came_by": times.by}
    return Sampled(completions=completions, metrics=metrics, evidence=_served(sampler, policy) | way)


def _load_metrics(sampler: Sampler) -> dict[str, float]:
    """Return what loading the policy's weights took, for the stage that had them loaded; nothing for the others."""
    times = sampler.load_times()
    if times is None:
        return {}
    return {"load_seconds": times.total} | {f"load_{part}_seconds": getattr(times, part) for part in LOAD_PARTS}


def _served(sampler: Sampler, policy: Policy) -> dict[str, str]:
    """Return what the sampler says it served, asked after it sampled. Raises PolicyMismatch if it is another policy."""
    held = sampler.held()
    if held is None or held != policy_ref(policy):
        raise PolicyMismatch(f"the sampler holds {held} after it sampled, not {policy_ref(policy)}")
    return {"served_policy_version": str(held.policy_version), "served_weights_sha256": held.weights_sha256}


def _is_sent(context: StageContext) -> bool:
    """Tell whether the declaration would have a trainer send weights to the stage's sampler."""
    engine = engine_of(context)
    return not _is_fixed(engine) and (engine.get("options") or {}).get("weight_transfer", "files") != "files"


def trainer_that_holds(context: StageContext, policy: Policy) -> Trainer | None:
    """Return the running trainer that holds this policy, or None: its weights then come from the store."""
    if policy.parent is None:
        return None
    declaration = read_policy(context.store, _key_of(context, policy)).manifest.engine
    if declaration is None:
        return None
    base = resolve_model(declaration["model"], context.home, Path(context.base_dir))
    trainer = running_trainer(context.home, declaration, base)
    return trainer if trainer is not None and trainer.held() == policy_ref(policy) else None


def trainer_with(context: StageContext, policy_key: str) -> Trainer:
    """Return the stage's trainer, holding the policy that the stage `policy_key` published, optimizer and all."""
    trainer = lease_trainer(context.home, engine_of(context), model_directory(context))
    bring_to(context.home, trainer, policy_key, model_directory(context))
    return trainer


def weights_rebuilder(context: StageContext) -> Callable[[Policy], str]:
    """Return what finds the weights of a policy when a sampler must load them: stored ones, or by replay."""

    def rebuild(policy: Policy) -> str:
        if policy.parent is None:
            return str(model_directory(context))
        key = _key_of(context, policy)
        ancestor = read_policy(context.store, key)
        declaration = ancestor.manifest.engine
        if declaration is None:
            raise UserError(f"the weights of policy {policy.policy_version} are gone", "run `cgrpo resume`")
        base = resolve_model(declaration["model"], context.home, Path(context.base_dir))
        trainer = lease_trainer(context.home, declaration, base)
        bring_to(context.home, trainer, key, base)
        relative = publish_weights(context.home, key, trainer, policy_ref(policy))
        return str(context.home / relative)

    return rebuild


def publish_weights(home: Path, key: str, trainer: Trainer, policy: PolicyRef) -> str:
    """Have the trainer write its weights under `key`; return the directory relative to home."""
    return publish_directory(
        home, "weights", key, lambda path: trainer.export_weights(str(path), policy), policy.weights_sha256
    )


def read_policy(store: Store, key: str) -> Ancestor:
    """Return the policy that a stage published. Raises UserError if it is not in the store."""
    manifest = store.find(key)
    if manifest is None:
        raise UserError(
            f"the policy of stage {key[:12]} is not in the store", "run `cgrpo resume`: it makes what is missing"
        )
    output = next(name for name, entry in manifest.outputs.items() if entry["record"] == "Policy")
    return Ancestor(key=key, policy=store.read(key, output, Policy)[0], manifest=manifest)


def bring_to(home: Path, trainer: Trainer, key: str, base_model: Path) -> None:
    """Give the trainer the policy of stage `key`: what it holds, else the nearest checkpoint, then a replay."""
    held, store = trainer.held(), Store(home)
    behind: list[Ancestor] = []
    ancestor = read_policy(store, key)
    while True:
        if held == policy_ref(ancestor.policy):
            break
        checkpoint = f"checkpoints/{ancestor.key}"
        if _is_whole(home, checkpoint):
            trainer.load_checkpoint(policy_ref(ancestor.policy), str(home / checkpoint))
            break
        if ancestor.policy.parent is None:
            trainer.load_weights(policy_ref(ancestor.policy), str(base_model))
            break
        behind.append(ancestor)
        ancestor = read_policy(store, ancestor.policy.parent)
    for following in reversed(behind):
        _replay(store, trainer, ancestor.policy, following)
        ancestor = following


def _is_whole(home: Path, checkpoint: str) -> bool:
    """Tell whether a checkpoint is there with every byte; one that is damaged is said, and an older one is used.

    Its digests are compared, not its sizes alone: the weights have a digest of their own, but nothing else would notice
    a flipped bit in the state of the optimizer.
    """
    if not complete(home, checkpoint):
        return False
    damaged = damaged_files(home, checkpoint)
    if damaged:
        get_logger("cgrpo").warning("%s is damaged (%s) and is not used", home / checkpoint, ", ".join(damaged))
    return not damaged


def update_request(params: dict[str, dict[str, Any]], samples: Sequence[TrainingSample]) -> UpdateRequest:
    """Return the request of an update with these parameter blocks, of a plan or of a manifest."""
    rollout: RolloutParams = build_block("rollout", params["rollout"])
    loss: LossParams = build_block("loss", params["loss"])
    optimizer: OptimizerParams = build_block("optimizer", params["optimizer"])
    limits: LimitParams = build_block("limits", params["limits"])
    return UpdateRequest(
        samples=tuple(samples),
        loss=loss,
        optimizer=optimizer,
        max_response_tokens=rollout.max_response_tokens,
        sampling_temperature=rollout.temperature,
        logprob_gap_max=limits.logprob_gap_max,
    )


def stored_request(store: Store, update: Manifest) -> UpdateRequest:
    """Return the request of a published update, from its stored samples and parameters."""
    refs = [ref.split("/") for ref in update.inputs["samples"]]
    samples = [sample for key, output in refs for sample in store.read(key, output, TrainingSample)]
    return update_request(update.params, samples)


def _replay(store: Store, trainer: Trainer, parent: Policy, child: Ancestor) -> None:
    report = trainer.update(stored_request(store, child.manifest), policy_ref(parent))
    if report.policy != policy_ref(child.policy):
        raise ReplayDiverged(
            f"replaying the update to policy {child.policy.policy_version} gave the weights "
            f"{report.policy.weights_sha256[:12]}, not {child.policy.weights_sha256[:12]} as published",
            "the machine, its thread count or a library differs from those of the run; go on from a checkpoint",
        )


def _key_of(context: StageContext, policy: Policy) -> str:
    refs = context.plan.inputs["policy"]
    for ref in refs:
        if read_policy(context.store, ref.key).policy == policy:
            return ref.key
    raise UserError(f"policy {policy.policy_version} is not an input of stage {context.plan.stage}")
