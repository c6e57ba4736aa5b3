"""The trainer as its callers see it: a handle over one named Ray actor a rank. It imports neither torch nor DeepSpeed.

Actors are never restarted by Ray: a restarted rank would hold blank weights. If one dies or is stuck, all are ended,
and the caller starts a new trainer from a stored checkpoint.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from cgrpo_core.errors import UserError
from tasks.engines.actors import GRACE_SECONDS, INFO, NAMESPACE, answer, call_all, find_actor, stop_actors
from tasks.engines.deadlines import DEADLINE_S, Pulse, check_deadline
from tasks.engines.faults import EngineLost
from tasks.engines.memory import largest
from tasks.engines.protocol import PolicyRef, UpdateReport, UpdateRequest
from tasks.engines.trainer_options import TrainerOptions
from tasks.engines.trainer_rank import TrainerRank

if TYPE_CHECKING:
    from tasks.engines.gradients import GradientReport

CPU_THREADS = 2  # shared among the ranks of a trainer without a GPU, unless options.num_threads says otherwise


class DeepSpeedTrainer:
    """A Trainer (protocol.py) over rank actors. Keep it as long as the actors must live, unless they are detached."""

    def __init__(self, ranks: list[Any], deadline_s: float = DEADLINE_S) -> None:
        self._ranks = ranks
        self._deadline_s = deadline_s

    def held(self) -> PolicyRef | None:
        """Return the policy held, or None."""
        held: PolicyRef | None = self._call("held")
        return held

    def load_weights(self, policy: PolicyRef, weights_dir: str) -> PolicyRef:
        """Start from weights with a fresh optimizer; raise PolicyMismatch if the digest is another."""
        loaded: PolicyRef = self._call("load_weights", policy, weights_dir)
        return loaded

    def load_checkpoint(self, policy: PolicyRef, checkpoint_dir: str) -> PolicyRef:
        """Take weights, optimizer, scheduler and RNG; raise PolicyMismatch if the digest is another."""
        loaded: PolicyRef = self._call("load_checkpoint", policy, checkpoint_dir)
        return loaded

    def update(self, request: UpdateRequest, expect: PolicyRef) -> UpdateReport:
        """Take the optimizer steps of one iteration; the policy held afterwards has version `expect` + 1.

        Raises PolicyMismatch, and LogprobGapExceeded before any step was taken.
        """
        import ray

        report: UpdateReport = self._call("update", ray.put(request), expect)
        return report

    def gradients(
        self, requests: Mapping[str, UpdateRequest], rows: Sequence[str], expect: PolicyRef
    ) -> "GradientReport":
        """Return what each loss makes of its batch at the policy held (gradients.py); no step is taken."""
        import ray

        report: GradientReport = self._call("gradients", ray.put(dict(requests)), list(rows), expect)
        return report

    def export_weights(self, directory: str, expect: PolicyRef) -> None:
        """Write the weights in Hugging Face format into a new directory."""
        self._call("export_weights", directory, expect)

    def send_weights(self, samplers: Sequence[str], backend: str, expect: PolicyRef) -> None:
        """Send the weights to these sampler actors, by a backend of vLLM's weight-transfer API."""
        self._call("send_weights", list(samplers), backend, expect)

    def save_checkpoint(self, directory: str, expect: PolicyRef) -> None:
        """Write a checkpoint into a new directory."""
        self._call("save_checkpoint", directory, expect)

    def peak_rss_bytes(self) -> list[int]:
        """Return each rank's largest resident set so far."""
        import ray

        sizes: list[int] = ray.get([rank.peak_rss_bytes.remote() for rank in self._ranks])
        return sizes

    def peak_memory(self) -> dict[str, int]:
        """Return the peaks of the rank that needs most."""
        import ray

        return largest(ray.get([rank.peak_memory.remote() for rank in self._ranks]))

    def kill(self) -> None:
        """End all ranks."""
        import ray

        for rank in self._ranks:
            ray.kill(rank, no_restart=True)

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method on all ranks at once and return rank 0's answer.

        An error of a rank is raised as it was there, a dead actor as EngineLost, whichever rank is heard first: those
        that a dead one leaves behind fail too. If one died, or others sit in a collective that no one will end, all
        ranks are ended.
        """
        import ray

        calls = [getattr(actor, method).remote(*arguments) for actor in self._ranks]
        errors: list[Exception] = []
        waiting = list(calls)
        pulse = _pulse(self._ranks, self._deadline_s)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=GRACE_SECONDS if errors else pulse.poll_s)
            if not done and errors:
                break
            try:
                if done:
                    answer(_name(calls.index(done[0])), done[0])
                pulse.check([_name(calls.index(call)) for call in waiting])
            except Exception as error:  # noqa: BLE001 - raised below, once it is known what became of the other ranks
                errors.append(error)
        lost = [error for error in errors if isinstance(error, EngineLost)]
        if lost or waiting:
            self.kill()
        if errors:
            raise (lost or errors)[0]
        return ray.get(calls[0])


def start_trainer(name: str, declaration: Mapping[str, Any], base_model_dir: str, detached: bool) -> DeepSpeedTrainer:
    """Start one actor a replica, named `{name}-rank{i}`, and join them into a process group; no weights are loaded yet.

    Ranks of that name that are left from before are ended first. Raises UserError for a declaration that cannot be.
    """
    import ray

    world_size, options = _world_size(declaration), read_options(declaration)
    stop_trainer(name, declaration)
    resources = dict(declaration.get("resources") or {})
    actor_class = ray.remote(concurrency_groups={INFO: 1})(TrainerRank)
    ranks = [
        actor_class.options(
            name=rank_name,
            namespace=NAMESPACE,
            lifetime="detached" if detached else None,
            max_restarts=0,
            max_task_retries=0,
            num_cpus=resources.get("num_cpus", 0),
            num_gpus=resources.get("num_gpus", 0),
        ).remote(rank, world_size, base_model_dir, options)
        for rank, rank_name in enumerate(_rank_names(name, declaration))
    ]
    trainer = DeepSpeedTrainer(ranks, options.deadline_s)
    trainer._call("join", ray.get(ranks[0].meeting_file.remote()))
    return trainer


def find_trainer(name: str, declaration: Mapping[str, Any]) -> DeepSpeedTrainer | None:
    """Return the running trainer of that name, or None if any of its ranks is missing, dead or alone.

    Who starts it may be killed before the ranks have met. Such ranks are no trainer, and `start_trainer` ends them.
    """
    ranks = [find_actor(rank_name) for rank_name in _rank_names(name, declaration)]
    if any(rank is None for rank in ranks):
        return None
    deadline_s = read_options(declaration).deadline_s
    trainer = DeepSpeedTrainer(ranks, deadline_s)
    try:
        if not _all_joined(ranks, deadline_s):
            return None
        trainer.held()
    except EngineLost:
        return None
    return trainer


def _name(rank: int) -> str:
    return f"trainer, rank {rank}"


def _pulse(ranks: list[Any], deadline_s: float) -> Pulse:
    """A rank that computes answers in a thread of its own; one that is stopped, or whose process hangs, does not."""
    actors = {_name(number): rank for number, rank in enumerate(ranks)}
    return Pulse(actors, lambda rank: rank.meeting.options(concurrency_group=INFO).remote(), deadline_s)


def _all_joined(ranks: list[Any], deadline_s: float) -> bool:
    """Tell whether all ranks are in one process group, giving those that are on their way a grace to arrive."""
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        calls = [rank.meeting.options(concurrency_group=INFO).remote() for rank in ranks]
        states = set(call_all({_name(number): call for number, call in enumerate(calls)}, _pulse(ranks, deadline_s)))
        if states == {"joined"}:
            return True
        if "alone" in states or time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def stop_trainer(name: str, declaration: Mapping[str, Any]) -> None:
    """End all ranks of that name that run, and wait until their names are free again."""
    stop_actors(_rank_names(name, declaration))


def read_options(declaration: Mapping[str, Any]) -> TrainerOptions:
    """Return the options of a declaration with defaults filled in. Raises UserError for what cannot be."""
    given = dict(declaration.get("options") or {})
    known = {field.name for field in fields(TrainerOptions)} - {"on_cpu"}
    if unknown := sorted(set(given) - known):
        raise UserError(f"engines.trainer.options has no {unknown[0]!r}", f"it has {', '.join(sorted(known))}")
    on_cpu = not (declaration.get("resources") or {}).get("num_gpus")
    given.setdefault("num_threads", max(1, CPU_THREADS // _world_size(declaration)))
    options = TrainerOptions(**given, on_cpu=on_cpu)
    check_deadline("engines.trainer.options", options.deadline_s)
    if options.zero_stage not in (0, 1, 2, 3):
        raise UserError(f"engines.trainer.options.zero_stage is {options.zero_stage}", "it is 0, 1, 2 or 3")
    if options.dtype not in ("float32", "bfloat16"):
        raise UserError(f"engines.trainer.options.dtype is {options.dtype}", "it is float32 or bfloat16")
    if options.dtype == "bfloat16" and options.zero_stage == 0:
        raise UserError("engines.trainer.options: bfloat16 needs zero_stage 1, 2 or 3", "set zero_stage: 1")
    if options.products not in ("torch", "onednn"):
        raise UserError(f"engines.trainer.options.products is {options.products}", "it is torch or onednn")
    if options.products == "onednn" and (not on_cpu or options.dtype != "float32"):
        raise UserError("engines.trainer.options.products: onednn is for float32 on the CPU", "leave it out")
    if options.compile and (on_cpu or options.zero_stage == 3):
        raise UserError(
            "engines.trainer.options.compile is for a GPU with zero_stage 0, 1 or 2: stage 3 gathers weights in hooks",
            "leave it out",
        )
    return options


def _world_size(declaration: Mapping[str, Any]) -> int:
    replicas = int(declaration.get("replicas", 1))
    if replicas < 1:
        raise UserError(f"engines.trainer.replicas is {replicas}", "it is 1 or more")
    return replicas


def _rank_names(name: str, declaration: Mapping[str, Any]) -> list[str]:
    return [f"{name}-rank{rank}" for rank in range(_world_size(declaration))]
