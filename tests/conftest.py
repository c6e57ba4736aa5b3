"""For all tests: Ray, Prefect and vLLM are quiet, offline and on loopback, as in the program itself."""

import flows  # noqa: F401 (puts the defaults into the environment before anything else is imported)
