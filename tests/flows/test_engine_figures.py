"""The way of the weights and the prefix cache, as an iteration's row and `cgrpo status` show them."""

from dataclasses import replace

import pytest
from fake_run import fake_engines, fake_inputs, fake_run

from flows.engine_figures import figures_of_iteration, lines, prefix_cache, weight_sync
from flows.time_bar import spans_of
from storage.artifacts import Store


@pytest.fixture
def published(tmp_path, monkeypatch):
    fake_engines(monkeypatch)
    plan = fake_run(tmp_path, fake_inputs(tmp_path))
    store = Store(tmp_path)
    of_two = {(stage.stage, stage.chunk): stage for stage in plan.stages if stage.iteration == 2}

    def measured(stage, chunk, **metrics):
        manifest = store.find(of_two[stage, chunk].key)
        return of_two[stage, chunk], replace(manifest, started_at=100.0, ended_at=110.0, metrics=metrics)

    return plan, store, measured


def test_the_prefix_cache_of_a_stage_is_over_all_its_chunks(published):
    _, _, measured = published
    found = prefix_cache(
        [
            measured("rollout", 0, prompt_tokens=100, cached_prompt_tokens=80),
            measured("rollout", 1, prompt_tokens=300, cached_prompt_tokens=120),
            measured("refine", 0, prompt_tokens=0, cached_prompt_tokens=0),  # no critique: nothing was asked
        ]
    )
    assert found == {"rollout": 0.5}


def test_the_way_of_the_weights_is_told_by_its_parts(published):
    _, _, measured = published
    found = weight_sync(
        [
            measured("update", None, digest_seconds=0.25, export_seconds=0.5),
            measured("rollout", 0, load_seconds=1.0, load_reset_seconds=0.125),
            measured("rollout", 1, sampling_seconds=4.0),  # found the policy served
            measured("evaluate", None, load_seconds=3.0, load_reset_seconds=0.125),
        ]
    )
    assert found == {"digest": 0.25, "export": 0.5, "load": 2.0, "reset": 0.125}
    told = lines({"weight_sync": found, "prefix_cache": {"rollout": 0.5}})
    assert told == [
        "weight sync: digest 0.25 s, export 0.50 s, load 2.00 s, reset 0.12 s",
        "prompt tokens from the prefix cache: rollout 50%",
    ]


def test_the_bar_gives_loading_and_writing_weights_a_part_of_their_own(published):
    _, _, measured = published
    assert list(spans_of(*measured("rollout", 0, lease_seconds=3.0, load_seconds=1.0))) == [
        (102.0, 103.0, "weight sync"),
        (100.0, 102.0, "sampling"),
        (103.0, 110.0, "sampling"),
    ]
    assert list(spans_of(*measured("update", None, export_seconds=2.0))) == [
        (108.0, 110.0, "weight sync"),
        (100.0, 108.0, "training"),
    ]


def test_every_sampling_stage_stores_what_the_prefix_cache_had(published):
    plan, store, _ = published
    sampled = [stage for stage in plan.stages if stage.stage in ("rollout", "refine", "evaluate", "evaluate_base")]
    assert len(sampled) > 4
    assert all("cached_prompt_tokens" in store.find(stage.key).metrics for stage in sampled)
    assert figures_of_iteration(plan.stages, store, 2)["prefix_cache"]["rollout"] == 0.0  # a fake has no cache
