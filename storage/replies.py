"""Replies of models behind an API, kept by the content that was asked: paid for once, and the same when asked again.

    home/replies/<first two of id>/<id>.json

The id is the sha256 of model, messages, parameters and attempt. Where the model is served, when and how fast it
answered and with which key is no part of it, and no key is ever written. Of two writers of one id the first one wins,
so that everybody reads the same reply; a file appears whole or not at all.
"""

import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any, Literal

from cgrpo_core.ids import digest
from storage.durable import json_bytes, make_directories, sync_directory, write_bytes
from storage.errors import ArtifactCorrupt

REPLY_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReply:
    """What a model answered. latency_ms: of the first time, so that a reply from here is in every way the same.

    fault: an answer that is no reply is one too, and decides what is asked next; so it is kept, with what was wrong.
    """

    text: str
    finish_reason: str | None
    served_model: str | None  # the name that the server gave to what answered
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float
    fault: Literal["malformed", "refused"] | None = None
    error: str | None = None


def reply_id(*, model: str, messages: Any, parameters: Mapping[str, Any], attempt: int, salt: str = "") -> str:
    """Return the id (64 hex characters) of the content of a request. A stage that is salted is to ask anew."""
    return digest(
        {
            "format": REPLY_FORMAT,
            "model": model,
            "messages": list(messages),
            "parameters": dict(parameters),
            "attempt": attempt,
            **({"salt": salt} if salt else {}),
        }
    )


@dataclass(frozen=True, slots=True)
class ReplyCache:
    """The replies below `home`; any number of processes may use it at once."""

    home: Path

    def find(self, identity: str) -> StoredReply | None:
        """Return the reply, or None. Raises ArtifactCorrupt for a file that is none."""
        path = self._path(identity)
        try:
            content = loads(path.read_bytes())
            return StoredReply(**content["reply"])
        except FileNotFoundError:
            return None
        except (JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
            raise ArtifactCorrupt.of(path, f"a reply of format {REPLY_FORMAT}", str(error)) from error

    def keep(self, identity: str, reply: StoredReply, asked: Mapping[str, Any]) -> StoredReply:
        """Write a reply beside what was asked; return what is kept, which is an older reply if there was one."""
        path = self._path(identity)
        make_directories(path.parent)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")
        write_bytes(temporary, json_bytes({"format": REPLY_FORMAT, "asked": dict(asked), "reply": asdict(reply)}))
        try:
            os.link(temporary, path)  # unlike a rename, it fails if another was first
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
        sync_directory(path.parent)
        kept = self.find(identity)
        assert kept is not None
        return kept

    def _path(self, identity: str) -> Path:
        return Path(self.home) / "replies" / identity[:2] / f"{identity}.json"
