"""How a trainer runs: the options of its declaration, with their defaults. Nothing here imports torch."""

from dataclasses import dataclass

from tasks.engines.deadlines import DEADLINE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOptions:
    """How the trainer runs; none of it is in a key. bfloat16 needs ZeRO 1 or more (float32 weights are kept there).

    num_threads: of torch, a rank. chunk_tokens: completion tokens whose logits are held at once. packed_tokens: rows
    with one prompt are computed in one sequence of up to this many tokens (micro_batch.py); 0: a sequence a row.
    products: who multiplies matrices: torch's choice, or onednn, twice as fast for float32 on AMD's processors.
    compile: fuse the model's small operations (a GPU only; a minute at the first update, and not with ZeRO 3).
    deadline_s: a rank whose process answers nothing for so long is taken for hung, and all ranks are killed.
    """

    zero_stage: int = 0
    dtype: str = "float32"
    num_threads: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    products: str = "torch"
    chunk_tokens: int = 512
    packed_tokens: int = 0
    deadline_s: float = DEADLINE_S
    on_cpu: bool = True
