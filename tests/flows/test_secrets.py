"""A secret in a declaration or a setting is refused before it is stored, and never repeated."""

import random
import string
from pathlib import Path

import pytest
import yaml

from cgrpo_core.errors import UserError
from flows import cli
from flows.overlays import parse_setting
from flows.resolve import read_declaration, resolve
from flows.secrets import SecretInDeclaration, refuse_secrets

FILE = Path(__file__).parents[2] / "pipelines.yaml"
KEY = "sk-proj-" + "Abc123" * 6


@pytest.mark.parametrize(
    "setting",
    [
        f"engines.sampler.options.api_key={KEY}",
        "engines.sampler.options.api_key=short",
        f"engines.sampler.options={{headers: {{Authorization: {KEY}}}}}",
        "engines.sampler.options={password: hunter2}",
        f"inputs.problems={{kind: jsonl, path: {KEY}}}",
        "inputs.problems={kind: jsonl, path: 'https://me:hunter2@host/x'}",
        "engines.critiquer.options.token=hf_" + "a" * 30,
        f"{KEY}=1",
        f"rollout.{KEY}=1",
        f"rollout.group_size={KEY}[",
        KEY,
    ],
)
def test_a_setting_that_looks_like_a_secret_is_refused_and_not_repeated(setting: str) -> None:
    with pytest.raises(SecretInDeclaration) as caught:
        parse_setting(setting)
    for part in (KEY, "hunter2", "short", "hf_aaa"):
        assert part not in caught.value.message + caught.value.hint
    assert "api_key_env" in caught.value.hint


@pytest.mark.parametrize(
    "setting",
    [
        "rollout.max_response_tokens=4",
        "optimizer.tokens_per_micro_batch=8",
        "engines.trainer.options.packed_tokens=0",
        "engines.sampler.options.api_key_env=OPENAI_API_KEY",
        "engines.sampler.options.base_url=https://host:8000/v1",
        "inputs.base_model.revision=0123456789abcdef0123456789abcdef01234567",
        "run.seed=18",
    ],
)
def test_what_only_resembles_a_secret_is_let_through(setting: str) -> None:
    assert parse_setting(setting)


def test_the_declaration_of_the_project_holds_none() -> None:
    read_declaration(FILE)


def test_a_secret_in_the_file_is_refused_with_its_key_path(tmp_path: Path) -> None:
    declared = yaml.safe_load(FILE.read_text())
    declared["profiles"]["cpu"]["engines"]["sampler"]["options"]["api_key"] = KEY
    path = tmp_path / "pipelines.yaml"
    path.write_text(yaml.safe_dump(declared))
    with pytest.raises(UserError, match=r"profiles\.cpu\.engines\.sampler\.options\.api_key") as caught:
        resolve(path, "critique-grpo", profile="cpu")
    assert KEY not in caught.value.message


def test_random_text_is_no_secret() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        text = "".join(draw.choices(string.ascii_letters + string.digits + " .,-_/:=", k=draw.randrange(60)))
        if "sk" not in text and "pk" not in text and "rk" not in text and "@" not in text:
            refuse_secrets({"path": text}, "here")


def test_nothing_is_stored_by_a_command_that_was_given_a_secret(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setenv("CGRPO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(FILE.parent)
    monkeypatch.setattr(
        "sys.argv", ["cgrpo", "run", "critique-grpo", "--set", f"engines.sampler.options.api_key={KEY}"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert KEY not in captured.out + captured.err
    assert not (tmp_path / "home").exists()
