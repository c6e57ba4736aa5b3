"""From a policy of a run and benchmarks of the catalogue to the plan of an evaluation. Pure, as flows/plan.py is.

An evaluation is a run of its own, whose parent is the run of the policy. Its first stage is the parent's stage that
published the policy, so that it is found in the store; then, for each benchmark, one stage reads the problems, one for
each shard answers and judges them, and one turns the results into figures. Answers for pass@k are stages beside the
greedy ones.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.ids import digest
from cgrpo_core.params import Params, key_values
from cgrpo_core.prompts import QuestionTemplate
from flows.plan import RESULT_OPTIONS
from flows.spec import Benchmark, EvaluationSpec
from storage.keys import stage_ingredients, stage_key
from storage.plans import InputRef, Plan, StagePlan
from storage.schemas import RECORDS, schema_digest
from tasks.versions import STAGE_VERSIONS

EVALUATION = "evaluate"  # the pipeline's name in run.json
LOAD, EVALUATE, SUMMARISE = (
    f"tasks.evaluate:{name}" for name in ("load_benchmark", "evaluate_policy", "summarise_benchmark")
)
Inputs = dict[str, tuple[InputRef, ...]]
RETRIES = 2  # of a shard, whose engine may be lost
# Each shard under way is a worker process of some 400 MB, and a benchmark has up to 64 shards: three a CPU at once.
SHARD_RESOURCES = {"num_cpus": 0.3}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated: a policy, by the stage that published it, of a run with this plan."""

    run: str
    plan: Plan
    policy: StagePlan

    @property
    def policy_version(self) -> int:
        """The version of the policy: the iteration after which it is held."""
        return self.policy.iteration or 0


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the stages of one plan have in common."""

    spec: EvaluationSpec
    subject: Subject
    engine: dict[str, Any]


def policy_stages(plan: Plan) -> dict[int, StagePlan]:
    """Return the stage that first publishes each policy of a run, by the policy's version."""
    found: dict[int, StagePlan] = {}
    for stage in plan.stages:
        if "Policy" in stage.outputs.values():
            found.setdefault(stage.iteration or 0, stage)
    return found


def compile_evaluation(spec: EvaluationSpec, subject: Subject, leaves: Mapping[str, dict[str, Any]]) -> Plan:
    """Return the plan of an evaluation. leaves: benchmark -> its declaration with identity, in the order asked for.

    Raises UserError for a verifier or a way of sampling that cannot be.
    """
    scope = _Scope(spec, subject, _engine(spec, subject.plan))
    stages = [subject.policy]
    for name, leaf in leaves.items():
        stages += _benchmark_stages(scope, name, leaf)
    config = {
        "pipeline": EVALUATION,
        "inputs": dict(leaves),
        "engines": {name: engine.model_dump() for name, engine in spec.engines.items()},
        "params": asdict(spec.params),
        "base_dir": subject.plan.config["base_dir"],
        "evaluation": {"run": subject.run, "policy_version": subject.policy_version, "benchmarks": list(leaves)},
    }
    return Plan(pipeline=EVALUATION, config=config, stages=tuple(stages))


def settings(benchmark: Benchmark, name: str, params: Params) -> dict[str, dict[str, Any]]:
    """Return the `evaluate` block of each way of sampling a benchmark, by the suffix of its stages: "" is that of the
    configuration, greedy unless it says otherwise; `_sampled`, when pass@k is asked for, that of `pass_at_k`."""
    again = params.pass_at_k
    samples = benchmark.samples if again.samples is None else again.samples
    template = _template(benchmark, params)
    once = replace(params.evaluate, benchmark=name, template=template, shards=benchmark.shards)
    found = {"": once}
    if samples:
        found["_sampled"] = replace(once, temperature=again.temperature, top_p=again.top_p, samples_per_problem=samples)
    return {suffix: asdict(block) for suffix, block in found.items()}


def _template(benchmark: Benchmark, params: Params) -> QuestionTemplate:
    """The first that is said of: evaluate.template, that of the catalogue, the one that the run trains with."""
    if params.evaluate.template != "as_trained":
        return params.evaluate.template
    return params.rollout.template if benchmark.template == "as_trained" else benchmark.template


