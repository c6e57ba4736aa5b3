"""Agreement with golden vectors: inputs and outputs of the official release's functions, as plain JSON values.

Pure: reading files is the caller's. A case of a kind that is not known, or that lacks a field, disagrees and says why.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cgrpo_core.golden_case import Case, Malformed
from cgrpo_core.kl import kl_penalty
from cgrpo_core.masks import eos_mask
from cgrpo_core.params import SelectParams
from cgrpo_core.release_advantages import release_advantages
from cgrpo_core.release_losses import clipped_policy_loss, on_off_loss
from cgrpo_core.release_update import ReleaseBatch, release_step
from cgrpo_core.rewards import CORRECT_REWARD
from cgrpo_core.selection import select_refinements

Numbers = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case and how it disagrees; no disagreements: it agrees."""

    case_id: str
    disagreements: tuple[str, ...]


def check_cases(cases: Iterable[object]) -> list[CaseResult]:
    """Return one result a case, in order. What is not a JSON object is a case too, and disagrees."""
    results = []
    for position, case in enumerate(cases):
        name = case.get("id") if isinstance(case, Mapping) else None
        case_id = name if isinstance(name, str) else f"case {position}"
        results.append(CaseResult(case_id=case_id, disagreements=tuple(check_case(case))))
    return results


def check_case(case: object) -> list[str]:
    """Return the disagreements of one case with what is computed here; empty when all outputs and gradients agree."""
    try:
        if not isinstance(case, Mapping):
            raise Malformed(f"a case is a JSON object, this is {type(case).__name__}")
        reader = Case(case)
        kind = reader.text("kind")
        if kind not in KINDS:
            return [f"unknown kind {kind!r}; known: {', '.join(KINDS)}"]
        return _compare(KINDS[kind](reader), reader)
    except Malformed as fault:
        return [f"malformed: {fault}"]


def tolerance(name: str, dtype: str) -> float:
    """Return the largest |a-b|/(1+|b|) at which `name` agrees.

    The release divides by counts in float32 here and there; fractions and advantages are what that shows in.
    """
    if dtype == "float32":
        return 3e-6
    return 1e-7 if "frac" in name or name in ("advantages", "returns") else 2e-9


def _compare(found: Numbers, case: Case) -> list[str]:
    lines = []
    for name, value in found.items():
        expected = case.expected(name)
        if expected.shape != value.shape:
            lines.append(f"{name}: shape {list(value.shape)}, expected {list(expected.shape)}")
            continue
        limit = 0.0 if not value.is_floating_point() else tolerance(name, case.dtype_name)
        error = _error(value.detach().double(), expected)
        if not error <= limit:
            lines.append(f"{name}: error {error:.3g} is over {limit:.3g}")
    lines.extend(f"{name}: expected, but not computed by this kind" for name in case.unread())
    return lines


def _error(found: Tensor, expected: Tensor) -> float:
    """Return max |found - expected| / (1 + |expected|); equal infinities and two NaN agree, one NaN is far from all."""
    same = (found == expected) | (found.isnan() & expected.isnan())
    errors = torch.where(same, 0.0, (found - expected).abs() / (1 + expected.abs())).nan_to_num(nan=math.inf)
    return float(errors.max()) if errors.numel() else 0.0


def _advantage(case: Case) -> Numbers:
    rewards = case.grid("token_level_rewards")
    mask = case.mask("response_mask", rewards.shape)
    index = case.labels("index", rewards.shape[0])
    rule = case.choice("fn", ("grpo", "rloo", "rfpp_baseline"))
    advantages = release_advantages(
        rewards,
        mask,
        index,
        rule=rule,
        divide_by_std=case.flag("norm_adv_by_std"),
        epsilon=case.number("epsilon"),
    )
    return {"advantages": advantages, "returns": advantages}


def _on_off_loss(case: Case) -> Numbers:
    new, old, advantages, mask = _token_inputs(case)
    flags, target_probs = case.on_off_flags(new.shape)
    prefix_mask = case.mask("prefix_mask", new.shape)
    return _with_gradient(on_off_loss(old, new, advantages, mask, prefix_mask, flags, target_probs), new)


def _clipped_policy_loss(case: Case) -> Numbers:
    new, old, advantages, mask = _token_inputs(case)
    fallback = case.number("cliprange")
    modes = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
    outputs = clipped_policy_loss(
        old,
        new,
        advantages,
        mask,
        clip_low=case.number("cliprange_low", fallback),
        clip_high=case.number("cliprange_high", fallback),
        dual_clip=case.number("clip_ratio_c"),
        aggregate=case.choice("loss_agg_mode", modes),
    )
    return _with_gradient(outputs, new)


def _kl(case: Case) -> Numbers:
    logprobs = case.grid("logprob")
    ref_logprobs = case.grid("ref_logprob", logprobs.shape)
    estimator = case.choice("estimator", ("kl", "abs", "mse", "low_var_kl"))
    return {"output": kl_penalty(logprobs, ref_logprobs, estimator)}


def _select_refinement(case: Case) -> Numbers:
    size = case.count("n")
    scores = case.row("scores").tolist()
    if len(scores) % size:
        raise Malformed(f"{len(scores)} scores are not a multiple of n = {size}")
    params = SelectParams(keep=1, prefer="first_best")
    chosen = []
    for start in range(0, len(scores), size):
        group = [(str(index), scores[index]) for index in range(start, start + size)]
        chosen.append(int(select_refinements(group, params, seed=0)[0][0]))
    flags = [int(scores[index] == CORRECT_REWARD) for index in chosen]
    return {"chosen_index": torch.tensor(chosen), "flag_correct": torch.tensor(flags)}


def _eos_mask(case: Case) -> Numbers:
    return {"response_mask": eos_mask(case.token_ids("response"), case.token_id_or_ids("eos_token")).long()}


def _actor_step(case: Case) -> Numbers:
    new, old, advantages, mask = _token_inputs(case)
    step = release_step(
        ReleaseBatch(
            old_logprobs=old,
            logprobs=new,
            advantages=advantages,
            mask=mask,
            prefix_mask=case.mask("prefix_mask", new.shape),
        ),
        micro_batch_sizes=case.sizes("micro_batch_sizes", new.shape[0]),
        mini_batch_size=case.count("mini_batch_size"),
        dynamic_batches=case.flag("use_dynamic_bsz"),
        off_policy_loss=case.flag("use_off_policy_loss"),
        entropy_coef=case.number("entropy_coeff"),
    )
    logged = {f"metrics.{name}": torch.tensor(values, dtype=torch.float64) for name, values in step.metrics.items()}
    return {"grad_log_prob": step.gradient, **logged}


def _token_inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-probs (that take a gradient), old log-probs, advantages and response mask, all [B, T]."""
    new = case.grid("log_prob").requires_grad_(True)
    return (
        new,
        case.grid("old_log_prob", new.shape),
        case.grid("advantages", new.shape),
        case.mask("response_mask", new.shape),
    )


def _with_gradient(outputs: Numbers, logprobs: Tensor) -> Numbers:
    (gradient,) = torch.autograd.grad(outputs["pg_loss"], logprobs)
    return {**{f"outputs.{name}": value for name, value in outputs.items()}, "grad_log_prob": gradient}


KINDS: dict[str, Callable[[Case], Numbers]] = {
    "advantage": _advantage,
    "on_off_loss": _on_off_loss,
    "clipped_policy_loss": _clipped_policy_loss,
    "kl": _kl,
    "select_refinement": _select_refinement,
    "eos_mask": _eos_mask,
    "actor_step": _actor_step,
}
