"""The two arms of the steps of against_trl.py, each a process: a line in, a measurement out as a line of JSON."""

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


class OwnUpdates:
    """A trainer in this process that holds a policy, and the prompts of its updates."""

    def __init__(self, model: str, **options: Any) -> None:
        import torch

        from tasks.engines.protocol import PolicyRef
        from tasks.engines.trainer_options import TrainerOptions
        from tasks.engines.trainer_rank import TrainerRank
        from tasks.models import model_weights_digest

        torch.set_num_threads(THREADS)
        self.rank = TrainerRank(0, 1, model, TrainerOptions(num_threads=THREADS, **options))
        self.rank.join(self.rank.meeting_file())
        self.policy = PolicyRef(policy_version=0, weights_sha256=model_weights_digest(model))
        self.rank.load_weights(self.policy, model)
        self.prompts = prompts_of(model)

    def update(self, completions: list[Any], tokens: int = 1024, logprob_gap_max: float | None = 1e-3) -> None:
        """Take one optimizer step on them, so many tokens a micro-batch."""
        from cgrpo_core.params import LossParams, OptimizerParams
        from tasks.engines.protocol import UpdateRequest

        report = self.rank.update(
            UpdateRequest(
                samples=self.samples(completions),
                loss=LossParams(kind="grpo"),
                optimizer=OptimizerParams(lr=LR, tokens_per_micro_batch=tokens),
                max_response_tokens=RESPONSE,
                sampling_temperature=1.0,
                logprob_gap_max=logprob_gap_max,
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


class OwnLoop(OwnUpdates):
    """Our sampler and trainer in one process, without Ray and Prefect around them."""

    def __init__(self, model: str, directory: str) -> None:
        import functools
        import os

        from tasks.engines.sampler_options import SamplerOptions

        options = SamplerOptions(max_model_len=PROMPT + RESPONSE, num_threads=THREADS, kv_cache_gib=1.0)
        os.environ.update(options.environment())
        import vllm

        from tasks.engines.vllm_core import VllmCore

        vllm.SamplingParams = functools.partial(vllm.SamplingParams, ignore_eos=True)
        self.core, self.directory = VllmCore(options, model), Path(directory)
        super().__init__(model, packed_tokens=1024, products="onednn")
        self.core.load(self.policy, model)

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


if __name__ == "__main__":
    {"trl": run_trl, "cgrpo": run_cgrpo}[sys.argv[1]](sys.argv[2])
