"""The two arms of against_trl.py, each a process of its own: a line in, a measurement out as a line of JSON."""

import json
import random
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

GROUPS, GROUP = 8, 4
RESPONSES, PROMPT, RESPONSE = GROUPS * GROUP, 64, 128
THREADS, LR = 2, 1e-5


def reply(**row: Any) -> None:
    """Print a measurement."""
    print(json.dumps(row), flush=True)


def wait_for_line() -> None:
    """Wait until the next measurement is asked for; end when nobody asks any more."""
    if not sys.stdin.readline():
        sys.exit(0)


def prompts_of(model: str) -> list[list[int]]:
    """Return prompts of PROMPT tokens each, from a seed."""
    from transformers import AutoTokenizer

    tokenizer, draw = AutoTokenizer.from_pretrained(model), random.Random(0)
    words = [" sum", " of", " three", " and", " red", " apples", " then", " seven", " what", " is", " left", " more"]
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"][-1] for word in words]
    return [[draw.choice(ids) for _ in range(PROMPT)] for _ in range(GROUPS)]


def rewards_of(completions: list[list[int]]) -> list[float]:
    """Return a reward that differs within groups and is learnt by nobody: whether the token ids add up to even."""
    return [float(sum(ids) % 2) for ids in completions]


def trl_trainer(model: str, directory: str, steps: int, on_step_begin: Any = None, on_step_end: Any = None) -> Any:
    """Return TRL's GRPOTrainer with our lengths and optimizer, without a reference model."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            on_step_begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            on_step_end()

    tokenizer = AutoTokenizer.from_pretrained(model)
    config = GRPOConfig(
        output_dir=directory,
        use_cpu=True,
        bf16=False,
        use_vllm=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=RESPONSES,
        num_generations=GROUP,
        max_completion_length=RESPONSE,
        generation_kwargs={"min_new_tokens": RESPONSE},
        loss_type="dr_grpo",
        scale_rewards="none",
        beta=0.0,
        temperature=1.0,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        max_steps=steps,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        model_init_kwargs={"dtype": "float32"},
    )
    prompts = [{"prompt": tokenizer.decode(ids)} for ids in prompts_of(model)] * steps
    return GRPOTrainer(
        model=model,
        reward_funcs=lambda completion_ids, **_: rewards_of(completion_ids),
        args=config,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        callbacks=[Turns()] if on_step_begin else None,
    )


def run_trl(model: str) -> None:
    """Train with TRL, a step a line."""
    import torch

    torch.set_num_threads(THREADS)
    clock: dict[str, float] = {}

    def begin() -> None:
        wait_for_line()
        clock.update(wall=time.perf_counter(), cpu=time.process_time(), generate=0.0, generate_cpu=0.0)

    def end() -> None:
        seconds, cpu = time.perf_counter() - clock["wall"], time.process_time() - clock["cpu"]
        reply(
            seconds=seconds,
            cpu_seconds=cpu,
            generate_seconds=clock["generate"],
            generate_cpu_seconds=clock["generate_cpu"],
            update_seconds=seconds - clock["generate"],
            update_cpu_seconds=cpu - clock["generate_cpu"],
            peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        )

    with tempfile.TemporaryDirectory() as directory:
        trainer = trl_trainer(model, directory, 1000, begin, end)
        inner = trainer._generate_and_score_completions

        def timed(inputs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            made = inner(inputs)
            clock["generate"] += time.perf_counter() - wall
            clock["generate_cpu"] += time.process_time() - cpu
            return made

        trainer._generate_and_score_completions = timed
        trainer.train()


class OwnLoop:
    """Our sampler and trainer in one process, without Ray and Prefect around them."""

    def __init__(self, model: str, directory: str) -> None:
        import functools
        import os

        from tasks.engines.sampler_options import SamplerOptions

        options = SamplerOptions(max_model_len=PROMPT + RESPONSE, num_threads=THREADS, kv_cache_gib=1.0)
        os.environ.update(options.environment())
        import torch
        import vllm

        from tasks.engines.protocol import PolicyRef
        from tasks.engines.trainer_options import TrainerOptions
        from tasks.engines.trainer_rank import TrainerRank
        from tasks.engines.vllm_core import VllmCore
        from tasks.models import model_weights_digest

        vllm.SamplingParams = functools.partial(vllm.SamplingParams, ignore_eos=True)
        torch.set_num_threads(THREADS)
        self.core = VllmCore(options, model)
        self.rank = TrainerRank(0, 1, model, TrainerOptions(num_threads=THREADS, packed_tokens=1024))
        self.rank.join(self.rank.meeting_file())
        self.policy = PolicyRef(policy_version=0, weights_sha256=model_weights_digest(model))
        self.rank.load_weights(self.policy, model)
        self.core.load(self.policy, model)
        self.prompts, self.directory = prompts_of(model), Path(directory)

    def generate(self) -> list[Any]:
        """Return GROUP completions of each prompt."""
        from tasks.engines.protocol import SampleRequest, SamplingSettings

        settings = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=RESPONSE)
        for place in range(RESPONSES):
            prompt = tuple(self.prompts[place // GROUP])
            seed = self.policy.policy_version * 1000 + place
            request = SampleRequest(request_id=str(place), prompt_token_ids=prompt, seed=seed)
            self.core.add(f"{place}:{place}", request, settings)
        done: list[Any] = []
        while len(done) < RESPONSES:
            done += self.core.step()
        return [one.completion for one in sorted(done, key=lambda one: int(one.key.partition(":")[0]))]

    def update(self, completions: list[Any]) -> None:
        """Take one optimizer step on them."""
        from cgrpo_core.params import LossParams, OptimizerParams
        from tasks.engines.protocol import UpdateRequest

        report = self.rank.update(
            UpdateRequest(
                samples=self.samples(completions),
                loss=LossParams(kind="grpo"),
                optimizer=OptimizerParams(lr=LR, tokens_per_micro_batch=1024),
                max_response_tokens=RESPONSE,
                sampling_temperature=1.0,
                logprob_gap_max=1e-3,
            ),
            self.policy,
        )
        self.policy = report.policy

    def samples(self, completions: list[Any]) -> tuple[Any, ...]:
        """Return the training samples of Dr. GRPO's advantages."""
        from cgrpo_core.records import TrainingSample

        rewards = rewards_of([list(one.token_ids) for one in completions])
        samples = []
        for place, one in enumerate(completions):
            group = place // GROUP
            mean = sum(rewards[group * GROUP : (group + 1) * GROUP]) / GROUP
            samples.append(
                TrainingSample(
                    sample_id=str(place),
                    group_id=str(group),
                    origin="response",
                    prompt_token_ids=tuple(self.prompts[group]),
                    token_ids=one.token_ids,
                    sampling_logprobs=one.logprobs,
                    reward=rewards[place],
                    advantage=rewards[place] - mean,
                    weight=1.0 / GROUP,
                )
            )
        return tuple(samples)

    def sync(self) -> None:
        """Bring the new weights to the sampler, digests compared, as a run does."""
        path = self.directory / f"weights-{self.policy.policy_version}"
        self.rank.export_weights(str(path), self.policy)
        self.core.load(self.policy, str(path))


