"""Gradients of a batch under several losses, at one policy: those of the update itself, and no step is taken."""

from dataclasses import replace

import pytest
from training_samples import build_request, build_samples

from cgrpo_core.params import LossParams, ShapingParams
from tasks.engines.protocol import PolicyMismatch, PolicyRef
from tasks.engines.trainer_options import TrainerOptions
from tasks.engines.trainer_rank import TrainerRank

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("process_group")]
UNSHAPED = LossParams(shaping=ShapingParams(kind="none"))
GRPO = LossParams(kind="grpo", aggregate="sequence_mean")


@pytest.fixture
def start(model_dir, base):
    def started(stage=0, **options):
        rank = TrainerRank(0, 1, str(model_dir), TrainerOptions(zero_stage=stage, **options))
        rank.load_weights(base, str(model_dir))
        return rank

    return started


def requests(**losses):
    request = build_request(build_samples())
    return {name: replace(request, loss=loss) for name, loss in losses.items()}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_loss_and_norm_are_those_of_the_update_and_the_update_is_not_disturbed(start, stage):
    penalised = replace(GRPO, kl_coef=0.1)  # no row is without gradient then, but those of refinements
    asked = requests(paper=LossParams(), unshaped=UNSHAPED, grpo=GRPO, kl=penalised)
    rank = start(stage)
    held = rank.held()
    digest = rank._compute_digest()
    report = rank.gradients(asked, [], held)
    assert rank.held() == held
    assert report.weights_before == report.weights_after == digest
    for found in report.losses:
        fresh = start(stage)
        update = fresh.update(asked[found.name], fresh.held())
        assert found.loss == pytest.approx(update.loss, abs=1e-8)
        assert found.grad_norm == pytest.approx(update.grad_norm, rel=1e-5)
        assert found.samples_trained == update.samples_trained == (11 if found.name == "kl" else 8)
    fresh = start(stage)
    assert rank.update(asked["paper"], held).policy == fresh.update(asked["paper"], fresh.held()).policy


def test_rows_and_origins_add_up_to_the_whole(start):
    rank = start(packed_tokens=64)
    trained = [sample.sample_id for sample in build_samples() if sample.advantage]
    found = rank.gradients(requests(paper=LossParams(entropy_coef=0.01)), trained, rank.held()).losses[0]
    assert sum(found.row_losses.values()) == pytest.approx(found.loss, abs=1e-8)
    assert sum(found.origin_losses.values()) == pytest.approx(found.loss, abs=1e-12)
    assert set(found.row_pulls) == set(trained)
    assert sum(found.row_pulls.values()) == pytest.approx(1.0, abs=1e-5)
    assert set(found.origin_norms) == {"response", "refinement"}
    assert found.grad_norm <= sum(found.origin_norms.values())


def test_only_the_rows_that_were_asked_for_are_taken_alone(start):
    rank = start()
    found = rank.gradients(requests(paper=LossParams()), ["s0-3", "s1-0"], rank.held()).losses[0]
    assert set(found.row_pulls) == {"s0-3"}, "s1-0 has no advantage, so it has no gradient either"


def test_cosines_are_1_for_the_same_loss_and_minus_1_for_its_opposite(start):
    same = build_request(build_samples())
    opposite = replace(same, samples=tuple(replace(row, advantage=-row.advantage) for row in same.samples))
    rank = start()
    cosines = rank.gradients({"a": same, "b": same, "c": opposite}, [], rank.held()).cosines
    expected = [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]
    for row, wanted in zip(cosines, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-6)


def test_a_batch_without_gradient_has_norm_0_and_no_direction(start):
    flat = build_request(tuple(replace(row, advantage=0.0) for row in build_samples()))
    rank = start()
    report = rank.gradients({"flat": flat, "paper": build_request(build_samples())}, [], rank.held())
    assert (report.losses[0].loss, report.losses[0].grad_norm, report.losses[0].row_losses) == (0.0, 0.0, {})
    assert report.cosines[0] == [None, None]


def test_another_policy_than_the_one_held_is_refused(start):
    rank = start()
    with pytest.raises(PolicyMismatch):
        rank.gradients(requests(paper=LossParams()), [], PolicyRef(policy_version=3, weights_sha256="0" * 64))
