"""The graphs of DAPO and LUFFY, carried out under fake engines: what is replaced, dropped, added, and still adds up."""

import json

import pytest
from fake_run import fake_engines, fake_inputs, fake_run

from flows.audit import audit
from storage.catalog import query


@pytest.fixture
def settings(tmp_path):
    found = fake_inputs(tmp_path)
    rows = [
        {"problem": f"{a} plus {b}?", "answer": str((a + b) % 4 + 1), "solution": f"It is {(a + b) % 4 + 1}"}
        for a in range(5)
        for b in range(6)
    ]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*found, f"inputs.problems={{kind: jsonl, path: {tmp_path / 'many.jsonl'}}}"]


def test_dapo_trains_only_on_groups_that_teach_and_asks_no_problem_twice_in_their_place(
    tmp_path, settings, monkeypatch
):
    fake_engines(monkeypatch)
    home = tmp_path / "home"
    fake_run(home, settings, pipeline="dapo")
    asked = query(home, "select slot, stage, iteration from prompts order by slot").rows
    slots = [slot for slot, _, _ in asked]
    assert len(set(slots)) == len(slots)
    assert {stage for _, stage, _ in asked} == {"prompts", "replace_1", "replace_2"}
    assert all((iteration - 1) * 12 <= slot < iteration * 12 for slot, _, iteration in asked)
    per_group = "select group_id, min(reward), max(reward) from training_samples group by all"
    assert all((low, high) == (0.0, 1.0) for _, low, high in query(home, per_group).rows)
    groups = query(home, "select count(distinct group_id) from training_samples group by iteration").rows
    assert all(1 <= count <= 4 for (count,) in groups)
    counted = query(home, "select sum((counts->>'groups_dropped')::int) from stages where stage = 'advantage'").rows
    trained = query(home, "select count(distinct group_id) from training_samples").rows
    assert counted[0][0] == len(asked) - trained[0][0] > 0
    assert audit(home, "one", lambda message: None).findings == []


def test_luffy_trains_on_the_worked_solution_beside_the_responses(tmp_path, settings, monkeypatch):
    fake_engines(monkeypatch)
    home = tmp_path / "home"
    fake_run(home, settings, pipeline="luffy")
    rows = query(
        home,
        "select origin, count(*), count(distinct group_id), min(reward), max(len(sampling_logprobs)) "
        "from training_samples group by all order by all",
    ).rows
    assert [row[:3] for row in rows] == [("response", 24, 8), ("solution", 8, 8)]
    assert rows[1][3:] == (1.0, 0)
    same = "select count(*) from training_samples t join solutions s using (token_ids) where solution_id = sample_id"
    assert query(home, same).rows == [(8,)]
    assert audit(home, "one", lambda message: None).findings == []
