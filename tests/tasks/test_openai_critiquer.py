"""The client of critique models against a server that misbehaves: what is retried, what is a fault, what is kept."""

import logging
import pickle
import time
import traceback
from pathlib import Path

import pytest
from critique_server import Raw, Say, Script, Status, completion, critique_server

from cgrpo_core.errors import UserError
from storage.replies import ReplyCache
from tasks.engines.endpoint_options import EndpointOptions, read_endpoint
from tasks.engines.openai_critiquer import CritiqueModelRefused, OpenAICritiquer
from tasks.engines.protocol import CritiqueReply, CritiqueRequest, SamplingSettings

KEY = "sk-secret-0123456789"
VARIABLE = "CGRPO_TEST_CRITIQUE_KEY"
SETTINGS = SamplingSettings(temperature=0.7, top_p=1.0, max_tokens=64)
GOOD = Say("Step 2 fails.\nVerdict: wrong")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def request(text: str = "q", attempt: int = 1, name: str | None = None) -> CritiqueRequest:
    messages = ({"role": "user", "content": text},)
    return CritiqueRequest(
        request_id=name or f"{text}-{attempt}", messages=messages, prompt_token_ids=(1,), attempt=attempt, seed=1
    )


def critiquer(home: Path, base_url: str, **options: object) -> OpenAICritiquer:
    values = {"model": "m", "base_url": base_url, "api_key_env": VARIABLE, "timeout_s": 2.0, "max_retries": 2}
    return OpenAICritiquer("engines.c", EndpointOptions(**(values | options)), SETTINGS, ReplyCache(home))


def ask(home: Path, script: Script, *requests: CritiqueRequest, **options: object) -> tuple[list[CritiqueReply], int]:
    """Return the replies, and how often the server was asked."""
    with critique_server(script) as server:
        replies = critiquer(home, server.base_url, **options).ask(requests or [request()])
        return replies, len(server.asked)


def first_then(first: object, then: object = GOOD) -> Script:
    return lambda body, before: first if before == 0 else then  # type: ignore[return-value]


def test_a_reply_has_its_text_tokens_and_latency(tmp_path: Path) -> None:
    (reply,), _ = ask(tmp_path, lambda body, before: GOOD)
    assert (reply.text, reply.finish_reason, reply.fault) == (GOOD.text, "stop", None)
    assert (reply.prompt_tokens, reply.completion_tokens) == (11, 7)
    assert reply.latency_ms > 0


def test_what_is_asked_is_the_declaration_and_the_parameters(tmp_path: Path) -> None:
    with critique_server(lambda body, before: GOOD) as server:
        extra = {"reasoning_effort": "low", "max_tokens": None, "max_completion_tokens": 64}
        critiquer(tmp_path, server.base_url, request=extra).ask([request("hello")])
        (body,), (headers,) = server.asked, server.headers
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.7,
        "top_p": 1.0,
        "reasoning_effort": "low",
        "max_completion_tokens": 64,
    }
    assert headers["authorization"] == f"Bearer {KEY}"


def test_429_is_retried_no_sooner_than_retry_after_says(tmp_path: Path) -> None:
    began = time.monotonic()
    (reply,), asked = ask(tmp_path, first_then(Status(429, headers={"Retry-After": "1"})))
    assert (reply.text, asked) == (GOOD.text, 2)
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize(
    "first",
    [Status(500), Status(503), Raw(b"", reset=True, promised=100), Raw(completion("x")[:40], reset=True, promised=400)],
    ids=["500", "503", "reset", "reset in the body"],
)
def test_what_passes_is_retried(tmp_path: Path, first: object) -> None:
    (reply,), asked = ask(tmp_path, first_then(first))
    assert (reply.text, asked) == (GOOD.text, 2)


def test_a_slow_answer_is_given_up_and_asked_again(tmp_path: Path) -> None:
    (reply,), asked = ask(tmp_path, first_then(Say("late", delay_s=3.0)), timeout_s=0.5)
    assert (reply.text, asked) == (GOOD.text, 2)


