"""The sampler over real vLLM engines with a tiny random model: two replicas, of which some tests ask only the first."""

from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile

import pytest
from tiny_model import build_tiny_model

from cgrpo_core.weights import weights_digest
from tasks.engines.faults import PromptTooLong, WeightsMissing
from tasks.engines.protocol import PolicyMismatch, PolicyRef, SampleRequest, SamplingSettings

pytestmark = pytest.mark.e2e

NAME = "sampler-vllm-test"
DECLARATION = {
    "name": "sampler",
    "kind": "vllm",
    "replicas": 2,
    "options": {"dtype": "float32", "max_model_len": 256, "kv_cache_gib": 0.05},
}
PROMPT = tuple(range(40, 80))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [build_tiny_model(root / f"policy{seed}", seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def policies(models):
    from safetensors.torch import load_file

    return [
        PolicyRef(policy_version=version, weights_sha256=weights_digest(load_file(path / "model.safetensors").items()))
        for version, path in enumerate(models)
    ]


@pytest.fixture(scope="module")
def started(models, local_ray):
    from tasks.engines.vllm_sampler import start_sampler, stop_sampler

    yield start_sampler(NAME, DECLARATION, str(models[0]))
    stop_sampler(NAME, DECLARATION)


@pytest.fixture
def two(started, models, policies):
    started.load(policies[0], str(models[0]))
    return started


@pytest.fixture
def one(two):
    """The first replica alone, holding policy 0."""
    from tasks.engines.vllm_sampler import find_sampler

    return find_sampler(NAME, {**DECLARATION, "replicas": 1})


def ask(count: int, start: int = 0) -> list[SampleRequest]:
    return [
        SampleRequest(request_id=f"r{place}", prompt_token_ids=(*PROMPT, 90 + place), seed=1000 + place)
        for place in range(start, start + count)
    ]


def settings(**changes) -> SamplingSettings:
    return SamplingSettings(**{"temperature": 1.0, "top_p": 1.0, "max_tokens": 24, **changes})


def token_ids(completions):
    return [completion.token_ids for completion in completions]


def test_two_replicas_give_the_completions_of_one(one, two, policies):
    assert two.held() == one.held() == policies[0]
    together, alone = two.sample(ask(7), settings(), policies[0]), one.sample(ask(7), settings(), policies[0])
    assert [completion.request_id for completion in together] == [f"r{place}" for place in range(7)]
    assert token_ids(together) == token_ids(alone)
    assert [one.text for one in together] == [one.text for one in alone]
    assert len(set(token_ids(together))) == 7


def test_a_request_gives_the_same_token_ids_alone_and_in_a_batch(one, policies):
    batch = one.sample(ask(6), settings(), policies[0])
    assert [one.sample([request], settings(), policies[0])[0].token_ids for request in ask(6)] == token_ids(batch)


def test_callers_at_the_same_time_each_get_their_own_completions(one, policies):
    before = one.stats()
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda start: one.sample(ask(3, start), settings(), policies[0]), (0, 3, 6, 9)))
    assert [completion.request_id for answer in answers for completion in answer] == [f"r{n}" for n in range(12)]
    together = one.sample(ask(12), settings(), policies[0])
    assert token_ids(together) == [ids for answer in answers for ids in token_ids(answer)]
    after, done = one.stats(), one.progress()
    assert after.requests - before.requests == after.requests_done - before.requests_done == 24
    assert after.completion_tokens - before.completion_tokens == 2 * sum(map(len, token_ids(together)))
    assert done["requests_total"] == done["requests_done"] == after.requests
    assert done["tokens"] == after.completion_tokens


