"""Replies kept by content: the first one stays, a broken file is said, a crash leaves nothing half written."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ArtifactCorrupt
from storage.replies import ReplyCache, StoredReply, reply_id

CONTENT = {"model": "m", "messages": [{"role": "user", "content": "q"}], "parameters": {"top_p": 1.0}, "attempt": 1}


def reply(text: str = "a", latency_ms: float = 1.5) -> StoredReply:
    return StoredReply(
        text=text,
        finish_reason="stop",
        served_model="m-1",
        prompt_tokens=3,
        completion_tokens=2,
        latency_ms=latency_ms,
    )


def test_a_reply_comes_back_as_it_was(tmp_path):
    cache, identity = ReplyCache(tmp_path), reply_id(**CONTENT)
    assert cache.find(identity) is None
    hostile = reply("\x00 \ud83d </think> '; DROP TABLE" + "x" * 10_000)
    assert cache.keep(identity, hostile, CONTENT) == hostile
    assert cache.find(identity) == hostile


def test_every_part_of_the_content_makes_another_reply():
    changes = [{"model": "n"}, {"messages": []}, {"parameters": {}}, {"attempt": 2}]
    assert len({reply_id(**CONTENT), *(reply_id(**(CONTENT | change)) for change in changes)}) == 5


def test_the_first_of_many_writers_wins_and_all_of_them_get_its_reply(tmp_path):
    cache, identity = ReplyCache(tmp_path), reply_id(**CONTENT)
    with ThreadPoolExecutor(8) as pool:
        kept = set(pool.map(lambda number: cache.keep(identity, reply(str(number)), CONTENT), range(32)))
    assert len(kept) == 1
    assert cache.find(identity) in kept
    assert [path.name for path in (tmp_path / "replies").rglob("*") if path.is_file()] == [f"{identity}.json"]


def test_a_broken_file_is_named_and_never_a_reply(tmp_path):
    cache, identity = ReplyCache(tmp_path), reply_id(**CONTENT)
    cache.keep(identity, reply(), CONTENT)
    (path,) = (tmp_path / "replies").rglob("*.json")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ArtifactCorrupt, match=identity):
        cache.find(identity)


@given(st.text(max_size=50), st.integers(1, 5))
def test_the_id_is_a_function_of_the_content_alone(text, attempt):
    content = CONTENT | {"messages": [{"role": "user", "content": text}], "attempt": attempt}
    assert reply_id(**content) == reply_id(**dict(reversed(list(content.items()))))
