"""`cgrpo regrade`: which verifier, which texts, and what to say of it. Nothing is written into the run."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from cgrpo_core.errors import UserError
from cgrpo_core.params import VerifyParams
from flows.overlays import overlay, parse_setting
from flows.report import show_table
from flows.spec_errors import describe
from flows.terminal import dump_json, say
from storage.artifacts import Store
from storage.plans import Plan, StagePlan
from storage.runs import read_plan

if TYPE_CHECKING:
    from tasks.regrade import RegradedBatch, RegradedStage

SHOWN = 12  # flips printed with their text; --json has them all
TEXT = 160


class _Verify(BaseModel):
    verify: VerifyParams


def verify_settings(verifier: str | None, sets: list[str]) -> dict[str, Any]:
    """Return the fields of `verify` that a user names. Raises UserError for what is none, or not of the block."""
    merged: dict[str, Any] = {}
    for setting in [*([f"verify.verifier={verifier}"] if verifier else []), *sets]:
        merged = overlay(merged, parse_setting(setting))
    others = [name for name in merged if name != "params"] + [
        name for name in merged.get("params", {}) if name != "verify"
    ]
    if others:
        raise UserError(f"--set {others[0]}: a text is judged again under another `verify` only", "verify.timeout_s=10")
    settings: dict[str, Any] = merged.get("params", {}).get("verify", {})
    try:
        _Verify.model_validate({"verify": settings})
    except ValidationError as error:
        raise UserError(*describe(error, _Verify, "regrade")) from None
    return settings


def regrade_run(home: Path, name: str, settings: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """Return what judging every stored text of a run again shows. Raises UserError when there is none."""
    from tasks.regrade import is_judging, regrade

    plan = read_plan(home, name)
    store = Store(home)
    published = [stage for stage in plan.stages if store.find(stage.key) is not None]
    judging = [stage for stage in published if is_judging(stage)]
    if not judging:
        raise UserError(f"run {name} has judged nothing yet", f"go on with: cgrpo resume {name}")
    texts = sum(_rows(store, stage) for stage in judging)
    asked = ", ".join(f"{field} {value}" for field, value in settings.items()) or "the run's own settings"
    progress(f"judging {texts} stored texts of run {name} again with {asked}; no model is asked, nothing is changed")
    judged, batches = regrade(home, plan.config["base_dir"], published, settings, progress)
    return _summary(home, name, plan, settings, judged, batches)


def _rows(store: Store, stage: StagePlan) -> int:
    manifest = store.find(stage.key)
    records = {"Verdict", "EvalResult"}
    return sum(entry["rows"] for entry in manifest.outputs.values() if entry["record"] in records) if manifest else 0


def _summary(
    home: Path,
    name: str,
    plan: Plan,
    settings: dict[str, Any],
    judged: list["RegradedStage"],
    batches: list["RegradedBatch"],
) -> dict[str, Any]:
    changes = [(batch, change) for batch in batches for change in batch.changes]
    flips = [row for stage in judged for row in _flip_rows(home, stage)]
    return {
        "run": name,
        "verify": {**plan.config["params"]["verify"], **settings},
        "judged": sum(stage.judged for stage in judged),
        "judged_before_this_call": sum(stage.judged for stage in judged if stage.cached),
        "outcomes": dict(Counter(f"{row['before']} -> {row['after']}" for row in flips)),
        "flips": flips,
        "advantages_changed": len(changes),
        "advantages_turned": [_change_row(batch, change) for batch, change in changes if change.turned],
        "updates_affected": sorted(
            {batch.stage.iteration for batch in batches if batch.affected}, key=lambda k: k or 0
        ),
        "updates": len({batch.stage.iteration for batch in batches}),
        "evaluations": [
            {
                "stage": one.stage.label,
                "problems": one.judged,
                "correct": one.correct_before,
                "again": one.correct_after,
            }
            for one in judged
            if "EvalResult" in one.stage.outputs.values()
        ],
    }


def _flip_rows(home: Path, regraded: "RegradedStage") -> list[dict[str, Any]]:
    from tasks.regrade import texts_of

    if not regraded.flips:
        return []
    texts = texts_of(Store(home), regraded.stage)
    return [
        {
            "stage": regraded.stage.label,
            "iteration": regraded.stage.iteration,
            "subject_id": flip.subject_id,
            "before": flip.before,
            "after": flip.after,
            "answer_before": flip.answer_before,
            "answer_after": flip.answer_after,
            "text": texts[flip.subject_id],
        }
        for flip in regraded.flips
    ]


def _change_row(batch: "RegradedBatch", change: Any) -> dict[str, Any]:
    return {
        "iteration": batch.stage.iteration,
        "sample_id": change.sample_id,
        "group_id": change.group_id,
        "before": change.before,
        "after": change.after,
    }


def print_regrade(home: Path, name: str, *, verifier: str | None, sets: list[str], as_json: bool) -> None:
    """Judge a run's texts again and print what would be otherwise."""
    found = regrade_run(home, name, verify_settings(verifier, sets), say)
    if as_json:
        dump_json(found)
        return
    if found["flips"]:
        rows = [
            [
                row["stage"],
                row["subject_id"],
                f"{row['before']} -> {row['after']}",
                row["answer_before"],
                row["answer_after"],
                row["text"][-TEXT:],
            ]
            for row in found["flips"][:SHOWN]
        ]
        show_table(["stage", "subject", "verdict", "answer", "answer again", "text"], rows)
        if len(found["flips"]) > SHOWN:
            say(f"... and {len(found['flips']) - SHOWN} more (--json lists all)")
    outcomes = ", ".join(f"{count} {change}" for change, count in sorted(found["outcomes"].items())) or "none"
    rows = [
        ["texts judged again", f"{found['judged']} ({found['judged_before_this_call']} in a call before)"],
        ["verdicts that flip", outcomes],
        ["advantages that change", found["advantages_changed"]],
        ["of those, that turn", len(found["advantages_turned"])],
        ["updates affected", f"{len(found['updates_affected'])} of {found['updates']}: {found['updates_affected']}"],
    ]
    rows += [
        [row["stage"], f"{row['correct']} of {row['problems']} correct, again {row['again']}"]
        for row in found["evaluations"]
    ]
    show_table(["", ""], rows)
