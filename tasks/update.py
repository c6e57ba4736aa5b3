"""Policies: the first one, the update by DeepSpeed, and the checkpoint."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

from cgrpo_core.params import CheckpointParams
from cgrpo_core.records import Policy, TrainingSample, UpdateMetrics
from storage.policies import complete, drop, publish_directory
from tasks.engines.protocol import UpdateReport
from tasks.models import model_weights_digest, resolve_model
from tasks.policies import policy_ref, publish_weights, read_policy, trainer_with, update_request
from tasks.stage import Published, StageContext, stage


@stage
def init_policy(context: StageContext, base: dict[str, Any]) -> Published:
    """Publish policy 0: the base model, converted once if need be, known by the digest of its weights."""
    directory = resolve_model(base, context.home, Path(context.base_dir))
    policy = Policy(
        policy_version=0, parent=None, weights_sha256=model_weights_digest(directory), weights=None, checkpoint=None
    )
    return Published(tables={"policy": [policy]})


@stage
def update_policy(context: StageContext, samples: list[TrainingSample], policy: list[Policy]) -> Published:
    """Take the optimizer steps of this iteration and publish the next policy with its weights."""
    parent_key = context.plan.inputs["policy"][0].key
    trainer = trainer_with(context, parent_key)
    report = trainer.update(update_request(context.plan.params, samples), policy_ref(policy[0]))
    began = time.monotonic()
    weights = publish_weights(context.home, context.key, trainer, report.policy)
    exported = time.monotonic() - began
    _drop_weights_before(context, parent_key)
    child = Policy(
        policy_version=report.policy.policy_version,
        parent=parent_key,
        weights_sha256=report.policy.weights_sha256,
        weights=weights,
        checkpoint=None,
    )
    return Published(
        tables={"policy": [child], "metrics": [_metrics(report, samples)]},
        counts={"samples": len(samples), "non_finite_steps": report.non_finite_steps},
        metrics={
            "update_seconds": report.seconds,
            "digest_seconds": report.digest_seconds,
            "export_seconds": exported,
            "padding_share": report.padding_share,
            **trainer.peak_memory(),
        },
        directories={"weights": weights},
    )


@stage
def save_checkpoint(context: StageContext, policy: list[Policy]) -> Published:
    """Write weights, optimizer, scheduler and RNG under the key of the update; drop those that `keep` supersedes."""
    update_key = context.plan.inputs["policy"][0].key
    relative = f"checkpoints/{update_key}"
    if not complete(context.home, relative):
        trainer = trainer_with(context, update_key)
        publish_directory(
            context.home,
            "checkpoints",
            update_key,
            lambda path: trainer.save_checkpoint(str(path), policy_ref(policy[0])),
        )
    dropped = _drop_checkpoints_before(context, update_key, context.block(CheckpointParams).keep)
    saved = Policy(
        policy_version=policy[0].policy_version,
        parent=policy[0].parent,
        weights_sha256=policy[0].weights_sha256,
        weights=policy[0].weights,
        checkpoint=relative,
    )
    return Published(
        tables={"policy": [saved]}, counts={"checkpoints_dropped": dropped}, directories={"checkpoint": relative}
    )


def _drop_weights_before(context: StageContext, parent_key: str) -> None:
    """Keep the weights of this policy and its parent; older ones are a cache that a replay fills again."""
    grandparent = read_policy(context.store, parent_key).policy.parent
    if grandparent is not None:
        drop(context.home, f"weights/{grandparent}")


def _drop_checkpoints_before(context: StageContext, key: str, keep: int) -> int:
    """Drop checkpoints of ancestors beyond the newest `keep`; a replay from an older one, or from policy 0, remains."""
    kept = dropped = 0
    current: str | None = key
    while current is not None:
        if complete(context.home, f"checkpoints/{current}"):
            kept += 1
            if kept > keep:
                dropped += drop(context.home, f"checkpoints/{current}")
        current = read_policy(context.store, current).policy.parent
    return dropped


def _metrics(report: UpdateReport, samples: list[TrainingSample]) -> UpdateMetrics:
    trained = report.samples_trained
    tokens: Counter[str] = Counter()
    for sample in samples:
        tokens[sample.origin] += len(sample.token_ids)
    return UpdateMetrics(
        policy_version=report.policy.policy_version,
        optimizer_step=report.optimizer_step,
        status=report.status,
        loss=report.loss,
        grad_norm=report.grad_norm,
        learning_rate=report.learning_rate,
        entropy=report.entropy,
        clip_fraction_low=report.clip_fraction_low,
        clip_fraction_high=report.clip_fraction_high,
        shaping_mean=report.shaping_mean,
        off_policy_prob_mean=report.off_policy_prob_mean,
        mismatch_weight_mean=report.mismatch_weight_mean,
        mismatch_capped_fraction=report.mismatch_capped_fraction,
        kl_to_reference=report.kl_to_reference,
        divergence_mean=report.divergence_mean,
        kl_to_sampler=report.kl_to_sampler,
        logprob_gap_mean=report.logprob_gap_mean,
        logprob_gap_max=report.logprob_gap_max,
        samples=len(samples),
        samples_trained=trained,
        samples_skipped=len(samples) - trained,
        response_tokens=tokens["response"],
        refinement_tokens=tokens["refinement"],
        solution_tokens=tokens["solution"],
        critique_tokens=tokens["critique"],
        non_finite_steps=report.non_finite_steps,
        seconds=report.seconds,
        old_logprobs=report.old_logprobs,
    )
