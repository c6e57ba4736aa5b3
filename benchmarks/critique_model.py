"""A small model, trained from scratch on the CPU, that forgets carries in long sums unless a critique stands before it.

    python benchmarks/critique_model.py DIRECTORY [--steps 1000] [--check]

A Llama of two million parameters reads sums in exactly the text that cgrpo builds (prompts.py, critique_kinds/), and
answers column by column, from the right, then boxes the answer:

    What is 4728 + 3950?   ->   8+0+0=08 / 2+5+0=07 / 7+9+0=16 / 4+3+1=08 / \\boxed{8678}

Short sums it was taught right. Long ones, asked alone, it was taught from solutions that forget each carry with
probability FORGETS; asked again with a critique that states the answer, from solutions that forget one of twenty. So it
has a habit that a critique breaks, and what is right under a critique is right for a reason that the bare question
shares: the column before. It is a model made for an experiment (critique_helps.py), and knows nothing else.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgrpo_core.critique_kinds.indicative_gt import indicative_gt_critique
from cgrpo_core.prompts import Message, question_messages, refinement_messages

SHORT, LONG = 2, 4  # digits of each operand
FORGETS, FORGETS_TOLD = 0.85, 0.05  # of a carry, in a long sum asked alone, and after a critique that states the answer
ALONE_SHORT, AGAIN_SHORT = 0.3, 0.1  # share of short sums in what is taught
HIDDEN, LAYERS, HEADS, HEAD_DIM, WIDTH = 192, 4, 3, 64, 512
CONTEXT, BATCH, LEARNING_RATE, SEED, STEPS = 512, 32, 2e-3, 0, 1000
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Two operands of `digits` digits each."""

    a: int
    b: int
    digits: int

    @property
    def question(self) -> str:
        """The problem's text."""
        return f"What is {self.a} + {self.b}?"

    @property
    def columns(self) -> list[tuple[int, int]]:
        """The digits that stand above each other, from the right."""
        return [(self.a // 10**place % 10, self.b // 10**place % 10) for place in range(self.digits)]

    @property
    def carries(self) -> int:
        """How many columns carry into another column; the carry out of the last one is not among them."""
        carry, count = 0, 0
        for first, second in self.columns[:-1]:
            carry = (first + second + carry) // 10
            count += carry
        return count


def draw_sum(draw: random.Random, digits: int) -> Sum:
    """Return a sum of two numbers of so many digits."""
    low, high = 10 ** (digits - 1), 10**digits - 1
    return Sum(a=draw.randint(low, high), b=draw.randint(low, high), digits=digits)


def worked(one: Sum, draw: random.Random, forgets: float) -> tuple[str, int]:
    """Return a solution column by column that forgets each carry with this probability, and the answer it comes to."""
    carry, lines, answer = 0, [], 0
    for place, (first, second) in enumerate(one.columns):
        carried = carry if draw.random() >= forgets else 0
        total = first + second + carried
        lines.append(f"{first}+{second}+{carried}={total:02d}")
        carry = total // 10
        answer += (total if place == one.digits - 1 else total % 10) * 10**place
    return "\n".join(lines) + f"\n\\boxed{{{answer}}}", answer


def lesson(draw: random.Random, again: bool) -> tuple[list[Message], str]:
    """Return the messages of one training example, asked alone or again, and what is to be answered."""
    one = draw_sum(draw, SHORT if draw.random() < (AGAIN_SHORT if again else ALONE_SHORT) else LONG)
    forgets = FORGETS if one.digits == LONG else 0.0
    if not again:
        return question_messages(one.question, "boxed"), worked(one, draw, forgets)[0]
    attempt, answer = worked(one, draw, forgets)
    critique = indicative_gt_critique(answer == one.a + one.b, str(one.a + one.b))
    return refinement_messages(one.question, attempt, critique, "boxed"), worked(one, draw, FORGETS_TOLD)[0]


def build_tokenizer() -> Any:
    """Return a tokenizer of bytes whose merges are the sentences of the prompts; every digit is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    pieces = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False, use_regex=False)]
    inner.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=2000, min_frequency=50, initial_alphabet=alphabet, show_progress=False)
    draw = random.Random("tokenizer")
    lessons = [lesson(draw, again) for again in (False, True) for _ in range(200)]
    texts = [text for messages, answer in lessons for text in (messages[0]["content"], answer, "user\n", "assistant\n")]
    inner.train_from_iterator([*texts, *["\n"] * 400], trainer)
    specials = {"eos_token": END, "pad_token": PAD, "additional_special_tokens": [START]}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=False, model_max_length=CONTEXT, **specials
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: Any) -> Any:
    """Return an untrained model for this tokenizer."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        dtype="float32",
        **ends,
    )
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config).to(torch.float32)
    model.generation_config = GenerationConfig(**ends)
    return model


