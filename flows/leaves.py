"""The identity of what a run starts from, found without loading anything heavy: digests and pinned revisions."""

from pathlib import Path
from typing import Any

from flows.chunk_choice import settle_chunks
from flows.gates import check_queries
from flows.home import data_home
from flows.plan import compile_plan, used_inputs
from flows.resolve import resolve
from flows.spec import Spec
from storage.plans import Plan

MODEL_KINDS = ("pypi_gguf", "hf_model", "path")


def identities(spec: Spec) -> dict[str, dict[str, Any]]:
    """Return what identifies each input that the pipeline uses; the others are left as declared. Raises UserError."""
    from tasks.models import identity as model_identity
    from tasks.problems import identity as problems_identity

    used = used_inputs(spec)
    found = {}
    for name, leaf in spec.inputs.items():
        declaration = leaf.model_dump()
        if name not in used:
            found[name] = {"digest": "unused"}
        elif leaf.kind in MODEL_KINDS:
            found[name] = model_identity(declaration, Path(spec.base_dir))
        else:
            found[name] = problems_identity(declaration, Path(spec.base_dir))
    return found


def make_plan(file: Path, pipeline: str, *, profile: str | None, presets: list[str], sets: list[str]) -> Plan:
    """Return the plan of a pipeline as a user names it. Raises UserError."""
    spec = resolve(file, pipeline, profile=profile, presets=presets, sets=sets)
    known = identities(spec)
    spec, decisions = settle_chunks(data_home(), spec, known)
    plan = compile_plan(spec, known, decisions=decisions)
    check_queries(plan)
    return plan
