"""A critique model behind an OpenAI-compatible API, asked by the official client: many requests at once, within bounds.

The client retries 429, 5xx, resets and timeouts with back-off, and waits as long as Retry-After asks. What is still
without an answer then is a fault of that reply; wrong credentials or a model that the server does not know are the
user's to mend and raise. The key is read from the environment here and nowhere else. It is kept out of whatever leaves
this file: texts and errors are searched for it, and the client's exceptions, which hold the request with its headers,
are never passed on.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from cgrpo_core.errors import UserError
from storage.replies import ReplyCache, StoredReply, reply_id
from tasks.engines.endpoint_options import EndpointOptions
from tasks.engines.protocol import CritiqueReply, CritiqueRequest, SamplingSettings

HIDDEN = "[key]"
ERROR_CHARACTERS = 300
NO_KEY = "none"  # what a server that wants no key is sent


class CritiqueModelRefused(UserError):
    """The server turned down the credentials or does not know the model: asking again would not help."""


class OpenAICritiquer:
    """A Critiquer (protocol.py). Replies that are kept are not asked for again, so that a re-run works offline."""

    def __init__(
        self, where: str, options: EndpointOptions, settings: SamplingSettings, cache: ReplyCache, salt: str = ""
    ) -> None:
        self._where, self._options, self._settings, self._cache = where, options, settings, cache
        self._salt = salt
        self.asked = self.reused = 0

    def ask(self, requests: Sequence[CritiqueRequest]) -> list[CritiqueReply]:
        """Return one reply a request, in their order; equal requests are asked once.

        Raises UserError if the key is not there, CritiqueModelRefused.
        """
        contents = [self._content(request) for request in requests]
        ids = [reply_id(**content, salt=self._salt) for content in contents]
        found: dict[str, StoredReply | CritiqueReply] = {}
        missing = {}
        for identity, content in zip(ids, contents, strict=True):
            stored = self._cache.find(identity)
            if stored is None:
                missing[identity] = content
            else:
                found[identity] = stored
        self.reused += len(found)
        self.asked += len(missing)
        if missing:
            found |= asyncio.run(_Endpoint(self._where, self._options, self._cache).ask_all(missing))
        return [
            _reply(request.request_id, identity, found[identity])
            for request, identity in zip(requests, ids, strict=True)
        ]

    def _content(self, request: CritiqueRequest) -> dict[str, Any]:
        parameters = {
            "temperature": self._settings.temperature,
            "top_p": self._settings.top_p,
            "max_tokens": self._settings.max_tokens,
            **self._options.request,
        }
        return {
            "model": self._options.model,
            "messages": list(request.messages),
            "parameters": {name: value for name, value in parameters.items() if value is not None},
            "attempt": request.attempt,
        }


class _Endpoint:
    """One batch of requests: the client, its bounds, and how many requests in a row went without an answer."""

    def __init__(self, where: str, options: EndpointOptions, cache: ReplyCache) -> None:
        self._where, self._options, self._cache = where, options, cache
        self._key = _read_key(where, options)
        self._failed_in_a_row = 0

    async def ask_all(self, contents: dict[str, dict[str, Any]]) -> dict[str, StoredReply | CritiqueReply]:
        from openai import AsyncOpenAI

        slots = asyncio.Semaphore(self._options.concurrency)
        client = AsyncOpenAI(
            api_key=self._key or NO_KEY,
            base_url=self._options.base_url,
            timeout=self._options.timeout_s,
            max_retries=self._options.max_retries,
        )

        async def one(identity: str, content: dict[str, Any]) -> StoredReply | CritiqueReply:
            async with slots:
                return await self._ask(client, identity, content)

        async with client:
            answers = await _all_or_first_error([one(identity, content) for identity, content in contents.items()])
        return dict(zip(contents, answers, strict=True))

    async def _ask(self, client: Any, identity: str, content: dict[str, Any]) -> StoredReply | CritiqueReply:
        if self._failed_in_a_row >= self._options.give_up_after:
            return self._unanswered(identity, f"not sent: {self._failed_in_a_row} requests had no answer")
        began = time.monotonic()
        try:
            raw = await asyncio.wait_for(self._send(client, content), self._options.deadline_s)
            failure = None
        except Exception as error:  # noqa: BLE001 - sorted below, outside, so that nothing holds on to the request
            failure = _Failure(error)
        if failure is None:
            self._failed_in_a_row = 0
            return self._cache.keep(identity, _parse(raw, _since(began), self._without_key), content)
        if failure.status in (401, 403, 404):
            raise CritiqueModelRefused(
                f"{self._where}: the server answered {failure.status}: {self._without_key(failure.text)}",
                f"check options.model and options.base_url, and the key in {self._options.api_key_env}",
            )
        if failure.status is not None and failure.status < 500 and failure.status not in (408, 409, 429):
            self._failed_in_a_row = 0
            refused = _no_reply("refused", self._without_key(failure.text), _since(began))
            return self._cache.keep(identity, refused, content)
        self._failed_in_a_row += 1
        return self._unanswered(identity, failure.text)

    async def _send(self, client: Any, content: dict[str, Any]) -> str:
        """Return the body of the answer as text: parsing it is ours, since a body cut short is no reply."""
        response = await client.chat.completions.with_raw_response.create(
            model=content["model"], messages=content["messages"], extra_body=content["parameters"]
        )
        return str(response.http_response.text)

    def _unanswered(self, identity: str, error: str) -> CritiqueReply:
        return CritiqueReply(
            request_id="",
            reply_id=identity,
            text="",
            finish_reason=None,
            prompt_tokens=0,
            completion_tokens=0,
            latency_ms=0.0,
            fault="unanswered",
            error=self._without_key(error)[:ERROR_CHARACTERS],
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, HIDDEN) if self._key else text


class _Failure:
    """What is told of an exception of the client: its kind, status and words, without the request that it holds."""

    def __init__(self, error: Exception) -> None:
        status = getattr(error, "status_code", None)
        self.status = status if isinstance(status, int) else None
        # A server that turns a key down often shows a part of it.
        words = [] if self.status in (401, 403) else str(error).strip().splitlines()
        self.text = f"{type(error).__name__}: {words[0]}" if words else type(error).__name__


async def _all_or_first_error(work: Sequence[Any]) -> list[Any]:
    """Return all results in order; at the first error the rest is cancelled, so that no more is paid for."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _read_key(where: str, options: EndpointOptions) -> str:
    """Return the key, or an empty text for a server that wants none. Raises UserError that never shows it."""
    if options.api_key_env is None:
        return ""
    key = os.environ.get(options.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"{where}: the environment variable {options.api_key_env} is not set where the stage runs",
            f"export {options.api_key_env} before `cgrpo run`; on a cluster that was joined, before Ray starts there",
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(f"{where}: {options.api_key_env} holds characters that no key has", "set it again")
    return key


def _parse(body: str, latency_ms: float, clean: Callable[[str], str]) -> StoredReply:
    """Return the reply in the body of an answer; a body that holds none is malformed, and says what is wrong."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        finish_reason = choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        told = f"no chat completion in {len(body)} characters: {type(error).__name__}"
        return _no_reply("malformed", told, latency_ms)
    if not isinstance(text, str | None) or not isinstance(finish_reason, str | None):
        return _no_reply("malformed", f"no text in the message: {type(text).__name__}", latency_ms)
    usage = answer.get("usage")
    return StoredReply(
        text=clean(text or ""),
        finish_reason=clean(finish_reason) if finish_reason else None,
        served_model=clean(str(answer.get("model")))[:200],
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        latency_ms=latency_ms,
    )


def _no_reply(fault: Literal["malformed", "refused"], error: str, latency_ms: float) -> StoredReply:
    return StoredReply(
        text="",
        finish_reason=None,
        served_model=None,
        prompt_tokens=0,
        completion_tokens=0,
        latency_ms=latency_ms,
        fault=fault,
        error=error[:ERROR_CHARACTERS],
    )


def _since(began: float) -> float:
    return (time.monotonic() - began) * 1000.0


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and 0 <= value < 2**62 else 0


def _reply(request_id: str, identity: str, found: StoredReply | CritiqueReply) -> CritiqueReply:
    if isinstance(found, CritiqueReply):
        return replace(found, request_id=request_id)
    return CritiqueReply(
        request_id=request_id,
        reply_id=identity,
        text=found.text,
        finish_reason=found.finish_reason,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
        latency_ms=found.latency_ms,
        fault=found.fault,
        error=found.error,
    )
