"""What a plan that goes on from another takes over from it. Pure; see fork.py and rerun.py.

Whatever comes out with the parent's keys is shared with it; nothing of the parent is changed.
"""

from dataclasses import dataclass, replace

from cgrpo_core.errors import UserError
from flows.spec import Spec
from storage.keys import stage_key
from storage.plans import Plan, StagePlan
from storage.schemas import RECORDS, schema_digest

Place = tuple[str, int | None, int | None]  # stage, iteration, chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """The seeds of the parent's stages, by place and by name; asked: the seed that new settings name, if another."""

    at_place: dict[Place, int]
    by_name: dict[str, int]
    asked: int | None
    otherwise: int

    def kept(self, stage: StagePlan) -> int:
        """Return the seed that the parent's stage has at this place, or else had last."""
        return self.at_place.get(place(stage), self.by_name.get(stage.stage, self.otherwise))

    def new(self, stage: StagePlan) -> int:
        """Return the seed that is asked for now, or else the parent's; the setup keeps the parent's."""
        return self.kept(stage) if self.asked is None or stage.section == "setup" else self.asked


def seeds_of(parent: Plan, spec: Spec) -> Seeds:
    """Return the seeds that a plan under `spec` takes over."""
    seed = spec.params.run.seed
    return Seeds(
        at_place={place(stage): int(stage.ingredients["seed"]) for stage in parent.stages},
        by_name={stage.stage: int(stage.ingredients["seed"]) for stage in parent.stages},
        asked=seed if seed != parent.config["params"]["run"]["seed"] else None,
        otherwise=seed,
    )


def place(stage: StagePlan) -> Place:
    """Return where in a run a stage is."""
    return stage.stage, stage.iteration, stage.chunk


def places(plan: Plan) -> dict[Place, StagePlan]:
    """Return the stages of a plan by place; of two in the setup, the one that later iterations read."""
    return {place(stage): stage for stage in plan.stages}


def upto(plan: Plan, iteration: int) -> tuple[StagePlan, ...]:
    """Return the setup and the iterations up to this one."""
    return tuple(stage for stage in plan.stages if (stage.iteration or 0) <= iteration)


def last_iteration(plan: Plan) -> int:
    """Return the number of iterations of a plan."""
    return max((stage.iteration or 0 for stage in plan.stages), default=0)


def rekeyed(stage: StagePlan, *, seed: int, salt: str) -> StagePlan:
    """Return the stage with this seed and salt, and the key that follows."""
    ingredients = {**stage.ingredients, "seed": seed, "salt": salt}
    return replace(stage, ingredients=ingredients, key=stage_key(ingredients))


def readable(plan: Plan, parent: Plan) -> Plan:
    """Return the plan if this program can read what it takes from the parent. Raises UserError."""
    theirs = {stage.key: stage for stage in parent.stages}
    for stage in plan.stages:
        if stage.key in theirs:
            continue
        for refs in stage.inputs.values():
            for ref in refs:
                source = theirs.get(ref.key)
                if source and source.ingredients["record_schemas"][ref.output] != _digest(source, ref.output):
                    raise UserError(
                        f"{stage.label} would read {source.label}, whose {source.outputs[ref.output]} rows have the "
                        "schema of another version of the program",
                        f"cgrpo rerun --from {source.stage}, or a new run",
                    )
    return plan


def _digest(stage: StagePlan, output: str) -> str:
    record = RECORDS.get(stage.outputs[output])
    return schema_digest(record) if record else ""
