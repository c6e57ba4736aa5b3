"""Flags of the release in combinations that no golden file has, against the formulas written out in numpy.

Each combination goes through the checker as a case would: a folder with other flags is computed as it should be.
Gradients are central differences in float64.
"""

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cgrpo_core.golden import check_case

Grid = NDArray[np.float64]
RESHAPES = ("no_reshape", "logp", "p_logp", "square_root", "pow", "p_div_p_0.1", "p_div_p_0.3", "p_div_p_0.5")
ROWS, LENGTH, STEP = 6, 4, 1e-6


def mean(values: Grid, mask: Grid) -> float:
    return float((values * mask).sum() / (mask.sum() + 1e-8))


def reshaped(kind: str, p: Grid, weight: float, exponent: float) -> Grid:
    if kind.startswith("p_div_p_"):
        return p / (p + float(kind.removeprefix("p_div_p_")))
    return {
        "no_reshape": p,
        "logp": weight * np.log(p),
        "p_logp": p + weight * np.log(p),
        "square_root": np.sqrt(p),
        "pow": p**exponent,
    }[kind]


def on_ratio(flags: dict[str, Any], new: Grid, old: Grid) -> Grid:
    kind = flags["on_policy_reshape"]
    if kind.startswith("p_div_p_"):
        return reshaped(kind, np.exp(new), 0, 0) / reshaped(kind, np.exp(old), 0, 0)
    weight = 1.0 if kind == "logp" else flags["on_policy_reshape_weight"]  # here alone the weight is not used
    return reshaped(kind, np.exp(new - old), weight, flags["on_policy_reshape_pow_exp"])


def on_off(case: dict[str, Any], new: Grid) -> dict[str, float]:
    """The eleven outputs, from the description that comes with the golden files."""
    flags, grids = case["flags"], {name: np.array(case[name], dtype=float) for name in INPUTS}
    old, a, mask, off = (grids[name] for name in INPUTS)
    p, ratio = np.exp(new), on_ratio(flags, new, old)
    on = -a * ratio
    clip_fraction = 0.0
    if not flags["loss_remove_clip"]:
        low, high = 1 - flags["cliprange"], max(flags["clip_upper_bound"], 1 + flags["cliprange"])
        edge = -a * np.clip(ratio, low, high)
        clip_fraction = mean((edge > on).astype(float), mask)
        on = np.maximum(on, edge)
    if flags["target_probs"] is None:
        kind, weight, exponent = (flags[f"off_policy_reshape{end}"] for end in ("", "_weight", "_pow_exp"))
        f = reshaped(kind, p, weight, exponent)
    else:
        f = p / (np.array(flags["target_probs"]) + 1e-6) * off
    at_max = at_min = np.zeros_like(f)
    if flags["off_max_clip"] is not None:
        f = np.minimum(f, flags["off_max_clip"])
        at_max = (f == flags["off_max_clip"]).astype(float)
    if flags["off_min_clip"] is not None:
        f = np.maximum(f, flags["off_min_clip"])
        at_min = (f == flags["off_min_clip"]).astype(float)
    kept = mask if flags["all_max_clip"] is None else mask * (p <= flags["all_max_clip"])
    losses = -a * f * off + on * (1 - off)
    total = float((losses * kept).sum() / LENGTH) if flags["loss_remove_token_mean"] else mean(losses, kept)
    return {
        "pg_loss": total,
        "off_pg_loss": mean(-a * f, off * mask),
        "on_pg_loss": mean(on, (1 - off) * mask),
        "off_pg_clipfrac": 0.0,
        "on_pg_clipfrac": clip_fraction,
        "ppo_kl": mean(old - new, mask),
        "off_policy_prob": mean(p, off * mask),
        "on_policy_prob": mean(np.exp(old), (1 - off) * mask),
        "off_ratio_mean": mean(f, off * mask),
        "off_ratio_max_clip_frac": mean(at_max, off * mask),
        "off_ratio_min_clip_frac": mean(at_min, off * mask),
    }


INPUTS = ("old_log_prob", "advantages", "response_mask", "prefix_mask")


def slopes(loss: Callable[[Grid], float], new: Grid) -> list[list[float]]:
    gradient = np.zeros_like(new)
    for place in np.ndindex(*new.shape):
        up, down = new.copy(), new.copy()
        up[place] += STEP
        down[place] -= STEP
        gradient[place] = (loss(up) - loss(down)) / (2 * STEP)
    return [[float(value) for value in row] for row in gradient]


