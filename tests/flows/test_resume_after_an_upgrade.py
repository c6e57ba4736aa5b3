"""A run that an older program planned is not gone on with in silence: what is left would mean something else."""

from pathlib import Path

import pytest
from published_runs import fork_of, make_run, plan_of, publish_all

from cgrpo_core.errors import UserError
from flows import plan as planner
from flows.program import check_program
from tasks.versions import STAGE_VERSIONS

PARENT = plan_of()


def test_a_run_of_this_program_may_go_on(tmp_path: Path) -> None:
    make_run(tmp_path, "run", PARENT)
    check_program(tmp_path, "run")


def test_a_stage_of_another_version_is_refused_with_the_fork_that_goes_on(tmp_path: Path, monkeypatch) -> None:
    make_run(tmp_path, "run", PARENT)
    publish_all(tmp_path, PARENT, iteration=1)
    monkeypatch.setitem(STAGE_VERSIONS, "tasks.critique:write_critiques", 99)
    with pytest.raises(UserError, match=r"critique 2\.0 of run run was planned by another version.*is 99") as caught:
        check_program(tmp_path, "run")
    assert "cgrpo fork run@1" in caught.value.hint
    made = fork_of(PARENT, 1)
    new = {stage.stage for stage in made.stages if stage.key not in {one.key for one in PARENT.stages}}
    assert "critique" in new
    assert "rollout" not in new
    make_run(tmp_path, "fork", made, parent="run")
    check_program(tmp_path, "fork")


def test_a_published_stage_of_another_version_is_no_obstacle(tmp_path: Path, monkeypatch) -> None:
    make_run(tmp_path, "run", PARENT)
    publish_all(tmp_path, PARENT)
    monkeypatch.setitem(STAGE_VERSIONS, "tasks.critique:write_critiques", 99)
    check_program(tmp_path, "run")


def test_a_changed_record_is_refused_by_its_name_and_a_fork_that_would_read_old_rows_too(
    tmp_path: Path, monkeypatch
) -> None:
    make_run(tmp_path, "run", PARENT)
    publish_all(tmp_path, PARENT, iteration=1)
    for module in ("flows.program", "flows.derive"):
        monkeypatch.setattr(f"{module}.schema_digest", lambda record: f"new {record.__name__}")
    with pytest.raises(UserError, match="the schema of Prompt has changed"):
        check_program(tmp_path, "run")
    monkeypatch.setattr(planner, "schema_digest", lambda record: f"new {record.__name__}")
    with pytest.raises(UserError, match="update 1, whose Policy rows have the schema of another version"):
        fork_of(PARENT, 1)
