"""Whether this program still means what a frozen plan says: stages of other versions would be published under false
keys. Imports no Prefect."""

from pathlib import Path

from cgrpo_core.errors import UserError
from storage.artifacts import Store
from storage.plans import StagePlan
from storage.runs import read_plan
from storage.schemas import RECORDS, schema_digest
from tasks.versions import STAGE_VERSIONS


def check_program(home: Path, run: str) -> None:
    """Raise UserError if a stage that is left to run was planned by another version of the program."""
    plan, store = read_plan(home, run), Store(home)
    left = [stage for stage in plan.stages if not store.has(stage.key)]
    for stage in left:
        difference = _difference(stage)
        if difference:
            last = min(one.iteration or 0 for one in left) - 1
            hint = (
                f"cgrpo fork {run}@{last} goes on with this program after iteration {last}"
                if last >= 0
                else "start a new run"
            )
            raise UserError(f"{stage.label} of run {run} was planned by another version of cgrpo: {difference}", hint)


def _difference(stage: StagePlan) -> str:
    planned, now = stage.ingredients["stage_version"], STAGE_VERSIONS.get(stage.task)
    if now is None:
        return f"this one has no {stage.task}"
    if planned != now:
        return f"its version was {planned} and is {now}"
    for output, record in stage.outputs.items():
        known = RECORDS.get(record)
        if known is None or schema_digest(known) != stage.ingredients["record_schemas"][output]:
            return f"the schema of {record} has changed"
    return ""