def run_cgrpo(model: str) -> None:
    """Train with our engines, a step a line."""
    with tempfile.TemporaryDirectory() as directory:
        loop = OwnLoop(model, directory)
        while True:
            wait_for_line()
            marks = [(time.perf_counter(), time.process_time())]
            completions = loop.generate()
            marks.append((time.perf_counter(), time.process_time()))
            loop.update(completions)
            marks.append((time.perf_counter(), time.process_time()))
            loop.sync()
            marks.append((time.perf_counter(), time.process_time()))
            spans = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks)]
            reply(
                seconds=sum(wall for wall, _ in spans),
                cpu_seconds=sum(cpu for _, cpu in spans),
                generate_seconds=spans[0][0],
                generate_cpu_seconds=spans[0][1],
                update_seconds=spans[1][0],
                update_cpu_seconds=spans[1][1],
                sync_seconds=spans[2][0],
                peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            )


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
    logprobs, _ = PolicyModule(trainer.model, 512)(*batch.inputs(), 1.0, False)
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


def run_memory(arm: str, rows: int, length: int, vocabulary: int) -> None:
    """Print the rise of this process's memory over one loss and its gradients."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(THREADS)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1024,
        num_hidden_layers=1,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    ids = torch.randint(2, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    advantages = torch.linspace(-1, 1, rows)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss = memory_loss_trl(model, ids, advantages) if arm == "trl" else memory_loss_own(model, ids, advantages)
    before = reset_peak()
    began, cpu = time.perf_counter(), time.process_time()
    loss().backward()
    reply(
        peak_gib=(peak() - before) / 2**20,
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu,
        table_gib=rows * length * vocabulary * 4 / 2**30,
    )


def reset_peak() -> int:
    """Forget the peak of this process's resident set; return the set in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> int:
    """Return the peak of the resident set since then, in KiB."""
    return status("VmHWM")


