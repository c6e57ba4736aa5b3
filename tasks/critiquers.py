"""Who writes the critiques of a stage: the model behind an API, or the sampler, that its engine declares."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

from cgrpo_core.params import CritiqueParams
from cgrpo_core.records import Policy
from storage.replies import ReplyCache
from tasks.engines.endpoint_options import read_endpoint
from tasks.engines.openai_critiquer import OpenAICritiquer
from tasks.engines.protocol import Critiquer, CritiqueReply, CritiqueRequest, SampleRequest, SamplingSettings
from tasks.policies import engine_of, model_of_engine, sample_with
from tasks.stage import StageContext


class CountingCritiquer(Critiquer, Protocol):
    """A Critiquer that says what it took, and what served it: figures that may differ between runs of equal rows."""

    metrics: dict[str, float]
    evidence: dict[str, str]


class SamplerCritiquer:
    """Asks a sampler: the policy itself, or a model of its own where the engine's policy is fixed."""

    def __init__(self, context: StageContext, policy: Policy, settings: SamplingSettings) -> None:
        self._context, self._policy, self._settings = context, policy, settings
        self.metrics: dict[str, float] = {}
        self.evidence: dict[str, str] = {}

    def ask(self, requests: Sequence[CritiqueRequest]) -> list[CritiqueReply]:
        """Return one reply a request, in their order, sampled in one batch."""
        began = time.monotonic()
        sampled = sample_with(
            self._context,
            self._policy,
            [
                SampleRequest(request_id=one.request_id, prompt_token_ids=one.prompt_token_ids, seed=one.seed)
                for one in requests
            ],
            self._settings,
        )
        for name, value in sampled.metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value
        self.evidence |= sampled.evidence
        took_ms = (time.monotonic() - began) * 1000.0
        return [
            CritiqueReply(
                request_id=request.request_id,
                reply_id=request.request_id,
                text=completion.text,
                finish_reason=completion.finish_reason,
                prompt_tokens=len(request.prompt_token_ids),
                completion_tokens=len(completion.token_ids),
                latency_ms=took_ms,
            )
            for request, completion in zip(requests, sampled.completions, strict=True)
        ]


class EndpointCritiquer:
    """Asks a model behind an API, or the replies of it that are kept."""

    def __init__(self, context: StageContext, settings: SamplingSettings) -> None:
        declaration = engine_of(context)
        options = read_endpoint(declaration)
        salt = str(context.plan.ingredients.get("salt", ""))  # of a rerun without other settings: it asks anew
        where = f"engines.{declaration['name']}"
        self._inner = OpenAICritiquer(where, options, settings, ReplyCache(context.home), salt)

        self.metrics: dict[str, float] = {}
        self.evidence: dict[str, str] = {}

    def ask(self, requests: Sequence[CritiqueRequest]) -> list[CritiqueReply]:
        """Return one reply a request, in their order."""
        replies = self._inner.ask(requests)
        self.metrics |= {"replies_asked": self._inner.asked, "replies_reused": self._inner.reused}
        return replies


def critiquer_of(context: StageContext, policy: Policy) -> tuple[str, CountingCritiquer]:
    """Return the name of the critique model and who asks it. Raises UserError for an engine that cannot be."""
    params = context.block(CritiqueParams)
    settings = SamplingSettings(
        temperature=params.temperature, top_p=params.top_p, max_tokens=params.max_critique_tokens
    )
    declaration: dict[str, Any] = engine_of(context)
    if declaration["kind"] == "openai":
        return str(declaration["options"]["model"]), EndpointCritiquer(context, settings)
    return model_of_engine(context), SamplerCritiquer(context, policy, settings)
