"""For all tests: Ray, Prefect and vLLM are quiet, offline and on loopback, as in the program itself.

Property tests draw the same examples each time, and none fails because the machine is slow: a check that turns red now
and then is not looked at any more. Another profile searches further: `pytest --hypothesis-profile=default`.
"""

from hypothesis import HealthCheck, settings

import flows  # noqa: F401 (puts the defaults into the environment before anything else is imported)

SLOW_MACHINE = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=SLOW_MACHINE)
settings.load_profile("repeatable")
