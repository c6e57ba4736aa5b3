"""Settings of other programs that must stand in the environment before they are imported: quiet, offline, loopback.

A value that the user has set is left alone.
"""

import os

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",  # Ray would run engines and stages at nice 15, behind whatever else the machine does
    # Ray ends idle workers beyond one a CPU after a second. Stages claim a tenth of a CPU; those of two chunks and an
    # evaluation run beside each other: a worker that is ended is soon started anew, and imports for seconds.
    "RAY_num_workers_soft_limit": "8",
    # Ray's control store keeps a record of each task and actor call, 100,000 of them unless it is told.
    "RAY_task_events_max_num_task_in_gcs": "1000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

# Ray turns 127.0.0.1 into the address that others reach it by, and then listens on all interfaces, unless it is told
# that this machine takes no part in clusters; only then does a local Ray stay on loopback.
LOCAL_RAY_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def apply() -> None:
    """Put the defaults into the environment of this process and of those that it starts."""
    address = os.environ.get("RAY_ADDRESS", "")
    on_this_machine = not address or address.startswith(("127.", "localhost", "[::1]"))
    for name, value in (DEFAULTS | LOCAL_RAY_ONLY if on_this_machine else DEFAULTS).items():
        os.environ.setdefault(name, value)
