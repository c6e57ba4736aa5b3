"""The command, called in the test's own process; one complete run of fake engines, to be copied or left as it is."""

from pathlib import Path

import pytest
from fake_run import fake_engines, fake_inputs, fake_run

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


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """Settings that name a tiny model and tiny data sets."""
    return fake_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def ran(tmp_path_factory, settings):
    """A home with the complete run `one`, and its plan. Not to be changed."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        fake_engines(patch)
        return home, fake_run(home, settings)
