"""Whether a published stage is what its key says: its ingredients, its inputs, the schemas of its tables."""

from collections.abc import Iterator
from pathlib import Path

from storage.artifacts import Manifest, Store
from storage.errors import ArtifactCorrupt
from storage.integrity import Finding, damage, note
from storage.keys import stage_key
from storage.plans import StagePlan
from storage.schemas import RECORDS, schema_digest


def check_links(home: Path, stage: StagePlan) -> Iterator[Finding]:
    """Yield what is wrong between a stage of a plan and its manifest, or between the manifest and what it names."""
    if stage_key(stage.ingredients) != stage.key:
        yield damage("link", stage.label, "its key in the plan is not that of its ingredients")
    try:
        manifest = Store(home).find(stage.key)
    except ArtifactCorrupt:
        return  # `check_store` names it
    if manifest is None:
        return
    if stage_key(manifest.ingredients) != stage.key:
        yield damage("link", stage.label, f"the ingredients in its manifest do not give its key {stage.key[:12]}")
    for name, value in (("stage", stage.stage), ("task", stage.task), ("iteration", stage.iteration)):
        if getattr(manifest, name) != value:
            yield damage("link", stage.label, f"its manifest is of {name} {getattr(manifest, name)}")
    yield from _check_inputs(home, stage, manifest)
    yield from _check_outputs(stage, manifest)


def _check_inputs(home: Path, stage: StagePlan, manifest: Manifest) -> Iterator[Finding]:
    planned = {name: [f"{ref.key}/{ref.output}" for ref in refs] for name, refs in stage.inputs.items()}
    if manifest.inputs != planned:
        yield damage("link", stage.label, "its manifest names other inputs than the plan")
    for name, refs in planned.items():
        if stage.ingredients["inputs"].get(name) != refs:
            yield damage("link", stage.label, f"its input {name} is not the one in its key")
        for ref in refs:
            key, _, output = ref.partition("/")
            try:
                found = Store(home).find(key)
            except ArtifactCorrupt:
                continue
            if found is None or output not in found.outputs:
                yield damage("link", stage.label, f"its input {name}, {ref}, is not published")


def _check_outputs(stage: StagePlan, manifest: Manifest) -> Iterator[Finding]:
    found = {name: output["record"] for name, output in manifest.outputs.items()}
    if found != stage.outputs:
        yield damage("link", stage.label, f"it published {found}, and the plan says {stage.outputs}")
    for name, record in stage.outputs.items():
        declared = stage.ingredients["record_schemas"].get(name)
        if record not in RECORDS or declared != schema_digest(RECORDS[record]):
            yield note("link", stage.label, f"{name} is a {record} of another version of the program")
