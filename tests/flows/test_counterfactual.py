"""One stored batch under several losses: which rows, advantages and losses are measured, and what is refused."""

import pytest
from fake_run import ROOT, fake_engines

from cgrpo_core.errors import UserError
from flows.counterfactual import OWN, largest_rows, measure, preset_blocks, requests_of
from tasks.engines.gradients import GradientReport, LossGradient
from tasks.policies import stored_request

PIPELINES = ROOT / "pipelines.yaml"


@pytest.fixture
def stored(ran):
    from storage.artifacts import Store

    store = Store(ran[0])
    update = next(stage for stage in ran[1].stages if stage.stage == "update" and stage.iteration == 2)
    return stored_request(store, store.find(update.key))


@pytest.fixture
def asked(monkeypatch):
    """What a trainer would be asked; instead of an answer, empty gradients."""
    fake_engines(monkeypatch)
    calls = []

    def measure_losses(home, base_dir, update, requests, rows):
        calls.append((update, requests, list(rows)))
        losses = tuple(
            LossGradient(
                name=name,
                loss=0.5,
                grad_norm=1.0,
                samples_trained=3,
                origin_norms={"response": 1.0},
                origin_losses={"response": 0.5},
                row_losses={},
                row_pulls={},
            )
            for name in requests
        )
        size = range(len(losses))
        cosines = [[1.0 if a == b else 0.25 for b in size] for a in size]
        return GradientReport(losses=losses, cosines=cosines, weights_before="a" * 64, weights_after="a" * 64)

    monkeypatch.setattr("tasks.counterfactual.measure_losses", measure_losses)
    monkeypatch.setattr("flows.counterfactual.ray_cluster", NoCluster)
    return calls


class NoCluster:
    def __enter__(self):
        return False

    def __exit__(self, *_):
        return None


def test_the_run_s_own_loss_comes_first_over_the_stored_advantages(stored):
    requests = requests_of(stored, preset_blocks(PIPELINES, "critique-grpo", ["paper_v6"]))
    assert list(requests) == [OWN, "paper_v6"]
    assert requests[OWN] == stored
    assert requests["paper_v6"] == stored, "paper_v6 is what the run was trained with"


def test_a_preset_brings_its_own_advantages_and_loss_to_the_same_rows(stored):
    requests = requests_of(stored, preset_blocks(PIPELINES, "critique-grpo", ["official_intended", "dr_grpo"]))
    for name, kind in (("official_intended", "critique_grpo"), ("dr_grpo", "grpo")):
        request = requests[name]
        assert request.loss.kind == kind
        assert [row.sample_id for row in request.samples] == [row.sample_id for row in stored.samples]
        assert [row.token_ids for row in request.samples] == [row.token_ids for row in stored.samples]
        sizes = {
            row.group_id: sum(other.group_id == row.group_id for other in stored.samples) for row in stored.samples
        }
        assert [row.weight for row in request.samples] == [1 / sizes[row.group_id] for row in stored.samples]


def test_a_preset_of_another_pipeline_can_be_compared_and_an_unknown_one_is_refused_with_the_nearest():
    assert preset_blocks(PIPELINES, "critique-grpo", ["gspo"])["gspo"][1].ratio == "sequence"
    with pytest.raises(UserError) as caught:
        preset_blocks(PIPELINES, "critique-grpo", ["dr_grop"])
    assert "dr_grpo" in caught.value.hint


def test_the_rows_taken_alone_are_those_that_weigh_most(stored):
    chosen = largest_rows(stored.samples, 3)
    weights = {row.sample_id: abs(row.weight * row.advantage) * len(row.token_ids) for row in stored.samples}
    assert len(chosen) == 3
    assert min(weights[one] for one in chosen) >= max(weights[one] for one in weights if one not in chosen)
    assert largest_rows(stored.samples, 0) == []


def test_it_says_what_it_will_do_and_asks_the_trainer_at_the_policy_before(ran, asked):
    said = []
    found = measure(ran[0], "one@2", presets=["paper_v6", "dr_grpo"], rows=2, file=PIPELINES, progress=said.append)
    assert "3 losses over the" in said[0]
    assert "at policy 1" in said[0]
    assert "no step is taken" in said[0]
    update, requests, rows = asked[0]
    assert (update.iteration, list(requests), len(rows)) == (2, [OWN, "paper_v6", "dr_grpo"], 2)
    assert found["cosines"]["run"]["dr_grpo"] == 0.25
    assert found["weights_before"] == found["weights_after"]


@pytest.mark.parametrize(
    ("place", "said"), [("one", "one@2"), ("one@x", "one@2"), ("one@9", "1 to 2"), ("on@1", "one")]
)
def test_a_place_that_is_none_is_explained(ran, asked, place, said):
    with pytest.raises(UserError) as caught:
        measure(ran[0], place, presets=["grpo"], rows=0, file=PIPELINES, progress=lambda message: None)
    assert said in caught.value.hint
    assert asked == []
