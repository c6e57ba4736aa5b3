"""A store made up for store.py: a run of the real plan, its files by the real writer, rows by the million from numpy.

Rows are short: 4 tokens and a word a response. Tables that no question here reads (training samples, evaluations,
problems) have no rows. Files are not synced while they are made: nothing of it is worth keeping.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cgrpo_core.ids import digest
from flows.plan import compile_plan
from flows.resolve import resolve
from storage.artifacts import Manifest, OutputFile, Store, _write_manifest, write_table
from storage.durable import new_temporary
from storage.plans import Plan, StagePlan
from storage.runs import RunLock, create_run, end_attempt, start_attempt
from storage.schemas import RECORDS, arrow_schema
from storage.sealing import seal_stages
from tasks.versions import STAGE_VERSIONS

ROOT = Path(__file__).parents[1]
GROUP = 8
WRONG = 0.12  # share of groups without a right response: they are critiqued and refined
TOKENS = 4
Ids = dict[tuple[str, int, int], pa.Array]  # (what, iteration, chunk) -> ids, for the stages that refer to them


def make(home: Path, name: str, *, iterations: int, chunks: int, responses: int, say: Callable[[str], None]) -> Plan:
    """Make a complete run with so many responses in all."""
    sets = [f"run.iterations={iterations}", f"run.chunks={chunks}", f"rollout.group_size={GROUP}"]
    spec = resolve(ROOT / "pipelines.yaml", "critique-grpo", profile="cpu", presets=[], sets=sets)
    leaves = {leaf: {"digest": digest(value.model_dump())} for leaf, value in spec.inputs.items()}
    plan = compile_plan(spec, leaves)
    groups = max(1, responses // (iterations * chunks * GROUP))
    ids: Ids = {}
    synced, os.fsync = os.fsync, lambda _: None
    try:
        create_run(home, name=name, plan=plan, options={})
        with RunLock(home, name):
            number = start_attempt(home, name)
            for place, stage in enumerate(plan.stages):
                _publish(Store(home), stage, groups, ids)
                if place % 2000 == 0:
                    say(f"{place} of {len(plan.stages)} stages")
            seal_stages(home, name, plan.stages)
            end_attempt(home, name, number, "completed")
    finally:
        os.fsync = synced
    return plan


def _publish(store: Store, stage: StagePlan, groups: int, ids: Ids) -> None:
    if store.has(stage.key):
        return
    temporary = new_temporary(store.home, stage.key)
    draw = np.random.default_rng(int(stage.key[:12], 16))
    outputs: dict[str, OutputFile] = {}
    for output, record in stage.outputs.items():
        outputs[output] = write_table(
            temporary, stage.key, output, RECORDS[record], _rows(stage, record, groups, ids, draw)
        )
    began = 1.7e9 + 60.0 * (stage.iteration or 0)
    manifest = Manifest(
        key=stage.key,
        stage=stage.stage,
        task=stage.task,
        stage_version=STAGE_VERSIONS[stage.task],
        iteration=stage.iteration,
        chunk=stage.chunk,
        started_at=began,
        ended_at=began + 5.0,
        ingredients=stage.ingredients,
        params=stage.params,
        inputs={name: [f"{ref.key}/{ref.output}" for ref in refs] for name, refs in stage.inputs.items()},
        engine=stage.engine,
        counts={"responses": groups * GROUP, "truncated": 3},
        metrics={"completion_tokens": float(groups * GROUP * TOKENS), "sampling_seconds": 4.0},
    )
    _write_manifest(temporary, replace(manifest, outputs=outputs))
    store.path(stage.key).parent.mkdir(parents=True, exist_ok=True)
    os.rename(temporary, store.path(stage.key))


def _rows(stage: StagePlan, record: str, groups: int, ids: Ids, draw: np.random.Generator) -> pa.Table:
    """Return the rows of one output of a stage. Ids are random, as digests are: they do not compress."""
    iteration, chunk = stage.iteration or 0, stage.chunk or 0
    place = (iteration, chunk)
    number, refined = groups * GROUP, max(1, round(WRONG * groups)) * GROUP
    if record == "Policy":
        return filled(record, 1, policy_version=pa.array([iteration]), weights_sha256=pa.array([stage.key]))
    if record == "UpdateMetrics":
        return filled(record, 1, policy_version=pa.array([iteration]), loss=pa.array([float(draw.normal())]))
    if record == "Prompt":
        ids[("prompts", *place)] = new_ids("p", groups, draw)
        return filled(record, groups, prompt_id=ids[("prompts", *place)], problem_id=new_ids("q", groups, draw))
    if record == "Response":
        ids[("responses", *place)] = new_ids("r", number, draw)
        return _completions(record, number, draw, iteration).set_column(0, "response_id", ids[("responses", *place)])
    if record == "Critique":
        ids[("critiques", *place)] = new_ids("c", refined, draw)
        mine = {"critique_id": ids[("critiques", *place)], "response_id": ids[("responses", *place)].slice(0, refined)}
        return filled(record, refined, **mine, text=_words(refined, draw))
    if record == "Refinement":
        ids[("refinements", *place)] = new_ids("f", refined, draw)
        table = _completions(record, refined, draw, iteration).set_column(
            0, "refinement_id", ids[("refinements", *place)]
        )
        of = table.schema.get_field_index("response_id")
        table = table.set_column(of, "response_id", ids[("responses", *place)].slice(0, refined))
        return table.set_column(of + 1, "critique_id", ids[("critiques", *place)])
    if record == "Verdict":
        subjects = ids[("responses" if stage.stage == "verify" else "refinements", *place)]
        correct = pa.array(draw.random(len(subjects)) < min(0.9, 0.2 + iteration / 2000))
        reward = correct.cast(pa.int64()).cast(pa.float64())
        took = pa.array(draw.random(len(subjects)))
        return filled(record, len(subjects), subject_id=subjects, correct=correct, reward=reward, elapsed_ms=took)
    return filled(record, 0)


def _completions(record: str, number: int, draw: np.random.Generator, iteration: int) -> pa.Table:
    offsets = pa.array(np.arange(0, TOKENS * number + 1, TOKENS, dtype=np.int32))
    tokens = pa.array(draw.integers(0, 49152, TOKENS * number, dtype=np.int32))
    logprobs = pa.array(-draw.random(TOKENS * number, dtype=np.float32))
    return filled(
        record,
        number,
        text=_words(number, draw),
        index=pa.array(np.arange(number) % GROUP),
        token_ids=pa.ListArray.from_arrays(offsets, tokens),
        sampling_logprobs=pa.ListArray.from_arrays(offsets, logprobs),
        finish_reason=pa.array(["stop"] * number),
        policy_version=pa.array(np.full(number, max(0, iteration - 1))),
        seed=pa.array(draw.integers(0, 2**31, number)),
    )


def filled(record: str, number: int, **known: pa.Array) -> pa.Table:
    """Return a table of a record with these columns, and one value throughout each of the others."""
    schema = arrow_schema(RECORDS[record])
    return pa.Table.from_arrays(
        [known[one.name] if one.name in known else _constant(one.type, number) for one in schema], schema=schema
    )


def _constant(kind: pa.DataType, number: int) -> pa.Array:
    value: Any = [] if pa.types.is_list(kind) else "ok" if pa.types.is_string(kind) else 0
    return pa.array([False if pa.types.is_boolean(kind) else value] * number, type=kind)


def new_ids(prefix: str, number: int, draw: np.random.Generator) -> pa.Array:
    """Return ids like those of cgrpo_core.ids: the prefix, a hyphen, 20 hex characters."""
    digits = np.frombuffer(draw.bytes(10 * number).hex().encode(), dtype=np.uint8).reshape(number, 20)
    start = np.frombuffer(f"{prefix}-".encode(), dtype=np.uint8)
    text = np.hstack([np.tile(start, (number, 1)), digits])
    offsets = np.arange(0, text.size + 1, text.shape[1], dtype=np.int32)
    return pa.StringArray.from_buffers(number, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text)))


def _words(number: int, draw: np.random.Generator) -> pa.Array:
    words = pa.array(["It is 4.", "12", "I do not know.", "The answer is 7.", "x = 3", "half of it", "9 apples", "-1"])
    return words.take(pa.array(draw.integers(0, len(words), number)))
