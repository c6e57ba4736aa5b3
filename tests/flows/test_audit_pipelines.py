"""Every pipeline that is declared, and the presets that shape rows in their own way, gives runs that audit clean."""

import pytest
import yaml
from fake_run import ROOT, fake_engines, fake_run

from flows.audit import audit

PIPELINES = yaml.safe_load((ROOT / "pipelines.yaml").read_text())["pipelines"]
ROWS_OF_THEIR_OWN = ("official_intended", "golf", "r3l")  # rows replaced, of whole groups, restarted
CASES = [(name, ()) for name in PIPELINES] + [("critique-grpo", (preset,)) for preset in ROWS_OF_THEIR_OWN]


@pytest.mark.parametrize(("pipeline", "presets"), CASES)
def test_what_a_pipeline_publishes_can_be_computed_again(tmp_path, settings, monkeypatch, pipeline, presets):
    fake_engines(monkeypatch)
    small = [*settings, "run.iterations=1", "run.chunks=1", "rollout.group_size=2"]
    plan = fake_run(tmp_path, small, pipeline=pipeline, presets=presets)
    certificate = audit(tmp_path, "one", lambda message: None)
    assert (certificate.findings, certificate.notes) == ([], [])
    assert certificate.counts["recomputed_stages"] == sum(stage.engine is None for stage in plan.stages)
