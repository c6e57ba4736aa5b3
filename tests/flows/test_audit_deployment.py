"""The deployment cgrpo/audit: the certificate is an artifact, and a damaged run fails the flow run."""

import pytest
from fake_run import fake_engines, fake_inputs, fake_run

from flows import proof_flows
from flows.proof_flows import AuditFailed


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """The artifacts that the flow made, of a complete run in an own home; no Prefect server is asked."""
    fake_engines(monkeypatch)
    fake_run(tmp_path, fake_inputs(tmp_path / "inputs"))
    tables = []
    monkeypatch.setenv("CGRPO_HOME", str(tmp_path))
    monkeypatch.setattr(proof_flows, "create_table_artifact", lambda **given: tables.append(given))
    monkeypatch.setattr(proof_flows, "get_run_logger", Silent)
    return tmp_path, tables


class Silent:
    def info(self, message):
        pass


def test_a_clean_run_gives_its_root_and_a_certificate(shown):
    _, tables = shown
    root = proof_flows.audit.fn("one")
    assert len(root) == 64
    assert tables[0]["key"] == "one-audit"
    assert any(root in row["certificate"] for row in tables[0]["table"])


def test_a_damaged_run_fails_and_names_the_first_finding(shown):
    home, tables = shown
    path = home / "runs" / "one" / "plan.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(AuditFailed, match=r"plan\.json"):
        proof_flows.audit.fn("one")
    assert tables[0]["description"] == "one: damaged"
