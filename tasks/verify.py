"""Verdicts on responses and refinements, by the same verifier."""

from collections import Counter
from collections.abc import Sequence

from cgrpo_core.params import VerifyParams
from cgrpo_core.records import Problem, Refinement, Response, Verdict
from tasks.stage import Published, StageContext, stage
from tasks.verifier_pool import case_of, verify_all


@stage
def verify_responses(context: StageContext, responses: list[Response], problems: list[Problem]) -> Published:
    """Judge each response against its problem's ground truth."""
    return _verify(context, [(row.response_id, row.problem_id, row.text) for row in responses], problems)


@stage
def verify_refinements(context: StageContext, refinements: list[Refinement], problems: list[Problem]) -> Published:
    """Judge each refinement against its problem's ground truth."""
    return _verify(context, [(row.refinement_id, row.problem_id, row.text) for row in refinements], problems)


def _verify(context: StageContext, subjects: list[tuple[str, str, str]], problems: list[Problem]) -> Published:
    by_id = {problem.problem_id: problem for problem in problems}
    cases = [case_of(subject_id, text, by_id[problem_id]) for subject_id, problem_id, text in subjects]
    verdicts = verify_all(cases, context.block(VerifyParams))
    return Published(tables={"verdicts": verdicts}, counts=count_verdicts(verdicts))


def count_verdicts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Return how many verdicts are correct, and how many have each status."""
    statuses = Counter(f"status_{verdict.status}" for verdict in verdicts)
    return {"correct": sum(verdict.correct for verdict in verdicts), **statuses}
