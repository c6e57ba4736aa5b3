"""A tiny model that answers with one of four digits and stops: right by chance, so that groups differ in reward."""

from pathlib import Path

from tiny_model import build_tiny_model

DIGITS = "1234"
STEPS, ROWS = 120, 16


def build_digit_model(directory: Path, seed: int = 0) -> Path:
    """Write a tiny model, taught for a few seconds to answer any question with a digit of 1 to 4, into `directory`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    build_tiny_model(directory, seed)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        a, b, answers = torch.randint(0, 4, (3, ROWS), generator=draw).tolist()
        questions = [[{"role": "user", "content": f"{x} and {y}?"}] for x, y in zip(a, b, strict=True)]
        prompts = [tokenizer.apply_chat_template(q, add_generation_prompt=True, return_dict=False) for q in questions]
        targets = [[tokenizer.convert_tokens_to_ids(DIGITS[answer]), tokenizer.eos_token_id] for answer in answers]
        ids = torch.tensor([prompt + target for prompt, target in zip(prompts, targets, strict=True)])
        logits = model(ids).logits[:, -3:-1]  # one-digit questions: all prompts have one length, and no padding
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(directory, safe_serialization=True)
    return directory
