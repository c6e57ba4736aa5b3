"""The command: exit codes, messages with hints, data on stdout, and never a traceback for a user's mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from storage_rows import a_plan

from storage.runs import create_run

ROOT = Path(__file__).parents[2]


def test_plan_prints_every_stage_and_starts_nothing(cgrpo, tmp_path):
    code, out, _ = cgrpo("plan", "critique-grpo", "--profile", "cpu", "--set", "run.iterations=1", "--json")
    stages = json.loads(out)["stages"]
    assert code == 0
    assert [stage["stage"] for stage in stages][-3:] == ["update", "checkpoint", "evaluate"]
    assert {stage["action"] for stage in stages} == {"run"}
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (
            ["plan", "critique-grpo", "--set", "rollout.grup_size=4"],
            "unknown key params.rollout.grup_size",
            "group_size",
        ),
        (["plan", "critique-grpo", "--set", "rollout.group_size=many"], "params.rollout.group_size", "integer"),
        (["run", "critique-gpro"], "no pipeline 'critique-gpro'", "critique-grpo"),
        (["run", "critique-grpo", "--profile", "gpu"], "no profile 'gpu'", "-gpu"),
        (["run", "critique-grpo", "--file", "nowhere.yaml"], "nowhere.yaml does not exist", "--file"),
        (["run", "critique-grpo", "--set", "inputs.problems={kind: jsonl, path: no.jsonl}"], "no.jsonl", ""),
        (["run", "critique-grpo", "--set", "inputs.base_model={kind: path, path: no/model}"], "no/model", ""),
        (["run", "critique-grpo", "--name", "Not A Name"], "'Not A Name' is no run name", "lower-case"),
        (["resume"], "no run", "cgrpo run"),
        (["status", "nothing"], "no run nothing", "cgrpo run"),
        (["sql", "select * from respnses"], "respnses", "responses"),
        (["sql", "copy responses to 'x.csv'"], "SELECT", ""),
        (["rerun", "nothing", "--from", "critique"], "no run nothing", "cgrpo run"),
        (["rerun", "nothing"], "--from", "--help"),
        (["fork", "nothing@2"], "no run nothing", "cgrpo run"),
        (["fork", "nothing"], "'nothing' is not RUN@ITERATION", "nothing@12"),
        (["golden", "docs"], "no *.json vector files", "tests/data/golden"),
        (["engines"], "RAY_ADDRESS is not set", "local Ray"),
        (["frobnicate"], "frobnicate", "--help"),
        (["run"], "PIPELINE", "--help"),
        (["plan", "critique-grpo", "--frob"], "--frob", "--help"),
    ],
)
def test_a_mistake_is_a_message_with_a_hint_and_exit_code_2(cgrpo, monkeypatch, arguments, said, hint):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, out, err = cgrpo(*arguments)
    assert code == 2, err
    assert said.lower() in err.lower()
    assert hint in err.partition("hint:")[2]
    assert "Traceback" not in err
    assert out == ""


def test_an_empty_store_answers_with_no_rows(cgrpo):
    code, out, _ = cgrpo("sql", "select count(*) as n from responses", "--json")
    assert (code, json.loads(out)) == (0, [{"n": 0}])
    assert cgrpo("sql", "select 1 as a, 'b,c' as d", "--csv")[1].splitlines() == ["a,d", '1,"b,c"']


def test_golden_counts_the_cases_and_fails_when_one_disagrees(cgrpo, tmp_path):
    code, out, _ = cgrpo("golden", "tests/data/golden")
    assert code == 0
    total = int(out.split()[0])
    assert out.splitlines() == [f"{total} of {total} cases agree"]
    cases = json.loads((ROOT / "tests/data/golden/kl.json").read_text())
    cases[1]["output"][0][0] += 0.01
    (tmp_path / "kl.json").write_text(json.dumps(cases))
    code, out, _ = cgrpo("golden", str(tmp_path))
    assert code == 1
    assert cases[1]["id"] in out.splitlines()[0]
    assert out.splitlines()[-1] == f"{len(cases) - 1} of {len(cases)} cases agree"


def test_hostile_text_cannot_steer_the_terminal(cgrpo):
    code, out, _ = cgrpo("sql", "select chr(27) || '[2J[bold]x' as text")
    assert code == 0
    assert "\x1b[2J" not in out
    assert "[bold]x" in out


HOLDS_THE_RUN = """
import sys, time
from pathlib import Path
from storage.runs import RunLock

with RunLock(Path(sys.argv[1]), "one"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_of_two_processes_that_resume_one_run_the_second_is_refused_with_the_first_ones_pid(cgrpo, tmp_path):
    home = tmp_path / "home"
    create_run(home, name="one", plan=a_plan(), options={})
    command = [sys.executable, "-c", HOLDS_THE_RUN, str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        code, _, err = cgrpo("resume", "one")
        first.kill()
    assert code == 2
    assert f"run one is being run by process {first.pid}" in err
    assert f"kill -INT {first.pid}" in err
    assert "Prefect server" not in err, "it is refused before anything is started"


def test_a_home_that_cannot_be_written_is_named_without_a_traceback(cgrpo, monkeypatch, tmp_path):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "home"))

    monkeypatch.setattr("storage.runs.new_temporary", full)
    code, _, err = cgrpo("run", "critique-grpo", "--set", "run.iterations=1")
    assert code == 1
    assert f"the disk is full: {tmp_path / 'home'} could not be written" in err
    assert "hint: free some space" in err
    assert "Traceback" not in err
