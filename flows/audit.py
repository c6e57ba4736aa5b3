"""The audit of a run: every claim that its artifacts make, checked against bytes, keys, and what can be computed again.

First the bytes (storage/integrity.py), then keys and links (storage/links.py), then what stages without an engine
give when they are computed again (tasks/recompute.py), then the lineage of tokens, policies and served weights
(tasks/lineage.py), and if asked, every update (flows/replay.py). An audit writes nothing.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from storage.artifacts import MANIFEST, Store
from storage.code_identity import code_identity
from storage.integrity import Finding, check_copy, check_run_files, check_store, damage, note
from storage.journal import file_sha256
from storage.links import check_links
from storage.merkle import merkle_root
from storage.plans import Plan, StagePlan
from storage.runs import open_run, read_plan, run_directory, run_state

FORMAT = 1
SHOWN = 20  # differences of one stage that are named one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What an audit found, on one page. clean: no finding is damage. counts: what was checked, by kind.

    merkle_root: over run.json, plan.json and the manifest of every published artifact, which hold the digests of the
    tables. identity: the code that planned the run, its data sets and models, as its plan knows them.
    """

    format: int
    run: str
    clean: bool
    state: str
    audited_at: float
    merkle_root: str
    counts: dict[str, int]
    policy_version: int | None
    weights_sha256: str | None
    identity: dict[str, Any]
    auditor: dict[str, Any]
    findings: list[dict[str, str]]
    notes: list[dict[str, str]]
    replay: list[dict[str, Any]] | None


def audit(home: Path, name: str, progress: Callable[[str], None], replay: bool = False) -> Certificate:
    """Return the certificate of a run. Raises RunNotFound; whatever is wrong with the run's files is a finding."""
    findings = list(check_run_files(home, name))
    counts: Counter[str] = Counter(run_files=_run_files(home, name))
    plan = None if any(_is_plan(finding, name) for finding in findings) else _plan(home, name, findings)
    replayed = None
    if plan is not None:
        progress(f"{len(plan.stages)} stages: files against their digests, keys against their ingredients")
        findings += check_store(home, name, [stage.key for stage in plan.stages])
        findings += check_copy(home, name)
        findings += [finding for stage in plan.stages for finding in check_links(home, stage)]
        findings += _recomputed(home, plan, counts, progress)
        findings += _lineage(home, plan, progress)
        if replay:
            replayed = _replayed(home, name, plan, findings, progress)
    else:
        findings.append(note("run", f"runs/{name}/plan.json", "without the frozen plan nothing else can be checked"))
    return _certificate(home, name, plan, findings, counts, replayed)


def _plan(home: Path, name: str, findings: list[Finding]) -> Plan | None:
    try:
        return read_plan(home, name)
    except UserError as error:
        findings.append(damage("run", f"runs/{name}/plan.json", error.message))
        return None


def _is_plan(finding: Finding, name: str) -> bool:
    return finding.severity == "damage" and finding.subject == f"runs/{name}/plan.json"


def _recomputed(home: Path, plan: Plan, counts: Counter[str], progress: Callable[[str], None]) -> Iterator[Finding]:
    from tasks.recompute import is_recomputable, recompute

    stages = [stage for stage in plan.stages if is_recomputable(stage) and _published(home, stage)]
    progress(f"{len(stages)} stages without an engine: problems, prompts, verdicts, selections, advantages again")
    for stage in stages:
        done = recompute(stage, home, plan.config["base_dir"])
        if done.skipped is not None:
            yield note("recomputed", stage.label, f"not computed again: {done.skipped}")
            continue
        counts["recomputed_stages"] += 1
        counts["recomputed_rows"] += done.rows
        for difference in done.differences[:SHOWN]:
            yield damage("recomputed", stage.label, difference)
        if len(done.differences) > SHOWN:
            yield damage("recomputed", stage.label, f"{len(done.differences) - SHOWN} differences more")
        if done.incomparable:
            yield note("recomputed", stage.label, f"{done.incomparable} verdicts of another verifier, or cut off")


