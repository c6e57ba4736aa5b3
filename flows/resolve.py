"""From pipelines.yaml to one pipeline with every overlay applied.

Overlay order: base, presets, profile, `--set`. A profile resizes and relocates, a preset changes parameters or binds a
stage to another engine; neither changes an edge. There is no interpolation and there are no expressions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cgrpo_core.errors import UserError
from flows.overlays import overlay, parse_setting
from flows.secrets import refuse_secrets
from flows.spec import Declaration, Pipeline, Preset, Spec
from flows.spec_errors import describe, nearest


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
    refuse_secrets(raw, str(path))
    return validate(Declaration, raw, str(path)), raw


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
    graph = pick("pipeline", pipeline, declaration.pipelines, path)
    merged = {name: raw.get(name) or {} for name in ("inputs", "engines", "params", "gates")}
    bindings: dict[str, str] = {}
    for name in presets or ([graph.preset] if graph.preset else []):
        preset = pick("preset", name, declaration.presets, path)
        _check_fits(name, preset, pipeline, declaration, path)
        merged = overlay(merged, {"params": preset.params})
        bindings |= preset.bind
    if profile is not None:
        chosen = pick("profile", profile, declaration.profiles, path)
        merged = overlay(merged, {name: getattr(chosen, name) for name in merged})
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
        "prices": raw.get("prices") or {},
        "base_dir": str(path.resolve().parent),
    }
    spec: Spec = validate(Spec, values, where)
    return spec


def respecify(config: Mapping[str, Any], sets: Sequence[str] = ()) -> Spec:
    """Return what a frozen plan was compiled from (its `config`), with settings laid over it. Raises UserError."""
    if "graph" not in config:
        raise UserError(
            f"a run of {config['pipeline']} has no graph of stages to go on with",
            "fork or rerun the run that it is about",
        )
    values = {name: config[name] for name in Spec.model_fields if name in config}
    graph = dict(config["graph"])
    for section, names in config["order"].items():
        graph[section] = {name: graph[section][name] for name in names}
    values["graph"] = graph
    values["inputs"] = {
        name: {key: value for key, value in leaf.items() if key != "identity"}
        for name, leaf in config["inputs"].items()
    }
    overlays = {name: values.pop(name, {}) for name in ("inputs", "engines", "params", "gates")}
    for setting in sets:
        overlays = overlay(overlays, parse_setting(setting))
    spec: Spec = validate(Spec, {**values, **overlays}, ", ".join(["the settings of the run", *sets]))
    return spec


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


def presets_for(pipeline: str, declaration: Declaration) -> list[str]:
    """Return the names of the presets that are for a pipeline, in the order of the declaration."""
    return [
        name for name, preset in declaration.presets.items() if not preset.pipelines or pipeline in preset.pipelines
    ]


def _check_fits(name: str, preset: Preset, pipeline: str, declaration: Declaration, path: Path) -> None:
    for named in preset.pipelines:
        if named not in declaration.pipelines:
            known = nearest(named, declaration.pipelines)
            raise UserError(f"{path}: the preset {name!r} is for the pipeline {named!r}, which is not there", known)
    if name not in presets_for(pipeline, declaration):
        raise UserError(
            f"the preset {name!r} is for the pipeline {' or '.join(preset.pipelines)}, not {pipeline}",
            f"presets of {pipeline}: {', '.join(presets_for(pipeline, declaration))}",
        )


def pick(what: str, name: str, known: dict[str, Any], path: Path) -> Any:
    """Return the preset, profile or pipeline of that name. Raises UserError, with the nearest one."""
    if name not in known:
        raise UserError(f"{path} has no {what} {name!r}", nearest(name, known))
    return known[name]


def validate(model: type[Any], values: Any, where: str) -> Any:
    """Return `values` as a model. Raises UserError with key path, value and the nearest known key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(*describe(error, model, where)) from None
    except RecursionError:
        raise UserError(f"{where}: nested too deep") from None
