"""The Ray that a run uses: the cluster that RAY_ADDRESS names, joined; or a local one, started and ended here."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from cgrpo_core.errors import UserError

NAMESPACE = "cgrpo"
CONNECT_TIMEOUT_S = 10
OBJECT_STORE_BYTES = 200 * 2**20  # records travel through the store, not through Ray


@contextmanager
def ray_cluster() -> Iterator[bool]:
    """Yield whether an existing cluster was joined. Raises UserError when the one that is named cannot be reached."""
    import ray

    if ray.is_initialized():
        yield True
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
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


def _check_answers(address: str) -> None:
    """Raise UserError unless something takes connections at `address`; Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like: Ray looks for the cluster
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"the Ray cluster at RAY_ADDRESS={address} cannot be reached: {error}",
            "start that cluster, or unset RAY_ADDRESS to use a local Ray",
        ) from None
