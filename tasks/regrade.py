"""Every stored text judged again, by another verifier or another version, and what would have been learnt from that.

No model is asked: the texts stay as they are, critiques and refinements too. Verdicts are cached as artifacts that no
run refers to; selections and training samples are computed again from them, by the bodies of their own stages.
"""

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgrpo_core.params import VerifyParams, build_block, key_values
from cgrpo_core.records import EvalResult, Problem, TrainingSample, Verdict
from cgrpo_core.regrading import AdvantageChange, Flip, advantage_changes, is_same_batch, verdict_flips
from storage.artifacts import Manifest, Store
from storage.keys import stage_key
from storage.plans import StagePlan
from storage.schemas import RECORDS
from tasks.recompute import call_body, stored_rows
from tasks.verifier_pool import case_of, verify_all
from tasks.versions import STAGE_VERSIONS

VERDICTS = "verdicts"
FOLLOWING = {"SelectedRefinement", "TrainingSample"}  # computed from verdicts alone, besides what is stored


@dataclass(frozen=True, slots=True, kw_only=True)
class RegradedStage:
    """One stage that judged texts: how many, what flipped, and whether these verdicts were there from a call before."""

    stage: StagePlan
    judged: int
    cached: bool
    correct_before: int
    correct_after: int
    flips: list[Flip]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegradedBatch:
    """One stage of training samples: its rows of another advantage, and whether its update would be another one."""

    stage: StagePlan
    changes: list[AdvantageChange]
    affected: bool


def is_judging(stage: StagePlan) -> bool:
    """Tell whether a stage judges texts: of responses, refinements or evaluations."""
    return bool({"Verdict", "EvalResult"} & set(stage.outputs.values())) and "verify" in stage.params


def regrade(
    home: Path, base_dir: str, stages: Sequence[StagePlan], settings: dict[str, Any], progress: Callable[[str], None]
) -> tuple[list[RegradedStage], list[RegradedBatch]]:
    """Return what judging again shows. stages: published, in plan order. settings: fields of `verify`, in the place of
    the run's own."""
    judged: list[RegradedStage] = []
    batches: list[RegradedBatch] = []
    again: dict[tuple[str, str], list[Any]] = {}  # (key, output) -> rows in the place of the stored ones
    for stage in stages:
        changed = _with_settings(stage, settings)
        if is_judging(stage):
            result, verdicts = _judge(home, base_dir, stage, changed)
            judged.append(result)
            progress(f"{stage.label}: {result.judged} judged, {len(result.flips)} otherwise than before")
            again |= {(stage.key, name): verdicts for name, record in stage.outputs.items() if record == "Verdict"}
        elif FOLLOWING & set(stage.outputs.values()):
            given = {name: _substituted(home, stage, name, again) for name in stage.inputs}
            published = call_body(stage, home, base_dir, given)
            again |= {(stage.key, name): list(published.tables[name]) for name in stage.outputs}
            batches += _batches(home, stage, again)
    return judged, batches


def _with_settings(stage: StagePlan, settings: dict[str, Any]) -> StagePlan:
    if "verify" not in stage.params:
        return stage
    return replace(stage, params={**stage.params, "verify": {**stage.params["verify"], **settings}})


def _judge(home: Path, base_dir: str, stage: StagePlan, changed: StagePlan) -> tuple[RegradedStage, list[Verdict]]:
    store = Store(home)
    manifest = _cache_entry(changed)
    cached = store.find(manifest.key) is not None
    before = stored_verdicts(store, stage)
    if not cached:
        started = time.time()
        verdicts = _verdicts(home, base_dir, changed)
        draft = replace(manifest, started_at=started, ended_at=time.time())
        store.publish(draft, {VERDICTS: (Verdict, verdicts)})
    after = store.read(manifest.key, VERDICTS, Verdict)
    result = RegradedStage(
        stage=stage,
        judged=len(after),
        cached=cached,
        correct_before=sum(verdict.correct for verdict in before),
        correct_after=sum(verdict.correct for verdict in after),
        flips=verdict_flips(before, after),
    )
    return result, after