def status(name: str) -> int:
    """Return a figure of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def memory_loss_trl(model: Any, ids: Any, advantages: Any) -> Any:
    """Return a function that computes TRL's loss over rows of all but one token."""
    import types

    import torch
    from accelerate import Accelerator
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    trainer = GRPOTrainer.__new__(GRPOTrainer)
    trainer.accelerator = Accelerator(cpu=True)
    trainer.args = types.SimpleNamespace(delta=None, use_bias_correction_kl=False)
    settings = GRPOConfig.__dataclass_fields__
    values = {name: settings[name].default for name in ("top_entropy_quantile", "importance_sampling_level")}
    values |= {"off_policy_mask_threshold": None, "beta": 0.0, "loss_type": "dr_grpo", "use_vllm": False}
    values |= {"epsilon_low": 0.2, "epsilon_high": 0.2, "max_completion_length": ids.shape[1] - 1, "temperature": 1.0}
    for name, value in values.items():
        setattr(trainer, name, value)
    model.train()
    mask = torch.ones_like(ids)

    def loss() -> Any:
        logprobs, _, _ = trainer._get_per_token_logps_and_entropies(
            model, ids, mask, ids.shape[1] - 1, compute_entropy=True
        )
        ratio = (logprobs - logprobs.detach()).exp()
        clipped = ratio.clamp(0.8, 1.2)
        terms = -torch.min(ratio * advantages[:, None], clipped * advantages[:, None])
        return terms.sum() / (ids.shape[0] * (ids.shape[1] - 1))

    return loss


def memory_loss_own(model: Any, ids: Any, advantages: Any) -> Any:
    """Return a function that computes our loss over the same rows."""
    import torch

    from cgrpo_core.aggregation import denominators, step_size
    from cgrpo_core.loss_pull import loss_pull
    from cgrpo_core.loss_rows import LossRows
    from cgrpo_core.losses import policy_loss
    from cgrpo_core.params import LossParams
    from cgrpo_core.records import TrainingSample
    from tasks.engines.micro_batch import build_micro_batch
    from tasks.engines.policy_module import PolicyModule

    length = ids.shape[1] - 1
    rows = [
        (
            TrainingSample(
                sample_id=str(row),
                group_id=str(row),
                origin="response",
                prompt_token_ids=(int(ids[row, 0]),),
                token_ids=tuple(ids[row, 1:].tolist()),
                sampling_logprobs=(0.0,) * length,
                reward=0.0,
                advantage=float(advantages[row]),
                weight=1.0,
            ),
        )
        for row in range(ids.shape[0])
    ]
    batch = build_micro_batch(rows, torch.device("cpu"))
    params = LossParams(kind="grpo")
    weights = [1.0] * ids.shape[0]
    size = step_size([length] * ids.shape[0], weights, prompts=ids.shape[0], max_response_tokens=length)
    divide_by = denominators(params, size)
    module = PolicyModule(model.train(), 512)
    shared = {name: getattr(batch, name) for name in ("advantages", "weights", "off_policy", "mask")}
    pull = loss_pull(
        **shared,
        old_logprobs=None,
        sampling_logprobs=batch.sampling_logprobs,
        ref_logprobs=None,
        context_logprobs=None,
        params=params,
        divide_by=divide_by,
        factor=1.0,
    )

    def loss() -> Any:
        logprobs, entropy = module(*batch.inputs(), 1.0, True, pull)
        rows = LossRows(logprobs=logprobs, old_logprobs=logprobs.detach(), entropy=entropy, **shared)
        return policy_loss(rows, params, divide_by).loss

    return loss


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "memory":
        run_memory(words[0], int(words[1]), int(words[2]), int(words[3]))
    else:
        {"trl": run_trl, "cgrpo": run_cgrpo, "parity": run_parity}[what](words[0])
