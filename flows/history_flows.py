"""The deployments cgrpo/resume and cgrpo/rerun: what the commands do, where a team would schedule it."""

from prefect import flow

from flows.history import freeze, plan_rerun
from flows.home import data_home
from flows.program import check_program
from flows.train import carry_out
from storage.gates import accept_gates
from storage.runs import open_run


@flow(name="cgrpo", flow_run_name="resume {run}", persist_result=False)
def resume(run: str, accept: list[str] = []) -> str:  # noqa: B006 (Prefect shows the default in its form)
    """Go on with a run, past the failed gates that are accepted; return its name."""
    home = data_home()
    found = open_run(home, run)
    check_program(home, found.name)
    accept_gates(home, found.name, accept)
    carry_out(home, found)
    return found.name


@flow(name="cgrpo", flow_run_name="rerun {run} from {stage}", persist_result=False)
def rerun(
    run: str,
    stage: str,
    iteration: int | None = None,
    to: str | None = None,
    set: list[str] = [],  # noqa: B006 (Prefect shows the default in its form; it is never changed)
    reseed: int | None = None,
    name: str | None = None,
) -> str:
    """Do a stage of a run and what depends on it again, as a new run that shares the rest; return its name."""
    home = data_home()
    derived = plan_rerun(home, run, stage, iteration=iteration, to=to, sets=set, reseed=reseed)
    made = freeze(home, derived, name)
    carry_out(home, made)
    return made.name
