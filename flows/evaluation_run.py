"""A new evaluation: which policy, which benchmarks, planned and frozen as a run of its own. Imports no Prefect."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.ids import digest
from flows.evaluation_plan import EVALUATION, Subject, compile_evaluation, policy_stages
from flows.overlays import overlay, parse_setting
from flows.resolve import pick, read_declaration, validate
from flows.spec import Benchmark, EvaluationSpec
from flows.spec_errors import nearest
from storage.artifacts import Store
from storage.errors import RunExists
from storage.plans import Plan
from storage.runs import Run, create_run, open_run, read_plan
from tasks.benchmarks import benchmark_identity
from tasks.sources import hub_kind

LAID_OVER = ("engines", "params")  # the parts of a run's configuration that an evaluation may change
NAME_LENGTH = 40


def new_evaluation(
    home: Path,
    policy: str,
    benchmarks: Sequence[str],
    *,
    samples: int | None,
    profile: str | None,
    sets: list[str],
    file: Path,
) -> Run:
    """Plan and freeze an evaluation, or return the one that was asked for in the same way before. Raises UserError.

    policy: RUN or RUN@VERSION. The configuration is the run's own; a profile and settings are laid over it.
    """
    subject = find_policy(home, policy)
    more = [*sets, *([] if samples is None else [f"pass_at_k.samples={samples}"])]
    spec = resolve_evaluation(file, subject.plan, profile=profile, sets=more)
    leaves = {name: _leaf(name, spec, file) for name in _names(benchmarks, spec, file)}
    plan = compile_evaluation(spec, subject, leaves)
    name = f"{subject.run[:NAME_LENGTH]}-eval-{subject.policy_version}-{_digest(plan)}"
    options = {"file": str(file), "policy": policy, "benchmarks": list(leaves), "profile": profile, "sets": more}
    try:
        return create_run(home, name=name, plan=plan, options={**options, "presets": []}, parent=subject.run)
    except RunExists:
        return open_run(home, name)


def find_policy(home: Path, policy: str) -> Subject:
    """Return what `RUN` (its newest policy) or `RUN@3` (the one after iteration 3) means. Raises UserError."""
    name, at, version = policy.partition("@")
    run = open_run(home, name)
    if run.pipeline == EVALUATION:
        raise UserError(
            f"{name} is an evaluation, which has no policy of its own", f"name its run: {run.parent}@{version}"
        )
    store, plan = Store(home), read_plan(home, run.name)
    published = {number: stage for number, stage in policy_stages(plan).items() if store.find(stage.key)}
    if not published:
        raise UserError(f"the run {run.name} has published no policy yet", f"go on with it: cgrpo resume {run.name}")
    if not at:
        return Subject(run.name, plan, published[max(published)])
    if not version.isdigit() or int(version) not in published:
        raise UserError(
            f"the run {run.name} has published no policy {version!r}",
            f"it has {_range(sorted(published))}; {run.name}@{max(published)} is the newest",
        )
    return Subject(run.name, plan, published[int(version)])


def resolve_evaluation(file: Path, plan: Plan, *, profile: str | None, sets: Sequence[str]) -> EvaluationSpec:
    """Return the run's own configuration with the profile and settings laid over it, and the catalogue of `file`."""
    declaration, raw = read_declaration(file)
    merged: dict[str, Any] = {name: plan.config[name] for name in LAID_OVER} | {
        "benchmarks": raw.get("benchmarks") or {}
    }
    if profile is not None:
        chosen = pick("profile", profile, declaration.profiles, file)
        merged = overlay(merged, {"params": chosen.params, "engines": chosen.engines})
    for setting in sets:
        top = parse_setting(setting)
        if "inputs" in top:
            raise UserError(
                f"--set {setting!r}: the inputs of an evaluation are those of its run",
                "problems to evaluate are declared under benchmarks: --set benchmarks.NAME.path=FILE",
            )
        merged = overlay(merged, top)
    where = ", ".join([str(file), *([profile] if profile else []), *sets])
    spec: EvaluationSpec = validate(EvaluationSpec, merged, where)
    return spec


def _names(benchmarks: Sequence[str], spec: EvaluationSpec, file: Path) -> list[str]:
    names = list(dict.fromkeys(name.strip() for item in benchmarks for name in item.split(",") if name.strip()))
    if not names:
        raise UserError("no benchmark is named", f"known: {', '.join(sorted(spec.benchmarks)) or f'none, in {file}'}")
    for name in names:
        if name not in spec.benchmarks:
            raise UserError(f"{file} has no benchmark {name!r}", nearest(name, spec.benchmarks) or "cgrpo benchmarks")
    return names


def _leaf(name: str, spec: EvaluationSpec, file: Path) -> dict[str, Any]:
    benchmark = spec.benchmarks[name]
    declaration = {"kind": "benchmark", "name": name, **benchmark.model_dump(), "source": source(name, benchmark, file)}
    return {**declaration, "identity": benchmark_identity(declaration, file.resolve().parent)}


def source(name: str, benchmark: Benchmark, file: Path) -> dict[str, Any]:
    """Return where the problems of a benchmark are: a local file before the hub's. Raises UserError."""
    if benchmark.path is not None:
        path = file.resolve().parent / Path(benchmark.path).expanduser()
        return {"kind": hub_kind(str(path)), "path": str(path)}
    if benchmark.hub is None:
        raise UserError(f"the benchmark {name} has no file", f"give it one: --set benchmarks.{name}.path=FILE")
    if benchmark.hub.revision is None:
        raise UserError(
            f"the catalogue pins no revision of {benchmark.hub.repo}, of which {name} is a part",
            f"--set benchmarks.{name}.hub.revision=COMMIT, or a copy of yours: --set benchmarks.{name}.path=FILE",
        )
    return {"kind": "hf_dataset", **benchmark.hub.model_dump()}


def _digest(plan: Plan) -> str:
    return digest([stage.key for stage in plan.stages])[:8]


def _range(versions: list[int]) -> str:
    whole = versions == list(range(versions[0], versions[-1] + 1))
    return f"{versions[0]} to {versions[-1]}" if whole and len(versions) > 2 else ", ".join(map(str, versions))
