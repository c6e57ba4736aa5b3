"""One stored batch under several losses, in a trainer of its own at the policy before the update."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from storage.artifacts import Store
from storage.plans import StagePlan
from storage.policies import complete
from tasks.engines.gradients import GradientReport
from tasks.engines.protocol import UpdateRequest
from tasks.models import resolve_model
from tasks.policies import bring_to, policy_ref, read_policy
from tasks.replay import own_trainer


def measure_losses(
    home: Path, base_dir: Path, update: StagePlan, requests: Mapping[str, UpdateRequest], rows: Sequence[str]
) -> GradientReport:
    """Return what each loss makes of its batch, at the policy that the stage `update` was given. No step is taken.

    The policy's weights are enough, and taken where they are on disk; else it is rebuilt as for an update.
    """
    assert update.engine is not None
    base = resolve_model(update.engine["model"], home, base_dir)
    parent_key = update.inputs["policy"][0].key
    policy = read_policy(Store(home), parent_key).policy
    with own_trainer(update.engine, base) as trainer:
        if policy.weights is not None and complete(home, policy.weights):
            trainer.load_weights(policy_ref(policy), str(home / policy.weights))
        else:
            bring_to(home, trainer, parent_key, base)
        report: GradientReport = trainer.gradients(requests, rows, policy_ref(policy))
    return report