def random_inputs(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    new = -2.5 * rng.random((ROWS, LENGTH)) - 0.05
    lengths = rng.integers(1, LENGTH + 1, ROWS)
    prefix = [[int(row % 3 == 0 or (row == 1 and t < 2)) for t in range(LENGTH)] for row in range(ROWS)]
    return {
        "log_prob": new.tolist(),
        "old_log_prob": (new + 0.4 * rng.standard_normal((ROWS, LENGTH))).tolist(),
        "advantages": rng.standard_normal((ROWS, LENGTH)).tolist(),
        "response_mask": (np.arange(LENGTH)[None, :] < lengths[:, None]).astype(int).tolist(),
        "prefix_mask": prefix,
    }


def combinations(count: int) -> list[dict[str, Any]]:
    every = itertools.product(
        RESHAPES,
        RESHAPES,
        (True, False),
        (True, False),
        (None, 0.6),
        (None, 0.15),
        (None, 0.55),
        (False, True),
        (1.0, 2.0),
    )
    chosen = random.Random(5).sample(list(every), count)
    names = ("off_policy_reshape", "on_policy_reshape", "loss_remove_token_mean", "loss_remove_clip", "off_max_clip")
    return [
        dict(zip((*names, "off_min_clip", "all_max_clip", "with_target", "clip_upper_bound"), one, strict=True))
        for one in chosen
    ]


@pytest.mark.parametrize("number", range(120))
def test_flags_of_the_on_off_loss_in_any_combination(number: int) -> None:
    chosen = dict(combinations(120)[number])
    target = np.random.default_rng(number).random((ROWS, LENGTH)).tolist() if chosen.pop("with_target") else None
    flags = {
        "cliprange": 0.2,
        "off_cliprange": 0.2,
        "off_normalize": False,
        "off_abs_cliprange": None,
        "off_policy_reshape_weight": 0.3,
        "off_policy_reshape_pow_exp": 0.4,
        "on_policy_reshape_weight": 0.2,
        "on_policy_reshape_pow_exp": 0.6,
        "target_probs": target,
        **chosen,
    }
    case: dict[str, Any] = {"kind": "on_off_loss", "dtype": "float64", "flags": flags, **random_inputs(number)}
    new = np.array(case["log_prob"])
    case["outputs"] = on_off(case, new)
    case["grad_log_prob"] = slopes(lambda moved: on_off(case, moved)["pg_loss"], new)
    lines = [line for line in check_case(case) if not line.startswith("grad_log_prob: error")]
    assert lines == []
    assert gradient_error(case) < 1e-7


def gradient_error(case: dict[str, Any]) -> float:
    """Differences are good to 1e-9 or so; the checker's own tolerance is for exact gradients."""
    (line,) = [line for line in check_case(case) if line.startswith("grad_log_prob: error")] or [
        "grad_log_prob: error 0 "
    ]
    return float(line.split("error ")[1].split()[0])


@pytest.mark.parametrize(
    ("mode", "low", "high", "dual"),
    list(
        itertools.product(
            ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"),
            (None, 0.1),
            (None, 0.28),
            (1.3, 3.0),
        )
    ),
)
def test_the_clipped_loss_with_every_aggregation_edge_and_dual_clip(
    mode: str, low: float | None, high: float | None, dual: float
) -> None:
    case: dict[str, Any] = {"kind": "clipped_policy_loss", "dtype": "float64", **random_inputs(7)}
    del case["prefix_mask"]
    case |= {
        "cliprange": 0.2,
        "cliprange_low": low,
        "cliprange_high": high,
        "clip_ratio_c": dual,
        "loss_agg_mode": mode,
    }
    old, a, mask = (np.array(case[name], dtype=float) for name in ("old_log_prob", "advantages", "response_mask"))
    edges = (1 - (0.2 if low is None else low), 1 + (0.2 if high is None else high))

    def outputs(new: Grid) -> dict[str, float]:
        ratio = np.exp(new - old)
        plain, edge = -a * ratio, -a * np.clip(ratio, *edges)
        clipped = np.maximum(plain, edge)
        losses = np.where(a < 0, np.minimum(-a * dual, clipped), clipped)
        sums = (losses * mask).sum(axis=1)
        return {
            "pg_loss": {
                "token-mean": mean(losses, mask),
                "seq-mean-token-sum": float(sums.mean()),
                "seq-mean-token-mean": float((sums / mask.sum(axis=1)).mean()),
                "seq-mean-token-sum-norm": float(sums.sum() / LENGTH),
            }[mode],
            "pg_clipfrac": mean((edge > plain).astype(float), mask),
            "ppo_kl": mean(old - new, mask),
            "pg_clipfrac_lower": mean(((clipped > -a * dual) & (a < 0)).astype(float), mask),
        }

    new = np.array(case["log_prob"])
    case["outputs"] = outputs(new)
    case["grad_log_prob"] = slopes(lambda moved: outputs(moved)["pg_loss"], new)
    assert [line for line in check_case(case) if not line.startswith("grad_log_prob: error")] == []
    assert gradient_error(case) < 1e-7


@pytest.mark.parametrize(
    ("rule", "by_std", "epsilon"),
    list(itertools.product(("grpo", "rloo", "rfpp_baseline"), (True, False), (1e-6, 1e-2))),
)
def test_every_advantage_rule_with_and_without_std(rule: str, by_std: bool, epsilon: float) -> None:
    rng = np.random.default_rng(11)
    index = [0, 1, 0, 2, 1, 0]
    mask = np.array(random_inputs(11)["response_mask"], dtype=float)
    rewards = rng.standard_normal((ROWS, LENGTH)) * mask
    scores = rewards.sum(axis=1)
    advantages = np.zeros(ROWS)
    for group in set(index):
        rows = [row for row, one in enumerate(index) if one == group]
        mine = scores[rows]
        if len(rows) == 1:
            advantages[rows] = mine / (1 + epsilon) if rule == "grpo" and by_std else mine
            continue
        centred = mine - mine.mean()
        if rule == "grpo" and by_std:
            centred = centred / (mine.std(ddof=1) + epsilon)
        advantages[rows] = centred * len(rows) / (len(rows) - 1) if rule == "rloo" else centred
    grid = advantages[:, None] * mask
    if rule == "rfpp_baseline":
        count, average = mask.sum(), (grid * mask).sum() / mask.sum()
        variance = (((grid - average) ** 2) * mask).sum() / count * count / (count - 1)
        grid = (grid - average) / np.sqrt(variance + 1e-8) * mask
    case = {
        "kind": "advantage",
        "dtype": "float64",
        "token_level_rewards": rewards.tolist(),
        "response_mask": mask.astype(int).tolist(),
        "index": index,
        "norm_adv_by_std": by_std,
        "epsilon": epsilon,
        "fn": rule,
        "advantages": grid.tolist(),
        "returns": grid.tolist(),
    }
    assert check_case(case) == []
