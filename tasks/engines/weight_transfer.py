"""Weights from the trainer's device to the sampler's by vLLM's weight-transfer API, without a file in between.

vLLM's protocol has four calls, which the trainer makes on every replica: init_weight_transfer_engine,
start_weight_update, update_weights, finish_weight_update. Between the first and the last nothing may be sampled, so a
replica takes the whole of it as one load: the thread that drives the engine serves the calls that arrive meanwhile
(`Transfer`), and a last one, `accept`, brings some columns of each tensor, with which what is then served is compared.

Backends: `ipc` (one device for both), `nccl` (a device each). Both need GPUs; on the CPU weights go by files.
"""

import queue
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import torch

from tasks.engines.faults import EngineBroken, EngineNotStarted
from tasks.engines.vllm_weights import sample_columns

Tensors = Sequence[tuple[str, torch.Tensor]]
ARGUMENTS = {"init_weight_transfer_engine": "init_info", "update_weights": "update_info"}


class Transfer:
    """One transfer at one replica: calls come from any thread, and are carried out by the one that serves."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[str, Any, Future[None]]] = queue.SimpleQueue()

    def call(self, method: str, argument: Any = None) -> None:
        """Have a call carried out; return when it was, or raise what it raised."""
        done: Future[None] = Future()
        self._calls.put((method, argument, done))
        done.result()

    def serve(self, rpc: Callable[[str, dict[str, Any]], Any], deadline_s: float) -> dict[str, torch.Tensor]:
        """Carry out calls until weights are to be accepted; return what those that are served must agree with.

        Raises EngineBroken when the trainer falls silent, and whatever a call raises: half the weights may be new then.
        """
        finished = False
        while True:
            try:
                method, argument, done = self._calls.get(timeout=deadline_s)
            except queue.Empty:
                raise EngineBroken(f"a transfer of weights stood still for {deadline_s:g} s") from None
            try:
                if method == "accept":
                    if not finished:
                        raise EngineBroken("weights are to be accepted that were not finished")
                    done.set_result(None)
                    accepted: dict[str, torch.Tensor] = argument
                    return accepted
                rpc(method, {ARGUMENTS[method]: argument} if method in ARGUMENTS else {})
            except Exception as error:  # whatever vLLM raises: the trainer that waits must hear of it too, or it hangs
                done.set_exception(error)
                raise
            finished = method == "finish_weight_update"
            done.set_result(None)


class Replica(Protocol):
    """What a trainer sees of a sampler's replicas: vLLM's four calls, and the acceptance."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Meet the trainer."""

    def start_weight_update(self) -> None:
        """Make ready."""

    def update_weights(self, update_info: Any) -> None:
        """Take some tensors."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Serve them."""

    def accept(self, samples: Mapping[str, torch.Tensor]) -> None:
        """Compare what is served."""


class RayReplicas:
    """The replicas as Ray actors (vllm_sampler.SamplerActor), all asked at once."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = list(actors)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have all replicas meet the trainer."""
        self._call("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        """Have all replicas make ready."""
        self._call("start_weight_update", None)

    def update_weights(self, update_info: Any) -> None:
        """Have all replicas take some tensors."""
        self._call("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Have all replicas serve them."""
        self._call("finish_weight_update", None)

    def accept(self, samples: Mapping[str, torch.Tensor]) -> None:
        """Have all replicas compare what they serve."""
        self._call("accept", dict(samples))

    def _call(self, method: str, argument: Any) -> None:
        import ray

        ray.get([actor.transfer.remote(method, argument) for actor in self._actors])


def send_weights(tensors: Iterable[tuple[str, torch.Tensor]], replicas: Replica, init_info: Any) -> None:
    """Send (name, tensor) pairs to all replicas (collective over the trainer's ranks; rank 0 speaks)."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

    kept = list(tensors)
    sender = WeightTransferTrainerFactory.trainer_init(init_info, client=replicas, source=_source(kept))
    try:
        sender.send_weights()
    finally:
        sender.shutdown()
    if init_info.is_sender:
        replicas.accept({name: sample_columns(tensor).cpu() for name, tensor in kept if tensor.ndim in (1, 2)})


def trainer_info(backend: str, rank: int, replicas: int) -> Any:
    """Return what vLLM's trainer side of a backend starts from. Raises EngineNotStarted for one that it lacks."""
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(rank=rank)
    if backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return NCCLTrainerInitInfo(master_address="127.0.0.1", master_port=port, world_size=1 + replicas, rank=rank)
    raise EngineNotStarted(f"there is no way of weights called {backend!r}", "it is files, ipc or nccl")


def _source(tensors: Tensors) -> Any:
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    class Held(WeightSource):  # type: ignore[misc]
        """The trainer's tensors, gathered already."""

        def metadata(self) -> list[Any]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors]

        def __iter__(self) -> Any:
            return iter(tensors)

    return Held()
