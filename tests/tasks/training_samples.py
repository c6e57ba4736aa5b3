"""Training rows for the tests of the trainer: three groups on the tiny model's byte ids, from a seed."""

import random
from dataclasses import replace

from cgrpo_core.params import LossParams, OptimizerParams
from cgrpo_core.records import TrainingSample
from tasks.engines.protocol import UpdateRequest

RESPONSE_TOKENS = 10


def build_samples(seed: int = 1, groups: int = 3, rows: int = 4) -> tuple[TrainingSample, ...]:
    """Return groups of responses and one refinement, right in all groups but the second, which has no gradient."""
    source = random.Random(seed)
    samples = []
    for group in range(groups):
        prompt = tuple(source.randrange(250) for _ in range(source.randint(5, 12)))
        for row in range(rows):
            last = row == rows - 1
            tokens = tuple(source.randrange(250) for _ in range(source.randint(3, RESPONSE_TOKENS)))
            samples.append(
                TrainingSample(
                    sample_id=f"s{group}-{row}",
                    group_id=f"g{group}",
                    origin="refinement" if last else "response",
                    prompt_token_ids=prompt,
                    token_ids=tokens,
                    sampling_logprobs=(-5.8,) * len(tokens),
                    reward=float(last),
                    advantage=0.0 if group == 1 else 0.75 if last else -0.25,
                    weight=1.0 / rows,
                )
            )
    return tuple(samples)


def without_advantage(samples: tuple[TrainingSample, ...]) -> tuple[TrainingSample, ...]:
    """Return the same rows as a batch in which every group has equal rewards."""
    return tuple(replace(sample, advantage=0.0) for sample in samples)


def build_request(samples: tuple[TrainingSample, ...], *, gap: float | None = None, **optimizer: float):
    """Return an update over the samples with a learning rate at which one step shows."""
    settings = {"lr": 1e-4, "tokens_per_micro_batch": 48, **optimizer}
    return UpdateRequest(
        samples=samples,
        loss=LossParams(),
        optimizer=OptimizerParams(**settings),
        max_response_tokens=RESPONSE_TOKENS,
        sampling_temperature=1.0,
        logprob_gap_max=gap,
    )
