"""The command, called in the test's own process."""

from pathlib import Path

import pytest

from flows import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cgrpo(monkeypatch, capsys, tmp_path):
    """Call the command in the repository with an empty home; return exit code, stdout and stderr."""
    monkeypatch.setenv("CGRPO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(ROOT)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["cgrpo", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call
