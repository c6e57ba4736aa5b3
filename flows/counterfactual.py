"""`cgrpo counterfactual RUN@K`: one stored batch, the policy before it, and what several losses would make of it.

The rows are the stored ones. Under a preset, advantages and row weights are computed again from the stored rewards by
its `advantage` block, and the loss is its `loss` block; all else is the run's. `run` is the run's own loss over the
stored advantages. No step is taken: the weights digest is compared before and after.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgrpo_core.errors import UserError
from cgrpo_core.params import AdvantageParams, LossParams
from cgrpo_core.records import TrainingSample
from flows.cluster import ray_cluster
from flows.interrupts import interruptible
from flows.replay import published_updates
from flows.report import show_table
from flows.resolve import read_declaration, resolve
from flows.spec_errors import nearest
from flows.terminal import dump_json, say
from storage.artifacts import Store
from storage.plans import StagePlan
from storage.runs import open_run, read_plan

if TYPE_CHECKING:
    from tasks.engines.gradients import GradientReport
    from tasks.engines.protocol import UpdateRequest

OWN = "run"


def preset_blocks(file: Path, pipeline: str, presets: Sequence[str]) -> dict[str, tuple[AdvantageParams, LossParams]]:
    """Return the advantage and loss blocks of presets, each on a pipeline that it is for. Raises UserError."""
    declaration, _ = read_declaration(file)
    blocks = {}
    for name in presets:
        if name not in declaration.presets:
            raise UserError(f"{file} has no preset {name!r}", nearest(name, declaration.presets))
        fitting = declaration.presets[name].pipelines
        where = pipeline if not fitting or pipeline in fitting else fitting[0]
        params = resolve(file, where, presets=[name]).params
        blocks[name] = (params.advantage, params.loss)
    return blocks


def requests_of(
    stored: "UpdateRequest", blocks: dict[str, tuple[AdvantageParams, LossParams]]
) -> dict[str, "UpdateRequest"]:
    """Return the stored update under its own loss, and under those of presets. Raises UserError for a loss that needs
    what the batch does not have."""
    from cgrpo_core.counterfactual import with_advantages

    requests = {OWN: stored}
    for name, (advantage, loss) in blocks.items():
        pairs = with_advantages(stored.samples, advantage)
        rows = [replace(row, advantage=a, weight=w) for row, (a, w) in zip(stored.samples, pairs, strict=True)]
        if loss.kind == "sdpo" and not all(row.context_token_ids for row in rows):
            raise UserError(
                f"the loss of the preset {name} learns from what rows say after a critique, and this batch has none",
                "leave it out, or take a run of a preset with the same rows",
            )
        requests[name] = replace(stored, samples=tuple(rows), loss=loss)
    return requests


def largest_rows(samples: Sequence[TrainingSample], count: int) -> list[str]:
    """Return the ids of the rows that weigh most, |weight * advantage| * tokens, as stored; ties in stored order."""
    ranked = sorted(samples, key=lambda row: -abs(row.weight * row.advantage) * len(row.token_ids))
    return [row.sample_id for row in ranked[:count]]


def measure(
    home: Path, place: str, *, presets: Sequence[str], rows: int, file: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return what each loss makes of the batch. Raises UserError for a place, a preset or a batch that cannot be."""
    from tasks.counterfactual import measure_losses
    from tasks.policies import read_policy, stored_request

    name, stage, base_dir = find_update(home, place)
    store = Store(home)
    policy = read_policy(store, stage.inputs["policy"][0].key).policy
    stored = stored_request(store, read_policy(store, stage.key).manifest)
    blocks = preset_blocks(file, read_plan(home, name).pipeline, presets)
    requests, chosen = requests_of(stored, blocks), largest_rows(stored.samples, rows)
    tokens = sum(len(row.prompt_token_ids) + len(row.token_ids) for row in stored.samples)
    progress(
        f"{len(requests)} losses over the {len(stored.samples)} samples ({tokens} tokens) of {name}@{stage.iteration} "
        f"at policy {policy.policy_version}: two passes over the batch and {len(chosen)} rows alone under each loss; "
        f"no step is taken"
    )
    with interruptible(), ray_cluster():
        report = measure_losses(home, base_dir, stage, requests, chosen)
    return _found(name, stage, policy.policy_version, stored.samples, report)


def find_update(home: Path, place: str) -> tuple[str, StagePlan, Path]:
    """Return run, update and base directory of RUN@ITERATION. Raises UserError for one that is not there."""
    name, at, iteration = place.partition("@")
    if not at or not iteration.isdigit():
        raise UserError(f"{place!r} is not RUN@ITERATION", f"write it as {name or 'RUN'}@2")
    name = open_run(home, name).name
    plan = read_plan(home, name)
    update = published_updates(home, name, plan, int(iteration), int(iteration))[0]
    return name, update, Path(plan.config["base_dir"])


def _found(
    name: str, stage: StagePlan, version: int, samples: Sequence[TrainingSample], report: "GradientReport"
) -> dict[str, Any]:
    return {
        "run": name,
        "iteration": stage.iteration,
        "policy_version": version,
        "weights_before": report.weights_before,
        "weights_after": report.weights_after,
        "losses": [asdict(loss) for loss in report.losses],
        "cosines": {
            row.name: {column.name: value for column, value in zip(report.losses, values, strict=True)}
            for row, values in zip(report.losses, report.cosines, strict=True)
        },
        "samples": {row.sample_id: {"origin": row.origin, "group_id": row.group_id} for row in samples},
    }


def print_counterfactual(
    home: Path, place: str, *, presets: Sequence[str], rows: int, file: Path, as_json: bool
) -> None:
    """Measure, and print a table of the losses, one of the cosines, and one of the rows that weigh most."""
    found = measure(home, place, presets=presets, rows=rows, file=file, progress=say)
    if as_json:
        dump_json(found)
        return
    origins = sorted({origin for loss in found["losses"] for origin in loss["origin_norms"]})
    columns = ["loss", "grad_norm", "samples_trained"]
    show_table(
        ["under", *columns, *(f"{figure} of {origin}s" for origin in origins for figure in ("loss", "norm"))],
        [
            [loss["name"], *(loss[column] for column in columns)]
            + [loss[figure].get(origin) for origin in origins for figure in ("origin_losses", "origin_norms")]
            for loss in found["losses"]
        ],
    )
    names = [loss["name"] for loss in found["losses"]]
    show_table(["cosine", *names], [[name, *(found["cosines"][name][other] for other in names)] for name in names])
    alone = sorted({sample_id for loss in found["losses"] for sample_id in loss["row_pulls"]})
    if alone:
        show_table(
            ["sample", "origin", *(f"{what}, {name}" for name in names for what in ("loss", "pull"))],
            [
                [sample_id, found["samples"][sample_id]["origin"]]
                + [loss[what].get(sample_id) for loss in found["losses"] for what in ("row_losses", "row_pulls")]
                for sample_id in alone
            ],
        )
    say(f"no step was taken: weights {found['weights_before'][:16]} before and {found['weights_after'][:16]} after")
