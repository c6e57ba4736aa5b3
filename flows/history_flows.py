"""The deployments cgrpo/resume, cgrpo/rerun and cgrpo/audit: what the commands do, where a team would schedule it."""

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from cgrpo_core.errors import UserError
from flows.audit import audit as audit_run
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


@flow(name="cgrpo", flow_run_name="audit {run}", persist_result=False)
def audit(run: str, replay: bool = False) -> str:
    """Check every byte, key and link of a run and compute again what can be; return the Merkle root.

    The certificate is the flow run's artifact. Raises UserError for a run that is not as it was published.
    """
    home = data_home()
    name = open_run(home, run).name
    certificate = audit_run(home, name, get_run_logger().info, replay=replay)
    rows = {
        "run": name,
        "clean": certificate.clean,
        "merkle_root": certificate.merkle_root,
        "policy_version": certificate.policy_version,
        "weights_sha256": certificate.weights_sha256,
        **certificate.counts,
    }
    create_table_artifact(
        key=f"{name}-audit".replace(".", "-").replace("_", "-"),
        table=[{"what": what, "value": value} for what, value in rows.items()] + certificate.findings,
        description=f"audit of {name}",
    )
    if not certificate.clean:
        raise UserError(f"run {name} is not as it was published: {len(certificate.findings)} findings", "cgrpo audit")
    return certificate.merkle_root
