"""Critiques of the responses that are to be refined; none is written where the gate forbids a refinement."""

from cgrpo_core.critiques import CRITIQUE_KINDS
from cgrpo_core.gate import groups_to_refine, unjudged_groups
from cgrpo_core.ids import make_id
from cgrpo_core.params import CritiqueParams, RefineParams
from cgrpo_core.records import Critique, Problem, Response, Verdict
from cgrpo_core.rewards import is_judged
from tasks.stage import Published, StageContext, stage

RULE_BASED = "rule"  # the "model" of a critique that no model wrote


@stage
def write_critiques(
    context: StageContext, responses: list[Response], verdicts: list[Verdict], problems: list[Problem]
) -> Published:
    """Write one critique for each judged response of each group that passes the gate."""
    kind = context.block(CritiqueParams).kind
    verdict_of = {verdict.subject_id: verdict for verdict in verdicts}
    groups: dict[str, list[Verdict]] = {}
    for response in responses:
        groups.setdefault(response.group_id, []).append(verdict_of[response.response_id])
    refine = context.block(RefineParams)
    chosen = groups_to_refine(groups, refine.gate, refine.gate_below)
    subjects = [response for response in responses if response.group_id in chosen]
    if context.block(CritiqueParams).responses == "wrong":
        subjects = [response for response in subjects if not verdict_of[response.response_id].correct]
    judged = [response for response in subjects if is_judged(verdict_of[response.response_id].status)]
    ground_truth = {problem.problem_id: problem.ground_truth for problem in problems}
    write = CRITIQUE_KINDS[kind]
    critiques = [
        _critique(
            context, response, kind, write(verdict_of[response.response_id].correct, ground_truth[response.problem_id])
        )
        for response in judged
    ]
    counts = {
        "groups": len(groups),
        "groups_refined": len(chosen),
        "groups_without_verdict": len(unjudged_groups(groups)),
        "critiques": len(critiques),
        "without_verdict": len(subjects) - len(judged),
    }
    return Published(tables={"critiques": critiques}, counts=counts)


def _critique(context: StageContext, response: Response, kind: str, text: str) -> Critique:
    return Critique(
        critique_id=make_id("c", context.key, response.response_id),
        response_id=response.response_id,
        kind=kind,
        text=text,
        verdict_in_text=None,
        agreed=None,
        attempts=1,
        model=RULE_BASED,
        prompt_tokens=0,
        completion_tokens=0,
        latency_ms=0.0,
        status="ok",
    )
