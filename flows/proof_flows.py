"""The deployment cgrpo/audit: what the command does, where a team would schedule it."""

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from cgrpo_core.errors import UserError
from flows.audit import audit as audit_run
from flows.certificate import page
from flows.home import data_home
from storage.runs import open_run


class AuditFailed(UserError):
    """A run is not what it claims to be."""


@flow(name="cgrpo", flow_run_name="audit {run}", persist_result=False)
def audit(run: str, replay: bool = False) -> str:
    """Check every byte, key and link of a run, and with `replay` every update; return its Merkle root.

    The certificate becomes an artifact of the flow run. Raises AuditFailed, and the flow run has failed then.
    """
    home, logger = data_home(), get_run_logger()
    name = open_run(home, run).name
    certificate = audit_run(home, name, logger.info, replay=replay)
    create_table_artifact(
        key=f"{name}-audit".replace(".", "-").replace("_", "-"),
        table=[{"certificate": line} for line in page(certificate).splitlines()],
        description=f"{name}: {'clean' if certificate.clean else 'damaged'}",
    )
    if not certificate.clean:
        first = certificate.findings[0]
        raise AuditFailed(
            f"{len(certificate.findings)} findings in run {name}; the first is {first['subject']}: {first['problem']}",
            f"cgrpo audit {name} lists them all",
        )
    return certificate.merkle_root
