"""A thousand mutated declarations and command lines, by a seed: each is a message with a hint, and nothing starts."""

import copy
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import cli, runner

ROOT = Path(__file__).parents[2]
SEED, FILES, LINES, BATCHES = 20260101, 500, 500, 5
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 2**70, 1e308, float("nan"), float("inf"), "", " ", "\x00", "\ud800", "x" * 5000, [], {}),
    *(
        [[[]]],
        {"a": {"b": {}}},
        "; rm -rf /",
        "$(id)",
        "../../etc/passwd",
        "{{ x }}",
        "!!python/object:os.system",
        "NaN",
    ),
    *("inputs.problems", "carry.policy", "tasks.os:system", "tasks.update:", "éà", "\u202e", "1e999", ["a"], 3.7),
]
Words = list[str]


def shrunk() -> dict[str, Any]:
    """The declaration without what only makes it longer: reading YAML is most of the time of this test."""
    whole = yaml.safe_load((ROOT / "pipelines.yaml").read_text(encoding="utf-8"))
    whole["pipelines"] = {"critique-grpo": whole["pipelines"]["critique-grpo"]}
    whole["profiles"] = {"cpu": whole["profiles"]["cpu"]}
    whole["presets"] = {"paper_v6": {}}
    whole["benchmarks"] = {"gpqa_diamond": whole["benchmarks"]["gpqa_diamond"]}
    whole["gates"] = {name: whole["gates"][name] for name in ("truncated", "logprob_gap", "answer_leakage")}
    return dict(whole)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path to a value inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(*path, key) for key, _ in inside]
    return found + [place for key, item in inside for place in places(item, (*path, key))]


def mutate(draw: random.Random, declaration: dict[str, Any]) -> str:
    """Return the declaration with one to three things wrong, in its structure or in its text."""
    made = copy.deepcopy(declaration)
    for _ in range(draw.choice((1, 1, 2, 3))):
        *before, last = draw.choice(places(made))
        parent = made
        for key in before:
            parent = parent[key]
        kind = draw.choice(("replace", "delete", "rename", "add", "typo"))
        if kind == "delete":
            del parent[last]
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw.choice([f"{last}x", str(last)[1:], "x" * 300, draw.choice(["\x00", "é"])])] = parent.pop(last)
        elif kind == "add" and isinstance(parent, dict):
            parent[draw.choice(["extra", "seed", "__class__", 3, None, True])] = draw.choice(HOSTILE)
        elif kind == "typo" and isinstance(parent[last], str) and parent[last]:
            at = draw.randrange(len(parent[last]))
            parent[last] = parent[last][:at] + draw.choice(string.printable) + parent[last][at + 1 :]
        else:
            parent[last] = draw.choice(HOSTILE)
    text = yaml.dump(made, allow_unicode=True, sort_keys=False)
    return damage(draw, text) if draw.random() < 0.3 else text


def damage(draw: random.Random, text: str) -> str:
    """Cut, repeat, or write over a piece of a text."""
    at, end = sorted(draw.randrange(len(text)) for _ in range(2))
    piece = draw.choice(
        ["", "\t", "\x00", "[" * 400, "*x", "&x", "<<: *y", ": :", "\n- ", "!!binary |\n", "%YAML 9\n", "'"]
    )
    return draw.choice([text[:at], text[:at] + piece + text[at:], text[:at] + text[end:], text[at:end] * 2])


def command_line(draw: random.Random, base: Path) -> Words:
    """Return a command with arguments that nobody means."""
    words = [draw.choice([*COMMANDS, "trian", ""])]
    if draw.random() < 0.7:
        words.append(
            draw.choice(["critique-grpo", "grpo", "critique-gpro", "nothing", "../x", "select 1 from nowhere"])
        )
    for _ in range(draw.randrange(1, 4)):
        option = draw.choice(["--set", "--profile", "--preset", "--file", "--name", "--json", "--frob", "--run", "-x"])
        words += [option, *([setting(draw, base)] if draw.random() < 0.85 else [])]
    return words


COMMANDS = ("run", "plan", "resume", "status", "sql", "model", "golden", "engines")


def setting(draw: random.Random, base: Path) -> str:
    key = draw.choice(
        [
            "rollout.group_size",
            "run.iterations",
            "loss.kind",
            "gates.truncated.limit",
            "inputs.problems",
            "engines.sampler.options.dtype",
            "a.b.c",
            "",
            ".",
            "verify",
            "optimizer.lr",
            "inputs",
        ]
    )
    value = draw.choice(
        [
            "four",
            "-1",
            "0",
            "[",
            "{a: b}",
            "",
            "null",
            "1e999",
            "!!python/name:os.system",
            "\x00",
            "é",
            str(base / "nothing"),
            "x" * 3000,
            "{kind: jsonl, path: /nothing}",
        ]
    )
    return draw.choice([f"{key}={value}", key, value, "cpu", "no-such", str(base)])


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Call the command; return exit code, stderr and whether a run would have started."""
    started: list[str] = []
    monkeypatch.setenv("CGRPO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runner, "_carry_out", lambda home, run: started.append(run.name))
    monkeypatch.setattr(runner, "start_server", lambda *_: pytest.fail("a server was started"))

    def run(words: Words) -> tuple[int, str, bool]:
        started.clear()
        monkeypatch.setattr("sys.argv", ["cgrpo", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err, bool(started)

    return run


def is_explained(code: int, words_on_stderr: str) -> bool:
    message, _, hint = words_on_stderr.partition("\n\nhint: ")
    return code == 2 and message.startswith("error: ") and len(message) > 10 and bool(hint.strip())


def check(call: Callable[[Words], tuple[int, str, bool]], words: Words, what: str) -> bool:
    """Fail unless the command refused, with a reason, or did what was asked; return whether it refused."""
    code, err, started = call(words)
    assert "Traceback" not in err, (what, err)
    if code == 0:
        assert not started or words[0] == "run", what
        return False
    assert is_explained(code, err), (code, err, what)
    assert not started, what
    return True


@pytest.mark.parametrize("batch", range(BATCHES))
def test_mutated_declarations_are_refused_with_a_message_and_a_hint(call, tmp_path, batch):
    draw, declaration, refused = random.Random(SEED + batch), shrunk(), 0
    path = tmp_path / "mutated.yaml"
    for _ in range(FILES // BATCHES):
        text = mutate(draw, declaration)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        words = [draw.choice(["plan", "run"]), "critique-grpo", "--file", str(path), "--set", "run.iterations=1"]
        refused += check(call, words, text)
    assert refused > 0.7 * FILES / BATCHES, "mutants that are still valid declarations prove nothing"


@pytest.mark.parametrize("batch", range(BATCHES))
def test_mutated_command_lines_are_refused_with_a_message_and_a_hint(call, tmp_path, batch):
    draw, refused = random.Random(SEED - 1 - batch), 0
    for _ in range(LINES // BATCHES):
        words = command_line(draw, tmp_path)
        refused += check(call, words, repr(words))
    assert refused > 0.8 * LINES / BATCHES
