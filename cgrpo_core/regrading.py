"""What changes when the same texts are judged again: verdicts that flip, advantages that turn, other updates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cgrpo_core.records import TrainingSample, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A text that was judged otherwise. before, after: right, wrong, or the status of one that was not judged."""

    subject_id: str
    before: str
    after: str
    answer_before: str | None
    answer_after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageChange:
    """A training row whose advantage is another one now; None: the row is not in the batch then, or not any more."""

    sample_id: str
    group_id: str
    before: float | None
    after: float | None

    @property
    def turned(self) -> bool:
        """Whether it pulls the other way, or pulls where it did not, or no longer pulls."""
        return _sign(self.before) != _sign(self.after)


def outcome(correct: bool, status: str) -> str:
    """Return right, wrong (also for an answer that cannot be parsed), or timeout or error: not judged."""
    return status if status in ("timeout", "error") else "right" if correct else "wrong"


def verdict_flips(before: Iterable[Verdict], after: Iterable[Verdict]) -> list[Flip]:
    """Return the texts with another outcome, in order of `before`; joined by subject_id. Raises KeyError for a gap."""
    again = {verdict.subject_id: verdict for verdict in after}
    return [
        Flip(
            subject_id=old.subject_id,
            before=outcome(old.correct, old.status),
            after=outcome(new.correct, new.status),
            answer_before=old.answer,
            answer_after=new.answer,
        )
        for old in before
        if outcome(old.correct, old.status) != outcome((new := again[old.subject_id]).correct, new.status)
    ]


def advantage_changes(before: Sequence[TrainingSample], after: Sequence[TrainingSample]) -> list[AdvantageChange]:
    """Return the rows whose advantage differs, those that leave and those that join, in that order."""
    old, new = ({row.sample_id: row for row in rows} for rows in (before, after))
    return [
        AdvantageChange(
            sample_id=sample_id,
            group_id=(old.get(sample_id) or new[sample_id]).group_id,
            before=old[sample_id].advantage if sample_id in old else None,
            after=new[sample_id].advantage if sample_id in new else None,
        )
        for sample_id in [*old, *(sample_id for sample_id in new if sample_id not in old)]
        if sample_id not in old or sample_id not in new or old[sample_id].advantage != new[sample_id].advantage
    ]


def is_same_batch(before: Sequence[TrainingSample], after: Sequence[TrainingSample]) -> bool:
    """Tell whether an update over these rows is the same update: rows, advantages, weights; the order is no matter."""

    def batch(rows: Sequence[TrainingSample]) -> dict[str, tuple[float, float]]:
        return {row.sample_id: (row.advantage, row.weight) for row in rows}

    return batch(before) == batch(after)


def _sign(advantage: float | None) -> int:
    return 0 if not advantage else 1 if advantage > 0 else -1