def comparison(plan: Plan, summary: StagePlan) -> str:
    """Return a digest that two summaries share when their policies were asked in the same way, and may be compared."""
    keys = {ref.key for ref in summary.inputs["results"]}
    shards = [stage for stage in plan.stages if stage.key in keys]
    asked = [{**stage.ingredients, "inputs": {"problems": stage.ingredients["inputs"]["problems"]}} for stage in shards]
    return digest(asked)


def _benchmark_stages(scope: _Scope, name: str, leaf: dict[str, Any]) -> list[StagePlan]:
    benchmark, params = scope.spec.benchmarks[name], asdict(scope.spec.params)
    verify = {**params["verify"], "verifier": benchmark.verifier}
    outputs = {"problems": "Problem", "rejected": "RejectedRow"}
    load = _stage(scope, f"load_{name}", LOAD, outputs, leaves={"source": leaf})
    problems = (InputRef(key=load.key, output="problems"),)
    policy = (InputRef(key=scope.subject.policy.key, output=_policy_output(scope.subject.policy)),)
    stages = [load]
    for suffix, evaluate in settings(benchmark, name, scope.spec.params).items():
        inputs: Inputs = {"policy": policy, "problems": problems}
        blocks, results = {"evaluate": evaluate, "verify": verify}, {"results": "EvalResult"}
        shards = [
            _stage(scope, f"evaluate_{name}{suffix}", EVALUATE, results, inputs=inputs, params=blocks, chunk=chunk)
            for chunk in range(benchmark.shards)
        ]
        inputs = {**inputs, "results": tuple(InputRef(key=shard.key, output="results") for shard in shards)}
        blocks, figures = {"evaluate": evaluate}, {"figures": "BenchmarkFigure"}
        stages += [
            *shards,
            _stage(scope, f"summarise_{name}{suffix}", SUMMARISE, figures, inputs=inputs, params=blocks),
        ]
    return stages


def _stage(
    scope: _Scope,
    name: str,
    task: str,
    outputs: dict[str, str],
    *,
    inputs: Inputs | None = None,
    leaves: dict[str, dict[str, Any]] | None = None,
    params: dict[str, dict[str, Any]] | None = None,
    chunk: int | None = None,
) -> StagePlan:
    inputs, leaves, params = inputs or {}, leaves or {}, params or {}
    engine = scope.engine if task == EVALUATE else None
    ingredients = stage_ingredients(
        stage=name,
        stage_version=STAGE_VERSIONS[task],
        record_schemas={output: schema_digest(RECORDS[record]) for output, record in outputs.items()},
        params={block: key_values(block, values) for block, values in params.items()},
        inputs={argument: [f"{ref.key}/{ref.output}" for ref in refs] for argument, refs in inputs.items()}
        | {argument: [leaf["identity"]["digest"]] for argument, leaf in leaves.items()},
        engine=None if engine is None else _result_options(engine),
        iteration=None,  # the policy says it
        chunk=chunk,
        salt="",
        seed=scope.spec.params.run.seed,
    )
    return StagePlan(
        stage=name,
        task=task,
        section="evaluate",
        iteration=scope.subject.policy.iteration,
        chunk=chunk,
        key=stage_key(ingredients),
        ingredients=ingredients,
        inputs=inputs,
        leaves=leaves,
        outputs=outputs,
        params=params,
        engine=engine,
        retries=RETRIES if engine else 0,
        resources=dict(SHARD_RESOURCES) if engine else {},
    )


def _engine(spec: EvaluationSpec, plan: Plan) -> dict[str, Any]:
    """The engine that the run itself evaluates with, as the evaluation's configuration declares it."""
    bound = [stage.engine["name"] for stage in plan.stages if stage.task == EVALUATE and stage.engine]
    name = bound[0] if bound else "sampler"
    if name not in spec.engines:
        raise UserError(f"the run has no engine {name!r} to evaluate with", f"engines: {', '.join(spec.engines)}")
    declared = spec.engines[name]
    return {**declared.model_dump(), "name": name, "model": plan.config["inputs"][declared.model]}


def _result_options(engine: dict[str, Any]) -> dict[str, Any]:
    options = {name: engine["options"][name] for name in RESULT_OPTIONS if name in engine["options"]}
    return {"kind": engine["kind"], "model": engine["model"]["identity"]["digest"], **options}


def _policy_output(stage: StagePlan) -> str:
    return next(output for output, record in stage.outputs.items() if record == "Policy")
