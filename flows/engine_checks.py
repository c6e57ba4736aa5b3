"""Whether the engines that stages are bound to can do what they are asked for; all of it known before anything runs."""

from collections.abc import Iterator

from cgrpo_core.critiques import ModelKind, critique_kind
from cgrpo_core.errors import UserError
from flows.spec import Engine, Spec, Stage
from tasks.engines.endpoint_options import read_endpoint

DEFAULT_MODEL_LEN = 2048  # of a vllm engine that declares none
CRITIQUE_TASK = "tasks.critique:write_critiques"
# task -> the parameter block that bounds its prompts, and the field that bounds its completions
LENGTHS = {
    "tasks.rollout:sample_responses": ("rollout", "max_response_tokens"),
    "tasks.refine:sample_refinements": ("refine", "max_response_tokens"),
    "tasks.evaluate:evaluate_policy": ("evaluate", "max_response_tokens"),
    CRITIQUE_TASK: ("critique", "max_critique_tokens"),
}


def check_engines(spec: Spec) -> None:
    """Raise UserError for a stage whose engine cannot serve it: a wrong kind, or room for too few tokens."""
    for name, stage in _stages(spec):
        engine = spec.engines[stage.engine] if stage.engine else None
        if stage.task == CRITIQUE_TASK:
            _check_critique(spec, name, stage, engine)
        if engine is None:
            continue
        where = f"engines.{stage.engine}"
        if engine.kind == "openai" and stage.task != CRITIQUE_TASK:
            raise UserError(
                f"stage {name} is bound to {where}, a model behind an API, which only writes critiques",
                "bind it to an engine of kind vllm: token ids and log-probs are needed",
            )
        if engine.kind == "deepspeed" and engine.policy == "fixed":
            raise UserError(
                f"{where}.policy is fixed, and it is a trainer", "a fixed policy is for engines that sample"
            )
        if engine.kind == "vllm":
            _check_lengths(spec, name, stage, where, engine)


def _check_critique(spec: Spec, name: str, stage: Stage, engine: Engine | None) -> None:
    kind = critique_kind(spec.params.critique.kind)
    asked = f"critique.kind = {spec.params.critique.kind}"
    if not isinstance(kind, ModelKind):
        if engine is not None:
            raise UserError(
                f"stage {name} is bound to engines.{stage.engine}, and {asked} is written by rule: no model is asked",
                "choose cot or self, or another preset",
            )
        return
    if engine is None:
        raise UserError(
            f"{asked} asks a model, and stage {name} is bound to no engine",
            "take a preset that binds one, as critique_cot or critique_self, or give the stage an `engine:`",
        )
    if kind.of_policy and (engine.kind != "vllm" or engine.policy == "fixed"):
        raise UserError(
            f"{asked} asks the policy itself; engines.{stage.engine}, which stage {name} is bound to, serves another",
            "bind it to the sampler, as the preset critique_self does",
        )
    if engine.kind == "openai":
        read_endpoint({**engine.model_dump(), "name": stage.engine})


def _check_lengths(spec: Spec, name: str, stage: Stage, where: str, engine: Engine) -> None:
    """A prompt of the allowed length with a completion of the allowed length must fit: no request fails for length."""
    block, field = LENGTHS.get(stage.task, (None, None))
    if block is None or field is None or block not in stage.params:
        return
    params = getattr(spec.params, block)
    asked = params.max_prompt_tokens + getattr(params, field)
    room = engine.options.get("max_model_len", DEFAULT_MODEL_LEN)
    if isinstance(room, int) and asked > room:
        raise UserError(
            f"{where}.options.max_model_len = {room} is less than {block}.max_prompt_tokens = "
            f"{params.max_prompt_tokens} and {block}.{field} = {getattr(params, field)} together, as stage {name} asks",
            f"raise max_model_len to {asked}, or lower one of the two",
        )


def _stages(spec: Spec) -> Iterator[tuple[str, Stage]]:
    for section in (spec.graph.setup, spec.graph.explore, spec.graph.learn):
        yield from section.items()
