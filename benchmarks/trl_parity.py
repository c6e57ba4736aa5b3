"""Loss and gradients of TRL and of ours from the same rows and advantages, for against_trl.py."""

import tempfile
from typing import Any

from trl_arms import RESPONSE, prompts_of, reply, trl_trainer, wait_for_line


def both_gradients(model: str, directory: str) -> tuple[dict[str, Any], dict[str, Any], float, float]:
    """Return the gradients and losses that TRL and we get from the same rows and advantages."""
    import torch

    from cgrpo_core.aggregation import denominators, step_size
    from cgrpo_core.loss_rows import LossRows
    from cgrpo_core.losses import policy_loss
    from cgrpo_core.params import LossParams
    from cgrpo_core.records import TrainingSample
    from tasks.engines.micro_batch import build_micro_batch
    from tasks.engines.policy_module import PolicyModule

    draw = torch.Generator().manual_seed(1)
    prompts = torch.tensor(prompts_of(model)[:2]).repeat_interleave(2, dim=0)
    completions = torch.randint(1000, 20000, (4, RESPONSE), generator=draw)
    completions[:2] = prompts[:2].repeat(1, 2)  # likely tokens beside unlikely ones
    advantages = torch.tensor([0.5, -0.5, 1.5, -0.25])
    trainer = trl_trainer(model, directory, 1)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    ones = torch.ones_like
    inputs = {"prompt_ids": prompts, "prompt_mask": ones(prompts), "completion_ids": completions}
    inputs |= {"completion_mask": ones(completions), "advantages": advantages}
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    rows = [
        TrainingSample(
            sample_id=str(row),
            group_id=str(row // 2),
            origin="response",
            prompt_token_ids=tuple(prompts[row].tolist()),
            token_ids=tuple(completions[row].tolist()),
            sampling_logprobs=(0.0,) * RESPONSE,
            reward=0.0,
            advantage=float(advantages[row]),
            weight=0.5,
        )
        for row in range(4)
    ]
    batch = build_micro_batch([(rows[0], rows[1]), (rows[2], rows[3])], torch.device("cpu"))
    logprobs, *_ = PolicyModule(trainer.model, 512)(*batch.inputs(), 1.0, False)
    size = step_size([RESPONSE] * 4, [0.5] * 4, prompts=2, max_response_tokens=RESPONSE)
    params = LossParams(kind="grpo")
    given = LossRows(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),
        advantages=batch.advantages,
        weights=batch.weights,
        off_policy=batch.off_policy,
        mask=batch.mask,
    )
    ours = policy_loss(given, params, denominators(params, size)).loss
    ours.backward()
    return gradients, {n: p.grad for n, p in trainer.model.named_parameters()}, float(theirs), float(ours)


def run_parity(model: str) -> None:
    """Compare loss and gradients once."""
    import torch

    wait_for_line()
    with tempfile.TemporaryDirectory() as directory:
        theirs, ours, their_loss, our_loss = both_gradients(model, directory)
    difference = torch.stack([(theirs[name] - ours[name]).abs().max() for name in theirs]).max()
    squares = [(float((theirs[n] - ours[n]).square().sum()), float(theirs[n].square().sum())) for n in theirs]
    relative = (sum(a for a, _ in squares) / sum(b for _, b in squares)) ** 0.5
    reply(
        trl_loss=their_loss,
        cgrpo_loss=our_loss,
        loss_difference=abs(their_loss - our_loss),
        gradient_max_difference=float(difference),
        gradient_relative_difference=relative,
    )


if __name__ == "__main__":
    import sys

    run_parity(sys.argv[1])
