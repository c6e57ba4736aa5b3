"""The Ray that a run uses: the cluster that RAY_ADDRESS names, joined; or a local one, started and ended here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cgrpo_core.errors import UserError

NAMESPACE = "cgrpo"
OBJECT_STORE_BYTES = 200 * 2**20  # records travel through the store, not through Ray


@contextmanager
def ray_cluster() -> Iterator[bool]:
    """Yield whether an existing cluster was joined. Raises UserError when the one that is named cannot be reached."""
    import ray

    if ray.is_initialized():
        yield True
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="error")
        else:
            ray.init(
                address="local",  # without it Ray would join whatever cluster it finds on this machine
                namespace=NAMESPACE,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="error",
                _node_ip_address="127.0.0.1",
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        raise UserError(
            f"{where} cannot be reached: {str(error).splitlines()[0]}",
            "start that cluster, or unset RAY_ADDRESS to use a local Ray"
            if address
            else "look for other Ray processes",
        ) from error
    try:
        yield bool(address)
    finally:
        ray.shutdown()
