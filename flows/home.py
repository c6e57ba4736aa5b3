"""Where all data is kept: CGRPO_HOME, by default `.cgrpo` in the working directory."""

import os
from pathlib import Path


def data_home() -> Path:
    """Return the absolute path of the data directory; it is made when something is first written."""
    return Path(os.environ.get("CGRPO_HOME", ".cgrpo")).expanduser().resolve()
