"""Whether what was trained on is what was sampled, and each policy the child of the one before it.

Faults come back as sentences, one each; none means that all agree.
"""

from collections.abc import Iterable, Sequence

from cgrpo_core.records import Policy, Prompt, Refinement, Response, TrainingSample


def sample_faults(
    samples: Iterable[TrainingSample],
    prompts: Iterable[Prompt],
    responses: Iterable[Response],
    refinements: Iterable[Refinement],
) -> list[str]:
    """Return where a training sample has other token ids than the completion that it is named after.

    Its prompt is the question's: also a refinement is trained as a continuation of the question alone (paper, step 7).
    Only what a restarted refinement kept of its response, and the same tokens of that response, may stand between the
    question and what is trained (restarts.py).
    """
    prompt_of = {prompt.prompt_id: prompt.token_ids for prompt in prompts}
    sampled: dict[tuple[str, str], Response | Refinement] = {("response", row.response_id): row for row in responses}
    sampled |= {("refinement", row.refinement_id): row for row in refinements}
    faults = []
    for sample in samples:
        if sample.origin not in ("response", "refinement"):
            continue  # of the data, not of a sampler
        source = sampled.get((sample.origin, sample.sample_id))
        if source is None:
            faults.append(f"{sample.sample_id} is no {sample.origin} that was sampled")
            continue
        given = _given(sample, source, sampled)
        skipped = len(given) if isinstance(source, Response) else 0
        trained = (source.token_ids[skipped:], source.sampling_logprobs[skipped:])
        if (sample.token_ids, sample.sampling_logprobs) != trained:
            faults.append(f"{sample.sample_id} has other token ids or log-probs than the {sample.origin}")
        question = prompt_of.get(sample.group_id, ())
        if sample.group_id != source.group_id or sample.prompt_token_ids != question + given:
            faults.append(f"{sample.sample_id} has another prompt than its question's")
    return faults


def _given(
    sample: TrainingSample, source: Response | Refinement, sampled: dict[tuple[str, str], Response | Refinement]
) -> tuple[int, ...]:
    """Return the tokens of a response that may precede what is trained of it, or of its refinement."""
    if isinstance(source, Response):
        return source.token_ids[: max(0, len(source.token_ids) - len(sample.token_ids))]
    response = sampled.get(("response", source.response_id))
    return response.token_ids[: source.kept_tokens] if response else ()


def policy_faults(child: Policy, parent: Policy | None, parent_key: str | None) -> list[str]:
    """Return where a policy does not follow from the one that its update was given; parent None: it is the first."""
    if parent is None:
        first = child.policy_version == 0 and child.parent is None
        return [] if first else [f"policy {child.policy_version} of {child.parent} is not the first one"]
    faults = []
    if child.parent != parent_key:
        faults.append(f"policy {child.policy_version} names the parent {child.parent}, and was given {parent_key}")
    if child.policy_version != parent.policy_version + 1:
        faults.append(f"policy {child.policy_version} follows policy {parent.policy_version}")
    return faults


def version_faults(rows: Sequence[object], policy: Policy) -> list[str]:
    """Return where completions or results say another policy_version than that of the policy they were sampled from."""
    versions = {version for row in rows if (version := getattr(row, "policy_version", None)) is not None}
    wrong = sorted(versions - {policy.policy_version})
    return [f"rows of policy {version} in a stage that was given policy {policy.policy_version}" for version in wrong]
