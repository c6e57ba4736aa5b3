"""From a specification to the plan of a run: every stage in order, with its key. Pure: no clock, no server, no engine.

Keys are lineage keys (storage/keys.py), so the whole run is known before it starts, and a longer run begins with the
very stages of a shorter one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.params import BLOCKS, key_values
from flows.engine_checks import check_engines
from flows.spec import Spec, Stage
from flows.spec_errors import nearest
from storage.keys import stage_ingredients, stage_key
from storage.plans import InputRef, Plan, Section, StagePlan
from storage.schemas import RECORDS, schema_digest
from tasks.versions import STAGE_VERSIONS

# Engine options that change what comes out; all others only resize or relocate.
RESULT_OPTIONS = ("dtype",)
REPLACEMENT = "tasks.dataset:replace_equal_groups"
REMOTE_OPTIONS = ("model", "request")

SECTIONS: tuple[Section, ...] = ("setup", "explore", "learn")
Outputs = dict[str, tuple[InputRef, ...]]  # "stage.output" -> where it will be
Amend = Callable[[StagePlan], StagePlan]  # what a plan that continues another does to each stage; see derive.py


@dataclass(frozen=True, slots=True)
class _Scope:
    """What a reference in `in:` may name at one place of the graph."""

    spec: Spec
    leaves: Mapping[str, dict[str, Any]]
    outputs: Outputs
    section: Section
    amend: Amend
    iteration: int | None = None
    chunk: int | None = None


def as_compiled(stage: StagePlan) -> StagePlan:
    """Return the stage as it is: a plan of its own amends nothing."""
    return stage


def compile_plan(
    spec: Spec,
    leaf_identities: Mapping[str, dict[str, Any]],
    *,
    amend: Amend = as_compiled,
    kept: tuple[StagePlan, ...] = (),
    decisions: Mapping[str, dict[str, Any]] | None = None,
) -> Plan:
    """Return the plan of `spec`. leaf_identities: input name -> what identifies its content. Raises UserError.

    kept: stages of another plan, its setup and first iterations, that stand first as they are; this plan goes on from
    there. amend: is given each compiled stage and returns the one that takes its place; those after it read that one.
    decisions: what of `spec` was settled for the user, and why; it is kept with the plan.
    """
    check(spec)
    leaves = {name: {**leaf.model_dump(), "identity": leaf_identities[name]} for name, leaf in spec.inputs.items()}
    outputs: Outputs = {}
    stages = list(kept)
    known = {stage.key for stage in kept}
    setup = _Scope(spec, leaves, outputs, "setup", amend)
    for name, stage in spec.graph.setup.items():
        settled = _stage_plan(setup, name, stage, outputs)
        if settled.key not in known:
            stages.append(settled)
    carried = {name: outputs[carry.first] for name, carry in spec.graph.carry.items()}
    done = max((stage.iteration or 0 for stage in kept), default=0)
    if done:
        produced = gather([stage for stage in kept if stage.iteration == done])
        carried = {name: produced[carry.next] for name, carry in spec.graph.carry.items()}
    for iteration in range(done + 1, spec.params.run.iterations + 1):
        scope = _Scope(spec, leaves, {**outputs, **_carry_names(carried)}, "explore", amend, iteration)
        produced = _iteration(scope, stages)
        carried = {name: produced[carry.next] for name, carry in spec.graph.carry.items()}
    config = {
        "pipeline": spec.pipeline,
        "inputs": leaves,
        "engines": {name: engine.model_dump() for name, engine in spec.engines.items()},
        "params": asdict(spec.params),
        "graph": spec.graph.model_dump(by_alias=True),
        "order": {section: list(getattr(spec.graph, section)) for section in SECTIONS},  # JSON is kept with sorted keys
        "gates": {name: gate.model_dump() for name, gate in spec.gates.items()},
        "prices": {name: price.model_dump() for name, price in spec.prices.items()},
        "base_dir": spec.base_dir,
        **({"decisions": dict(decisions)} if decisions else {}),
    }
    return Plan(pipeline=spec.pipeline, config=config, stages=tuple(stages))


def used_inputs(spec: Spec) -> set[str]:
    """Return the names of the inputs that some stage or engine of the pipeline uses."""
    stages = [stage for _, _, stage in _all_stages(spec)]
    refs = [ref for stage in stages for argument in stage.reads for ref in stage.references(argument)]
    named = {ref.split(".", 1)[1] for ref in refs if ref.startswith("inputs.")}
    return named | {spec.engines[stage.engine].model for stage in stages if stage.engine in spec.engines}


def check(spec: Spec) -> None:
    """Raise UserError when a name in the graph leads nowhere: a task, record, block, engine or schedule."""
    for section, name, stage in _all_stages(spec):
        where = f"pipelines.{spec.pipeline}.{section}.{name}"
        _known(f"{where}.task", stage.task, STAGE_VERSIONS)
        for output, record in stage.out.items():
            _known(f"{where}.out.{output}", record, RECORDS)
        for block in stage.params:
            _known(f"{where}.params", block, BLOCKS)
        if stage.engine is not None:
            _known(f"{where}.engine", stage.engine, spec.engines)
            _known(f"engines.{stage.engine}.model", spec.engines[stage.engine].model, spec.inputs)
        if stage.every is not None:
            _every(spec, f"{where}.every", stage.every)
    check_engines(spec)
    _check_carry(spec)
    run = spec.params.run
    if run.chunks == "auto":
        raise UserError(
            "params.run.chunks = auto is settled when a new run is planned, and this plan goes on from another",
            "give a number: --set run.chunks=4",
        )
    if run.prompts_per_iteration < run.chunks:
        raise UserError(
            f"params.run.chunks = {run.chunks} is more than the {run.prompts_per_iteration} prompts of an iteration",
            "lower run.chunks or raise run.prompts_per_iteration",
        )
    replacements = sum(stage.task == REPLACEMENT for stage in spec.graph.explore.values())
    if run.slots_per_prompt != replacements + 1:
        raise UserError(
            f"params.run.slots_per_prompt = {run.slots_per_prompt}, but pipelines.{spec.pipeline} replaces a prompt "
            f"up to {replacements} times",
            f"set it to {replacements + 1}: one slot for the prompt, one for each replacement",
        )


def gather(stages: list[StagePlan]) -> Outputs:
    """Return what the stages of one iteration offer to those after them: `update.policy`, `explore.select.selection`,
    the latter of all chunks in their order."""
    outputs: Outputs = {}
    for stage in stages:
        for output in stage.outputs:
            ref = InputRef(key=stage.key, output=output)
            if stage.section == "explore":
                name = f"explore.{stage.stage}.{output}"
                outputs[name] = (*outputs.get(name, ()), ref)
            else:
                outputs[f"{stage.stage}.{output}"] = (ref,)
    return outputs


def _iteration(before: _Scope, stages: list[StagePlan]) -> Outputs:
    spec, iteration, own = before.spec, before.iteration or 0, []
    for chunk in range(spec.params.run.chunk_count):
        outputs = dict(before.outputs)
        scope = replace(before, outputs=outputs, chunk=chunk)
        own += [_stage_plan(scope, name, stage, outputs) for name, stage in spec.graph.explore.items()]
    outputs = {**before.outputs, **gather(own)}
    scope = replace(before, outputs=outputs, section="learn")
    last = iteration == spec.params.run.iterations
    for name, stage in spec.graph.learn.items():
        if last or stage.every is None or iteration % _every(spec, name, stage.every) == 0:
            own.append(_stage_plan(scope, name, stage, outputs))
    stages += own
    return outputs


def _stage_plan(scope: _Scope, name: str, stage: Stage, outputs: Outputs) -> StagePlan:
    where = f"pipelines.{scope.spec.pipeline}.{scope.section}.{name}.in"
    inputs: dict[str, tuple[InputRef, ...]] = {}
    leaves: dict[str, dict[str, Any]] = {}
    for argument in stage.reads:
        refs = stage.references(argument)
        if len(refs) == 1 and refs[0].startswith("inputs."):
            _known(f"{where}.{argument}", refs[0].removeprefix("inputs."), scope.leaves)
            leaves[argument] = scope.leaves[refs[0].removeprefix("inputs.")]
            continue
        for ref in refs:
            _known(f"{where}.{argument}", ref, outputs)
        inputs[argument] = tuple(found for ref in refs for found in outputs[ref])
    engine = _engine(scope, stage)
    params = asdict(scope.spec.params)
    blocks = {block: params[block] for block in stage.params}
    ingredients = stage_ingredients(
        stage=name,
        stage_version=STAGE_VERSIONS[stage.task],
        record_schemas={output: schema_digest(RECORDS[record]) for output, record in stage.out.items()},
        params={block: key_values(block, values) for block, values in blocks.items()},
        inputs={argument: [f"{ref.key}/{ref.output}" for ref in refs] for argument, refs in inputs.items()}
        | {argument: [leaf["identity"]["digest"]] for argument, leaf in leaves.items()},
        engine=None if engine is None else _result_options(engine),
        iteration=scope.iteration,
        chunk=scope.chunk,
        salt="",
        seed=scope.spec.params.run.seed,
    )
    compiled = StagePlan(
        stage=name,
        task=stage.task,
        section=scope.section,
        iteration=scope.iteration,
        chunk=scope.chunk,
        key=stage_key(ingredients),
        ingredients=ingredients,
        inputs=inputs,
        leaves=leaves,
        outputs=dict(stage.out),
        params=blocks,
        engine=engine,
        retries=stage.retries,
        resources=dict(stage.resources),
    )
    settled = scope.amend(compiled)
    for output in settled.outputs:
        outputs[f"{name}.{output}"] = (InputRef(key=settled.key, output=output),)
    return settled


def _engine(scope: _Scope, stage: Stage) -> dict[str, Any] | None:
    if stage.engine is None:
        return None
    declared = scope.spec.engines[stage.engine]
    return {**declared.model_dump(), "name": stage.engine, "model": scope.leaves[declared.model]}


def _result_options(engine: dict[str, Any]) -> dict[str, Any]:
    """What of an engine changes results. Of an API: the model's name and what is sent along, not where it is served."""
    if engine["kind"] == "openai":
        return {"kind": "openai", **{name: engine["options"].get(name) for name in REMOTE_OPTIONS}}
    options = {name: engine["options"][name] for name in RESULT_OPTIONS if name in engine["options"]}
    fixed = {"policy": "fixed"} if engine["policy"] == "fixed" else {}
    return {"kind": engine["kind"], "model": engine["model"]["identity"]["digest"], **options, **fixed}