def test_the_responses_of_a_group_share_their_prompt_and_the_refinements_of_a_problem_share_what_comes_first(
    one, models, policies
):
    """A block of the cache has 32 tokens. Only those of the first request are computed, though all come at once."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models[0])

    def asked(name, texts):
        chats = [[{"role": "user", "content": text}] for text in texts]
        prompts = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]
        return [
            SampleRequest(request_id=f"{name}{place}", prompt_token_ids=tuple(prompt), seed=place)
            for place, prompt in enumerate(prompts)
        ]

    question = "How many legs are there in total if you have five horses and no other animal at all?"
    group = one.sample(asked("response", [question] * 5), settings(max_tokens=4), policies[0])
    length = len(asked("response", [question])[0].prompt_token_ids)
    assert [completion.cached_prompt_tokens for completion in group] == [0] + [(length - 1) // 32 * 32] * 4

    texts = [f"{question}\n\nEarlier attempt:\n{place * 7}\n\nCritique: it is wrong." for place in range(5)]
    requests = asked("refinement", texts)
    refined = one.sample(requests, settings(max_tokens=4), policies[0])
    seen = [asked("response", [question])[0].prompt_token_ids]
    for request, completion in zip(requests, refined, strict=True):
        shared = max(same_tokens(request.prompt_token_ids, prompt) for prompt in seen)
        assert completion.cached_prompt_tokens == shared // 32 * 32 > 0
        seen.append(request.prompt_token_ids)


def same_tokens(left, right):
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def test_nothing_is_left_in_the_prefix_cache_when_other_weights_are_served(one, models, policies):
    one.sample(ask(1), settings(), policies[0])
    one.load(policies[1], str(models[1]))
    assert one.sample(ask(1), settings(), policies[1])[0].cached_prompt_tokens == 0
    one.load(policies[0], str(models[0]))
    assert one.sample(ask(1), settings(), policies[0])[0].cached_prompt_tokens == 0


def test_a_load_tells_what_its_parts_took(one, models, policies):
    one.load(policies[1], str(models[1]))
    times = one.load_times()
    assert 0 < times.weights + times.reset + times.check <= times.total
    assert times.digest > 0
    one.load(policies[1], str(models[1]))
    assert one.load_times() is None  # served already


def test_prompts_that_begin_alike_are_read_once(one, policies):
    one.sample(ask(1), settings(), policies[0])
    before = one.stats()
    one.sample(ask(1), settings(), policies[0])
    after = one.stats()
    assert after.prompt_tokens - before.prompt_tokens == len(PROMPT) + 1
    assert after.cached_prompt_tokens - before.cached_prompt_tokens == 32


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7}, {"temperature": 0.0}])
def test_a_loaded_policy_is_really_served_and_its_logprobs_are_the_models(one, models, policies, changes):
    answers = []
    for model, policy in zip(models, policies, strict=True):
        assert one.load(policy, str(model)) == policy
        assert one.held() == policy
        assert one.stats().weights_verified
        answers.append(one.sample(ask(3), settings(**changes), policy))
        assert largest_gap(model, answers[-1], changes.get("temperature", 1.0) or 1.0) < 1e-4
    assert [one.logprobs for one in answers[0]] != [one.logprobs for one in answers[1]]
    one.load(policies[0], str(models[0]))
    assert token_ids(one.sample(ask(3), settings(**changes), policies[0])) == token_ids(answers[0])


def largest_gap(model_dir, completions, temperature: float) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    gaps = []
    for request, completion in zip(ask(3), completions, strict=True):
        ids = torch.tensor([[*request.prompt_token_ids, *completion.token_ids]])
        with torch.no_grad():
            logprobs = (model(ids).logits[0] / temperature).log_softmax(-1)
        first = len(request.prompt_token_ids) - 1
        gaps += [
            abs(logprobs[first + place, token].item() - completion.logprobs[place])
            for place, token in enumerate(completion.token_ids)
        ]
    return max(gaps)


def test_logprobs_are_of_the_distribution_that_was_sampled_from(one, policies):
    whole = one.sample(ask(4), settings(max_tokens=1), policies[0])
    cut = one.sample(ask(4), settings(max_tokens=1, top_p=0.3), policies[0])
    ceiling = max(completion.logprobs[0] for completion in whole)
    assert min(completion.logprobs[0] for completion in cut) > ceiling  # a third of the mass, renormalised


def test_weights_of_another_digest_are_refused_and_nothing_is_held_after(two, models, policies):
    with pytest.raises(PolicyMismatch, match="policy 1 has"):
        two.load(policies[1], str(_copy_with_other_weights(models)))
    assert two.held() is None
    with pytest.raises(PolicyMismatch):
        two.sample(ask(1), settings(), policies[0])


def _copy_with_other_weights(models):
    from safetensors.torch import load_file, save_file

    path = models[1].parent / "altered"
    path.mkdir()
    tensors = load_file(models[1] / "model.safetensors")
    tensors["model.norm.weight"] += 1e-3
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_a_directory_without_weights_is_refused_and_the_policy_stays(two, policies, tmp_path):
    with pytest.raises(WeightsMissing, match="has no safetensors files"):
        two.load(policies[1], str(tmp_path))
    assert two.held() == policies[0]


def test_weights_of_another_model_are_refused_and_the_policy_stays(two, policies, tmp_path):
    deeper = build_tiny_model(tmp_path / "deeper", layers=3)
    with pytest.raises(PolicyMismatch, match="another model"):
        two.load(policies[1], str(deeper))
    assert two.held() == policies[0]


def test_a_call_that_expects_another_policy_is_refused(two, policies):
    with pytest.raises(PolicyMismatch, match="expects"):
        two.sample(ask(2), settings(), policies[1])


def test_a_completion_ends_with_its_end_token_or_at_the_limit(one, models, policies):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models[0])
    completions = one.sample(ask(48), settings(max_tokens=64), policies[0])
    ended = [completion for completion in completions if completion.finish_reason == "stop"]
    cut = [completion for completion in completions if completion.finish_reason == "length"]
    assert ended
    assert len(ended) + len(cut) == 48
    assert all(completion.token_ids[-1] == tokenizer.eos_token_id for completion in ended)
    assert all(len(completion.token_ids) == 64 for completion in cut)
    assert all(tokenizer.eos_token not in completion.text for completion in ended)
    assert all(len(completion.logprobs) == len(completion.token_ids) for completion in completions)


def test_greedy_completions_do_not_depend_on_the_seed(one, policies):
    first, second = (
        SampleRequest(request_id=name, prompt_token_ids=PROMPT, seed=seed) for name, seed in (("a", 1), ("b", 2))
    )
    completions = one.sample([first, second], settings(temperature=0.0), policies[0])
    assert completions[0].token_ids == completions[1].token_ids


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_sampled(two, policies):
    before = two.stats().requests
    long = SampleRequest(request_id="long", prompt_token_ids=(5,) * 250, seed=1)
    with pytest.raises(PromptTooLong, match="request long"):
        two.sample([*ask(3), long], settings(), policies[0])
    assert two.stats().requests == before