def batches(tokenizer: Any, draw: random.Random) -> Iterator[tuple[Any, Any]]:
    """Yield token ids, padded, and the same with -100 wherever no answer stands."""
    import torch

    while True:
        ids, wanted = [], []
        again = draw.random() < 0.5  # of one kind, so that little is padded
        for _ in range(BATCH):
            messages, answer = lesson(draw, again)
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            told = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
            ids.append(torch.tensor(prompt + told))
            wanted.append(torch.tensor([-100] * len(prompt) + told))
        pad = torch.nn.utils.rnn.pad_sequence
        yield pad(ids, True, tokenizer.pad_token_id), pad(wanted, True, -100)


def teach(model: Any, tokenizer: Any, steps: int) -> Iterator[tuple[int, float]]:
    """Train the model; yield the loss of each step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step, (ids, wanted) in zip(range(steps), batches(tokenizer, random.Random(SEED)), strict=False):
        share = min(1.0, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * share
        places = wanted[:, 1:] != -100
        with torch.autocast("cpu", torch.bfloat16):  # half the time of float32
            hidden = model.model(ids).last_hidden_state[:, :-1][places]
            logits = model.lm_head(hidden)
        loss = torch.nn.functional.cross_entropy(logits.float(), wanted[:, 1:][places])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step, loss.item()


def build(directory: Path, steps: int, say: Any = print) -> Path:
    """Train and write the model in Hugging Face format."""
    tokenizer = build_tokenizer()
    model = new_model(tokenizer)
    began = time.monotonic()
    for step, loss in teach(model, tokenizer, steps):
        if step % 25 == 0 or step == steps - 1:
            say(f"step {step} loss {loss:.3f} {time.monotonic() - began:.0f} s")
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    return directory


def answers(model: Any, tokenizer: Any, prompts: Sequence[list[Message]]) -> list[str]:
    """Return one sampled answer to each prompt, at temperature 1."""
    import torch

    texts = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False) for prompt in prompts]
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    torch.manual_seed(SEED)
    found = model.generate(**batch, max_new_tokens=56, do_sample=True, top_k=0)
    return [tokenizer.decode(row[batch["input_ids"].shape[1] :], skip_special_tokens=True) for row in found]


def check(directory: Path, problems: int = 100) -> dict[str, float]:
    """Return what share the model gets right, alone and after a critique; also after one that states another answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    draw = random.Random("check")
    short, many = [draw_sum(draw, SHORT) for _ in range(problems)], [draw_sum(draw, LONG) for _ in range(9 * problems)]
    hard = [one for one in many if one.carries >= 2][:problems]

    def right(sums: Sequence[Sum], texts: Sequence[str], off: int = 0) -> float:
        hits = [f"{{{one.a + one.b + off}}}" in text for one, text in zip(sums, texts, strict=True)]
        return sum(hits) / len(hits)

    def again(off: int) -> list[str]:
        told = [
            (one, worked(one, draw, 1.0)[0], indicative_gt_critique(False, str(one.a + one.b + off))) for one in hard
        ]
        prompts = [refinement_messages(one.question, attempt, critique, "boxed") for one, attempt, critique in told]
        return answers(model, tokenizer, prompts)

    alone = [
        answers(model, tokenizer, [question_messages(one.question, "boxed") for one in of]) for of in (short, hard)
    ]
    other = again(100)
    return {
        "short, alone": right(short, alone[0]),
        "hard, alone": right(hard, alone[1]),
        "hard, after a critique": right(hard, again(0)),
        "hard, after a critique that states the sum + 100": right(hard, other),
        "and comes to the sum + 100": right(hard, other, 100),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say where the model lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--check", action="store_true", help="only say what the model in DIRECTORY gets right")
    options = parser.parse_args(arguments)
    print(check(options.directory) if options.check else build(options.directory, options.steps))


if __name__ == "__main__":
    main()
