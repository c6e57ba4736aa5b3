"""The lineage of a run from its records: tokens trained on, policies and their parents, weights served and stored."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.lineage import policy_faults, sample_faults, version_faults
from cgrpo_core.records import Policy, TrainingSample
from storage.artifacts import Manifest, Store
from storage.integrity import Finding, damage, note
from storage.plans import StagePlan
from storage.policies import complete
from storage.schemas import RECORDS
from tasks.fixed_policy import known_fixed_policy
from tasks.models import model_weights_digest
from tasks.recompute import stored_rows

SAMPLED = {"Response", "Refinement", "EvalResult"}  # what a stage samples from a policy


def check_samples(home: Path, stage: StagePlan) -> Iterator[Finding]:
    """Yield where the training samples of a stage are not the completions that were sampled."""
    if "TrainingSample" not in stage.outputs.values():
        return
    store = Store(home)
    output = next(name for name, record in stage.outputs.items() if record == "TrainingSample")
    try:
        given = {name: stored_rows(store, stage, name) for name in stage.inputs}
        samples: list[TrainingSample] = store.read(stage.key, output, TrainingSample)
    except UserError as error:
        yield note("tokens", stage.label, f"not compared: {error.message}")
        return
    rows = {
        record: [row for rows in given.values() for row in rows if type(row).__name__ == record] for record in RECORDS
    }
    for fault in sample_faults(samples, rows["Prompt"], rows["Response"], rows["Refinement"]):
        yield damage("tokens", stage.label, fault)


def check_policy(home: Path, stage: StagePlan) -> Iterator[Finding]:
    """Yield where the policy of a stage does not follow from its parent, or its stored weights are not its own."""
    if "Policy" not in stage.outputs.values():
        return
    store = Store(home)
    output = next(name for name, record in stage.outputs.items() if record == "Policy")
    try:
        policy = store.read(stage.key, output, Policy)[0]
        given = stored_rows(store, stage, "policy") if "policy" in stage.inputs else []
    except UserError as error:
        yield note("policy", stage.label, f"not compared: {error.message}")
        return
    if given and "UpdateMetrics" not in stage.outputs.values():  # a checkpoint: the same policy once more
        same = (policy.policy_version, policy.weights_sha256) == (given[0].policy_version, given[0].weights_sha256)
        faults = [] if same else ["it is a checkpoint of another policy than it was given"]
    else:
        parent_key = stage.inputs["policy"][0].key if given else None
        faults = policy_faults(policy, given[0] if given else None, parent_key)
    for fault in faults:
        yield damage("policy", stage.label, fault)
    yield from _check_directories(home, policy)


def _check_directories(home: Path, policy: Policy) -> Iterator[Finding]:
    """Hold the tensors of stored weights, and the word of a checkpoint, against the policy's digest."""
    if policy.weights and complete(home, policy.weights):
        found = model_weights_digest(home / policy.weights)
        if found != policy.weights_sha256:
            yield damage("weights", policy.weights, f"holds the weights {found[:12]}, not {policy.weights_sha256[:12]}")
    if policy.checkpoint and complete(home, policy.checkpoint):
        state = home / policy.checkpoint / "state.json"  # of the trainer; what it must hold is DIGESTS.json's to say
        found = json.loads(state.read_bytes())["weights_sha256"] if state.is_file() else policy.weights_sha256
        if found != policy.weights_sha256:
            yield damage("weights", policy.checkpoint, f"is of the weights {str(found)[:12]}")


def check_served(home: Path, stage: StagePlan) -> Iterator[Finding]:
    """Yield where a stage sampled from other weights than those of the policy that it was given."""
    if "policy" not in stage.inputs or not SAMPLED & set(stage.outputs.values()):
        return
    store, rows = Store(home), list[Any]()
    try:
        manifest = store.find(stage.key)
        policy = _given(home, store, stage)
        for name, record in stage.outputs.items():
            if record in SAMPLED:  # not those of what was skipped, for which no sampler was asked
                rows += store.read(stage.key, name, RECORDS[record])
    except UserError as error:
        yield note("served", stage.label, f"not compared: {error.message}")
        return
    assert manifest is not None
    for fault in version_faults(rows, policy):
        yield damage("served", stage.label, fault)
    if rows:
        yield from _served(stage, manifest, policy)


def _given(home: Path, store: Store, stage: StagePlan) -> Policy:
    """Return what the stage's sampler had to serve: the policy carried there, or the fixed model of its engine."""
    if (stage.engine or {}).get("policy") != "fixed":
        given: Policy = stored_rows(store, stage, "policy")[0]
        return given
    known = known_fixed_policy(home, (stage.engine or {})["model"])
    if known is None:
        raise UserError(f"the weights of the fixed model of {stage.label} are not known in this home")
    return known


def _served(stage: StagePlan, manifest: Manifest, policy: Policy) -> Iterator[Finding]:
    served = manifest.evidence.get("served_weights_sha256")
    if served is None:
        yield note("served", stage.label, "says nothing of the weights that its sampler served")
    elif (served, manifest.evidence.get("served_policy_version")) != (
        policy.weights_sha256,
        str(policy.policy_version),
    ):
        yield damage("served", stage.label, f"sampled from {served[:12]}, and was given {policy.weights_sha256[:12]}")
