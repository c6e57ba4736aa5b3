"""A server that goes away in the middle of a run is named; an error of a stage stays what it is."""

import httpx
import pytest
import ray.exceptions

from cgrpo_core.errors import UserError
from flows.outages import ServiceLost, outages_named


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (httpx.ConnectError("All connection attempts failed"), "the Prefect server does not answer any more: All"),
        (httpx.ReadTimeout(""), "the Prefect server does not answer any more: ReadTimeout"),
        (ray.exceptions.RaySystemError("Broken pipe"), "the Ray cluster went away: "),
        (ray.exceptions.RpcError("WrongClusterID"), "the Ray cluster went away: "),
    ],
)
def test_a_lost_service_is_named_with_a_hint(error: Exception, said: str) -> None:
    with pytest.raises(ServiceLost) as caught, outages_named():
        raise error
    assert caught.value.message.startswith(said)
    assert "unset" in caught.value.hint
    assert caught.value.exit_code == 1


def test_also_as_the_cause_of_another_error() -> None:
    error = RuntimeError("Failed to reach API")
    error.__cause__ = httpx.ConnectError("refused")
    with pytest.raises(ServiceLost), outages_named():
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), UserError("x"), KeyboardInterrupt()])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, outages_named():
        raise error
    assert caught.value is error