def _lineage(home: Path, plan: Plan, progress: Callable[[str], None]) -> Iterator[Finding]:
    from tasks.lineage import check_policy, check_samples, check_served

    progress("token ids, policies and their parents, the weights that were served and are stored")
    for stage in plan.stages:
        if _published(home, stage):
            for check in (check_samples, check_policy, check_served):
                yield from check(home, stage)


def _replayed(
    home: Path, name: str, plan: Plan, findings: list[Finding], progress: Callable[[str], None]
) -> list[dict[str, Any]] | None:
    from flows.replay import replay_run
    from tasks.replay import is_update

    if any(finding.severity == "damage" for finding in findings):
        findings.append(note("replay", name, "not replayed: what it would be replayed from is damaged"))
        return None
    if not any(is_update(stage) and _published(home, stage) for stage in plan.stages):
        findings.append(note("replay", name, "has no update to replay yet"))
        return []
    updates = [asdict(update) for update in replay_run(home, name, progress=progress)]
    for update in updates:
        if update["verdict"] != "equal":
            problem = f"replayed it gives the weights {update['replayed'][:12]}, not {update['published'][:12]}"
            findings.append(damage("replay", f"update {update['iteration']}", problem))
    return updates


def _certificate(
    home: Path,
    name: str,
    plan: Plan | None,
    findings: list[Finding],
    counts: Counter[str],
    replayed: list[dict[str, Any]] | None,
) -> Certificate:
    wrong = [finding for finding in findings if finding.severity == "damage"]
    published = [stage for stage in plan.stages if _published(home, stage)] if plan else []
    counts["stages"], counts["artifacts"] = len(plan.stages) if plan else 0, len({stage.key for stage in published})
    for kind in ("weights", "checkpoints"):
        counts[kind] = sum((home / kind / stage.key).is_dir() for stage in plan.stages) if plan else 0
    state, version, weights = _state(home, name)
    return Certificate(
        format=FORMAT,
        run=name,
        clean=not wrong,
        state=state,
        audited_at=time.time(),
        merkle_root=merkle_root(_leaves(home, name, published)),
        counts=dict(counts),
        policy_version=version,
        weights_sha256=weights,
        identity=_identity(home, name, plan),
        auditor=code_identity(),
        findings=[_row(finding) for finding in wrong],
        notes=[_row(finding) for finding in findings if finding.severity == "note"],
        replay=replayed,
    )


def _row(finding: Finding) -> dict[str, str]:
    return {"check": finding.check, "subject": finding.subject, "problem": finding.problem}


def _state(home: Path, name: str) -> tuple[str, int | None, str | None]:
    try:
        state = run_state(home, name)
    except UserError:
        return "unknown", None, None  # a finding says why
    return state.state, state.policy_version, state.weights_sha256


def _identity(home: Path, name: str, plan: Plan | None) -> dict[str, Any]:
    try:
        code: dict[str, Any] | None = open_run(home, name).code
    except UserError:
        code = None  # a finding says why
    inputs = plan.config["inputs"] if plan else {}
    return {"code": code, "inputs": {name: leaf["identity"] for name, leaf in inputs.items()}}


def _leaves(home: Path, name: str, published: list[StagePlan]) -> dict[str, str]:
    store, directory = Store(home), run_directory(home, name)
    files = {file: directory / file for file in ("run.json", "plan.json")}
    paths = files | {f"artifacts/{stage.key}": store.path(stage.key) / MANIFEST for stage in published}
    return {leaf: file_sha256(path) for leaf, path in paths.items() if path.is_file()}


def _published(home: Path, stage: StagePlan) -> bool:
    return (Store(home).path(stage.key) / MANIFEST).is_file()


def _run_files(home: Path, name: str) -> int:
    return sum(not path.is_dir() for path in run_directory(home, name).rglob("*"))