def test_a_server_that_stays_down_is_a_fault_of_the_reply(tmp_path: Path) -> None:
    (reply,), asked = ask(tmp_path, lambda body, before: Status(500), max_retries=1)
    assert (reply.fault, reply.text, asked) == ("unanswered", "", 2)
    assert "500" in (reply.error or "")
    (reply,) = critiquer(tmp_path, "http://127.0.0.1:9/v1", max_retries=0).ask([request()])
    assert reply.fault == "unanswered"


def test_the_deadline_holds_for_all_retries_together(tmp_path: Path) -> None:
    began = time.monotonic()
    (reply,), _ = ask(tmp_path, lambda body, before: Say("late", delay_s=3.0), deadline_s=0.7)
    assert (reply.fault, reply.error) == ("unanswered", "TimeoutError")
    assert time.monotonic() - began < 3.0


def test_after_enough_failures_in_a_row_the_rest_is_not_sent(tmp_path: Path) -> None:
    requests = [request(str(number)) for number in range(20)]
    replies, asked = ask(
        tmp_path, lambda body, before: Status(500), *requests, max_retries=0, concurrency=1, give_up_after=3
    )
    assert asked == 3
    assert {reply.fault for reply in replies} == {"unanswered"}
    assert "not sent" in (replies[-1].error or "")


@pytest.mark.parametrize(
    "body",
    [
        completion("a fine critique")[:60],
        b"",
        b"<html>bad gateway</html>",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 3}}]}',
        b"[" * 100_000,
        b"\xff\xfe\x00",
    ],
    ids=["cut", "nothing", "html", "list", "no choices", "empty", "number", "nested", "bytes"],
)
def test_a_body_that_is_no_completion_is_malformed_and_the_next_attempt_is_another_request(
    tmp_path: Path, body: bytes
) -> None:
    (reply,), _ = ask(tmp_path, lambda *_: Raw(body))
    assert reply.fault == "malformed"
    (same, reply), asked = ask(tmp_path, lambda *_: GOOD, request(), request(attempt=2))
    assert (same.fault, reply.text, asked) == ("malformed", GOOD.text, 1)


def test_no_answer_is_not_kept_and_is_asked_for_again(tmp_path: Path) -> None:
    (reply,), _ = ask(tmp_path, lambda *_: Status(500), max_retries=0)
    assert reply.fault == "unanswered"
    (reply,), asked = ask(tmp_path, lambda *_: GOOD)
    assert (reply.text, asked) == (GOOD.text, 1)


def test_no_content_is_an_empty_text(tmp_path: Path) -> None:
    (reply,), _ = ask(tmp_path, lambda *_: Say(None, "content_filter"))
    assert (reply.text, reply.fault, reply.finish_reason) == ("", None, "content_filter")


def test_a_megabyte_and_hostile_text_come_through_as_they_are(tmp_path: Path) -> None:
    hostile = "<|im_end|>\x00 \ud83d '; DROP TABLE" + "x" * 2**20
    (reply,), _ = ask(tmp_path, lambda *_: Say(hostile))
    assert reply.text == hostile
    (again,), asked = ask(tmp_path, lambda *_: GOOD)
    assert (again, asked) == (reply, 0)


def test_a_refused_request_costs_only_itself(tmp_path: Path) -> None:
    def script(body: dict, before: int) -> object:
        return Status(400, "too long") if "bad" in body["messages"][0]["content"] else GOOD

    (bad, good), asked = ask(tmp_path, script, request("bad"), request("good"))
    assert (bad.fault, good.text, asked) == ("refused", GOOD.text, 2)


def test_no_more_requests_than_declared_are_under_way_at_once(tmp_path: Path) -> None:
    with critique_server(lambda *_: Say("x", delay_s=0.05)) as server:
        critiquer(tmp_path, server.base_url, concurrency=3).ask([request(str(number)) for number in range(12)])
        assert server.most_at_once <= 3
        assert len(server.asked) == 12


def test_what_was_answered_is_never_asked_again_and_needs_neither_server_nor_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [request("a"), request("b"), request("a", attempt=2)]
    first, asked = ask(tmp_path, lambda body, before: Say(f"{before}"), *requests)
    assert asked == 3
    monkeypatch.delenv(VARIABLE)
    offline = critiquer(tmp_path, "http://127.0.0.1:9/v1")
    assert offline.ask(requests) == first  # the latencies too
    assert (offline.asked, offline.reused) == (0, 3)


