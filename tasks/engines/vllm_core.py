"""vLLM in this process: the engine that the loop drives. The only file that calls vLLM."""

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from cgrpo_core.records import FinishReason
from tasks.engines.deadlines import DEADLINE_S
from tasks.engines.engine_loop import Finished, Loaded
from tasks.engines.faults import EngineBroken, EngineNotStarted
from tasks.engines.protocol import Completion, LoadTimes, PolicyMismatch, PolicyRef, SampleRequest, SamplingSettings
from tasks.engines.sampler_options import SamplerOptions, check_requests
from tasks.engines.vllm_weights import WeightStream, compare_served, refresh_tied_head, tensor_names
from tasks.engines.weight_transfer import Transfer


class VllmCore:
    """A synchronous LLMEngine. Its core runs in this process: in one of its own it has half the speed on 2 cores."""

    def __init__(self, options: SamplerOptions, base_model_dir: str) -> None:
        """Build the engine. Raises EngineNotStarted when vLLM refuses model, options or memory."""
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would override the declared kv_cache_gib
        from vllm import EngineArgs, LLMEngine

        self._names = tensor_names(base_model_dir)
        self._max_model_len, self._transfer = options.max_model_len, options.weight_transfer
        try:
            self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**options.engine_arguments(base_model_dir)))
        except (ValueError, TypeError, RuntimeError, OSError, AssertionError) as error:
            raise EngineNotStarted(
                f"vLLM cannot serve {base_model_dir}: {error}", "look at engines.sampler.options and at the model"
            ) from error
        self._vocabulary = int(self._engine.model_config.get_vocab_size())
        self._tokenizer: Any = self._engine.tokenizer

    def check(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> None:
        """Raise RequestInvalid or PromptTooLong."""
        check_requests(requests, settings, self._max_model_len, self._vocabulary)

    def add(self, key: str, request: SampleRequest, settings: SamplingSettings) -> None:
        """Put a request into the batch; its text is decoded once, at its end."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            seed=request.seed,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        self._engine.add_request(key, tokens_input(list(request.prompt_token_ids)), parameters)

    def abort(self, keys: Sequence[str]) -> None:
        """Take requests out of the batch."""
        if keys:
            self._engine.abort_request(list(keys))

    def step(self) -> list[Finished]:
        """Sample one token for each request in the batch; return those that are done."""
        return [self._finished(output) for output in self._engine.step() if output.finished]

    def tokens_in_flight(self) -> int:
        """Return the tokens that unfinished requests have; list() is a snapshot, since the loop goes on meanwhile."""
        states = list(self._engine.output_processor.request_states.values())
        return sum(state.detokenizer.num_output_tokens() for state in states)

    def check_weights(self, weights_dir: str) -> None:
        """Raise WeightsMissing, or PolicyMismatch for weights of another model."""
        if difference := tensor_names(weights_dir) ^ self._names:
            raise PolicyMismatch(f"{weights_dir} is of another model than the engine: {len(difference)} tensors differ")

    def load(self, policy: PolicyRef, weights: str | Transfer) -> Loaded:
        """Take weights into the engine, drop the prefix cache, compare digests, compare what is served.

        Those of a transfer have no digest here: the trainer computed it, and what is served is compared with its own.
        """
        began = time.perf_counter()
        stream = WeightStream(weights) if isinstance(weights, str) else None
        if stream is not None:
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(stream)})
        elif isinstance(weights, Transfer):
            accepted = weights.serve(lambda name, given: self._engine.collective_rpc(name, kwargs=given), DEADLINE_S)
        self._engine.collective_rpc("apply_model", args=(refresh_tied_head,))
        loaded = time.perf_counter()
        if not self._engine.reset_prefix_cache():
            raise EngineBroken("the prefix cache could not be dropped: blocks of the old weights are in use")
        reset = time.perf_counter()
        if stream and stream.digest() != policy.weights_sha256:
            raise PolicyMismatch(
                f"{weights} has the weights {stream.digest()[:12]}, policy {policy.policy_version} has "
                f"{policy.weights_sha256[:12]}"
            )
        hashed = time.perf_counter()
        verified = self._compare(stream.samples if stream else accepted)
        ended = time.perf_counter()
        times = LoadTimes(
            total=ended - began,
            digest=stream.hashing_seconds if stream else 0.0,
            weights=loaded - began,
            reset=reset - loaded,
            check=ended - hashed,
            by="files" if stream else self._transfer,
        )
        return Loaded(verified=verified, times=times)

    def _compare(self, samples: dict[str, Any]) -> bool:
        """Return whether every tensor was compared. Raises EngineBroken if one is not served as it was given."""
        compare = partial(compare_served, samples=samples)
        different, unknown = self._engine.collective_rpc("apply_model", args=(compare,))[0]
        if different:
            raise EngineBroken(f"vLLM serves other weights than it was given: {', '.join(different[:3])}")
        return not unknown and len(samples) == len(self._names)

    def _finished(self, output: Any) -> Finished:
        sampled = output.outputs[0]
        completion, error = None, None
        if sampled.finish_reason not in ("stop", "length"):
            error = f"it ended with finish_reason {sampled.finish_reason}"
        elif len(sampled.logprobs) != len(sampled.token_ids):
            error = f"{len(sampled.token_ids)} tokens came with {len(sampled.logprobs)} log-probs"
        else:
            completion = self._completion(output.request_id, sampled, output.num_cached_tokens or 0)
        return Finished(
            key=output.request_id,
            completion=completion,
            error=error,
            prompt_tokens=len(output.prompt_token_ids),
            cached_prompt_tokens=output.num_cached_tokens or 0,
        )

    def _completion(self, key: str, sampled: Any, cached: int) -> Completion:
        token_ids, flat = tuple(sampled.token_ids), sampled.logprobs
        return Completion(
            request_id=key.partition(":")[2],
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True),
            token_ids=token_ids,
            logprobs=tuple(flat.logprobs[start] for start in flat.start_indices),
            finish_reason=cast(FinishReason, sampled.finish_reason),
            cached_prompt_tokens=cached,
        )
