"""Whether what was trained on is what was sampled, and each policy the child of the one before it.

Faults come back as sentences, one each; none means that all agree.
"""

from collections.abc import Iterable, Mapping, Sequence

from cgrpo_core.records import Policy, Prompt, Refinement, Response, TrainingSample


def sample_faults(
    samples: Iterable[TrainingSample],
    prompts: Iterable[Prompt],
    responses: Iterable[Response],
    refinements: Iterable[Refinement],
) -> list[str]:
    """Return where a training sample has other token ids than the completion that it is named after.

    Its prompt is the question's: also a refinement is trained as a continuation of the question alone (paper, step 7).
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
        given = len(source.token_ids) - len(sample.token_ids)  # tokens of it that are given, not trained (restarts)
        if sample.token_ids != source.token_ids[given:] or sample.sampling_logprobs != source.sampling_logprobs[given:]:
            faults.append(f"{sample.sample_id} has other token ids or log-probs than the {sample.origin}")
        if sample.group_id != source.group_id or not _follows(sample, prompt_of, sampled, source):
            faults.append(f"{sample.sample_id} has another prompt than its question's")
    return faults


def _follows(
    sample: TrainingSample,
    prompt_of: Mapping[str, tuple[int, ...]],
    sampled: Mapping[tuple[str, str], Response | Refinement],
    source: Response | Refinement,
) -> bool:
    """Tell whether a sample's prompt is its question's, with no more behind it than the start of the response that was
    restarted, which is given to the rows of both."""
    question = prompt_of.get(sample.group_id)
    if question is None or sample.prompt_token_ids[: len(question)] != question:
        return False
    kept = sample.prompt_token_ids[len(question) :]
    restarted = sampled.get(("response", source.response_id))
    if isinstance(source, Response) and len(kept) != len(source.token_ids) - len(sample.token_ids):
        return False
    return not kept or (restarted is not None and restarted.token_ids[: len(kept)] == kept)


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