def _carry_names(carried: Outputs) -> Outputs:
    return {f"carry.{name}": refs for name, refs in carried.items()}


def _all_stages(spec: Spec) -> Iterator[tuple[Section, str, Stage]]:
    for section in SECTIONS:
        for name, stage in getattr(spec.graph, section).items():
            yield section, name, stage


def _every(spec: Spec, where: str, path: str) -> int:
    block, _, name = path.partition(".")
    value = getattr(getattr(spec.params, block, None), name, None)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(
            f"{where} = {path!r} does not name a positive whole number in params", "write it as evaluate.every"
        )
    return value


def _check_carry(spec: Spec) -> None:
    written = {
        section: [f"{name}.{output}" for name, stage in getattr(spec.graph, section).items() for output in stage.out]
        for section in SECTIONS
    }
    later = [*written["setup"], *(f"explore.{output}" for output in written["explore"]), *written["learn"]]
    for name, carry in spec.graph.carry.items():
        where = f"pipelines.{spec.pipeline}.carry.{name}"
        _known(f"{where}.first", carry.first, written["setup"])
        _known(f"{where}.next", carry.next, later)


def _known(where: str, name: str, known: Any) -> None:
    if name not in known:
        raise UserError(f"{where} names {name!r}, which is not there", nearest(name, known))
