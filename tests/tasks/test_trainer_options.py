"""What a declaration of the trainer may say."""

import pytest

from cgrpo_core.errors import UserError
from tasks.engines.deepspeed_trainer import read_options


def test_ranks_on_a_machine_without_gpu_share_its_threads_and_gpus_are_used_when_declared():
    assert read_options({}).num_threads == 2
    assert read_options({"replicas": 2}).num_threads == 1
    assert read_options({"resources": {"num_cpus": 0}}).on_cpu
    assert not read_options({"resources": {"num_gpus": 0.5}}).on_cpu


@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        ({"options": {"zero_stag": 2}}, "zero_stag"),
        ({"options": {"zero_stage": 4}}, "zero_stage is 4"),
        ({"options": {"products": "mkl"}}, "products is mkl"),
        ({"options": {"products": "onednn", "dtype": "bfloat16", "zero_stage": 2}}, "float32 on the CPU"),
        ({"options": {"products": "onednn"}, "resources": {"num_gpus": 1}}, "float32 on the CPU"),
        ({"options": {"dtype": "float16"}}, "float16"),
        ({"options": {"dtype": "bfloat16"}}, "zero_stage 1, 2 or 3"),
        ({"replicas": 0}, "replicas is 0"),
        ({"options": {"compile": True}}, "for a GPU"),
        ({"resources": {"num_gpus": 1}, "options": {"compile": True, "zero_stage": 3}}, "zero_stage 0, 1 or 2"),
    ],
)
def test_options_that_cannot_be_are_named(declaration, said):
    with pytest.raises(UserError, match=said):
        read_options(declaration)
