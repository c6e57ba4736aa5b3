"""The table in docs/verifier.md, judged row by row."""

import re
from pathlib import Path

import pytest

from cgrpo_core.verifiers import judge

PAGE = (Path(__file__).parent.parent / "docs" / "verifier.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(.*?)` \| `(.*?)` \| (?:`(.*?)`)? ?\| (right|wrong|unparsable|error) \|", re.MULTILINE)
MEANING = {
    "right": (True, "ok"),
    "wrong": (False, "ok"),
    "unparsable": (False, "unparsable"),
    "error": (False, "error"),
}
ROWS = ROW.findall(PAGE)


def test_the_table_is_found() -> None:
    assert len(ROWS) >= 40
    assert {verdict for _, _, _, verdict in ROWS} == set(MEANING)


@pytest.mark.parametrize(("text", "ground_truth", "question", "verdict"), ROWS, ids=lambda value: value[:40])
def test_each_answer_gets_what_the_table_says(text: str, ground_truth: str, question: str, verdict: str) -> None:
    judgement = judge(text.replace("[100000 characters]", "so on " * 16_667), ground_truth, question=question or None)
    assert (judgement.correct, judgement.status) == MEANING[verdict]