def _cache_entry(stage: StagePlan) -> Manifest:
    """Return the manifest, without times, that verdicts of these texts under these settings are kept with."""
    verify = stage.params["verify"]
    ingredients = {
        "regrade_of": stage.key,
        "verify": key_values("verify", verify),
        "stage_version": STAGE_VERSIONS[stage.task],
        "math_verify": importlib.metadata.version("math-verify"),
    }
    return Manifest(
        key=stage_key(ingredients),
        stage=f"regrade {stage.stage}",
        task=stage.task,
        stage_version=STAGE_VERSIONS[stage.task],
        iteration=stage.iteration,
        chunk=stage.chunk,
        started_at=0.0,
        ended_at=0.0,
        ingredients=ingredients,
        params={"verify": verify},
        inputs={"regraded": [f"{stage.key}/{name}" for name in stage.outputs]},
    )


def _verdicts(home: Path, base_dir: str, stage: StagePlan) -> list[Verdict]:
    if "Verdict" in stage.outputs.values():
        output = next(name for name, record in stage.outputs.items() if record == "Verdict")
        return list(call_body(stage, home, base_dir).tables[output])
    store = Store(home)
    problems: dict[str, Problem] = {row.problem_id: row for row in stored_rows(store, stage, "problems")}
    params: VerifyParams = build_block("verify", stage.params["verify"])
    results = _results(store, stage)
    return verify_all([case_of(_result_id(row), row.text, problems[row.problem_id]) for row in results], params)


def stored_verdicts(store: Store, stage: StagePlan) -> list[Verdict]:
    """Return what a stage judged; of an evaluation, its results as verdicts."""
    if "Verdict" in stage.outputs.values():
        output = next(name for name, record in stage.outputs.items() if record == "Verdict")
        return store.read(stage.key, output, Verdict)
    return [
        Verdict(
            subject_id=_result_id(row),
            answer=row.answer,
            correct=row.correct,
            status=row.status,
            reward=None,
            verifier="",
            elapsed_ms=0.0,
        )
        for row in _results(store, stage)
    ]


def texts_of(store: Store, stage: StagePlan) -> dict[str, str]:
    """Return subject_id -> text of what a stage judged."""
    if "EvalResult" in stage.outputs.values():
        return {_result_id(row): row.text for row in _results(store, stage)}
    texts: dict[str, str] = {}
    for argument, identity in (("responses", "response_id"), ("refinements", "refinement_id")):
        if argument in stage.inputs:
            texts |= {getattr(row, identity): row.text for row in stored_rows(store, stage, argument)}
    return texts


def _results(store: Store, stage: StagePlan) -> list[EvalResult]:
    output = next(name for name, record in stage.outputs.items() if record == "EvalResult")
    return store.read(stage.key, output, EvalResult)


def _result_id(row: EvalResult) -> str:
    return f"policy {row.policy_version}, {row.problem_id}#{row.sample_index}"


def _substituted(home: Path, stage: StagePlan, argument: str, again: dict[tuple[str, str], list[Any]]) -> list[Any]:
    store, rows = Store(home), list[Any]()
    for ref in stage.inputs[argument]:
        found = again.get((ref.key, ref.output))
        if found is None:
            manifest = store.find(ref.key)
            assert manifest is not None  # of a published stage
            found = store.read(ref.key, ref.output, RECORDS[manifest.outputs[ref.output]["record"]])
        rows += found
    return rows


def _batches(home: Path, stage: StagePlan, again: dict[tuple[str, str], list[Any]]) -> list[RegradedBatch]:
    found = []
    for name, record in stage.outputs.items():
        if record == "TrainingSample":
            before, after = Store(home).read(stage.key, name, TrainingSample), again[stage.key, name]
            affected = not is_same_batch(before, after)
            found.append(RegradedBatch(stage=stage, changes=advantage_changes(before, after), affected=affected))
    return found