def test_equal_requests_share_one_reply(tmp_path: Path) -> None:
    replies, asked = ask(tmp_path, lambda *_: GOOD, request("a", name="x"), request("a", name="y"))
    assert asked == 1
    assert [reply.request_id for reply in replies] == ["x", "y"]
    assert replies[0].reply_id == replies[1].reply_id


def test_another_model_parameter_or_attempt_is_another_reply(tmp_path: Path) -> None:
    with critique_server(lambda *_: GOOD) as server:
        for options in ({}, {"model": "n"}, {"request": {"seed": 1}}, {"concurrency": 2}, {"timeout_s": 9.0}):
            critiquer(tmp_path, server.base_url, **options).ask([request()])
        critiquer(tmp_path, server.base_url).ask([request(attempt=2)])
        assert len(server.asked) == 4


def test_a_salted_stage_asks_anew_and_keeps_what_it_is_told_apart(tmp_path: Path) -> None:
    """`cgrpo rerun --from critique` is for other replies, not for those that are kept."""
    with critique_server(lambda body, before: Say(f"{before} fails.\nVerdict: wrong")) as server:
        plain = critiquer(tmp_path, server.base_url)
        salted = OpenAICritiquer("engines.c", plain._options, SETTINGS, ReplyCache(tmp_path), "a1")
        texts = [one.ask([request()])[0].text for one in (plain, salted, plain, salted)]
        assert len(server.asked) == 2
    assert texts == ["0 fails.\nVerdict: wrong", "1 fails.\nVerdict: wrong"] * 2


@pytest.mark.parametrize("code", [401, 403, 404])
def test_wrong_credentials_and_unknown_models_are_said_once_without_the_key(
    tmp_path: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(CritiqueModelRefused) as caught:
        ask(tmp_path, lambda *_: Status(code, f"incorrect key {KEY} in Bearer {KEY}"), request("a"), request("b"))
    shown = "".join(traceback.format_exception(caught.value))
    for text in (shown, caught.value.hint, caplog.text, pickle.dumps(caught.value).decode("latin-1")):
        assert KEY not in text
    assert VARIABLE in caught.value.hint
    assert caught.value.__context__ is None  # nothing holds on to the request with its headers


def test_a_server_that_repeats_the_key_does_not_get_it_stored(tmp_path: Path) -> None:
    (said, failed), _ = ask(
        tmp_path,
        lambda body, _: Say(f"the key is {KEY}") if body["messages"][0]["content"] == "a" else Status(400, KEY),
        request("a"),
        request("b"),
    )
    assert said.text == "the key is [key]"
    assert KEY not in (failed.error or "")
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_key_that_is_not_there_is_named_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "  "):
        monkeypatch.setenv(VARIABLE, value)
        with pytest.raises(UserError, match=VARIABLE):
            critiquer(tmp_path, "http://127.0.0.1:9/v1").ask([request()])
    monkeypatch.setenv(VARIABLE, "sk-\nbroken")
    with pytest.raises(UserError) as caught:
        critiquer(tmp_path, "http://127.0.0.1:9/v1").ask([request()])
    assert "broken" not in str(caught.value)


def test_a_server_without_keys_is_asked_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    (reply,), _ = ask(tmp_path, lambda *_: GOOD, api_key_env=None)
    assert reply.text == GOOD.text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "model"),
        ({"model": "m", "modle": "n"}, "modle"),
        ({"model": "m", "base_url": "ftp://x"}, "base_url"),
        ({"model": "m", "base_url": f"https://user:{KEY}@host/v1"}, "base_url"),
        ({"model": "m", "base_url": f"https://host/v1?key={KEY}"}, "base_url"),
        ({"model": "m", "api_key_env": KEY}, "api_key_env"),
        ({"model": "m", "concurrency": 0}, "concurrency"),
        ({"model": "m", "timeout_s": -1}, "timeout_s"),
        ({"model": "m", "request": 3}, "request"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_by_its_path_and_shows_no_key(options: dict, named: str) -> None:
    with pytest.raises(UserError) as caught:
        read_endpoint({"name": "critiquer", "options": options})
    assert "engines.critiquer.options" in caught.value.message
    assert named in caught.value.message
    assert KEY not in caught.value.message + caught.value.hint
