"""vLLM's weight transfer, both ends: how an engine in another process follows the policy that is trained.

vLLM's engine takes four calls (``init_weight_transfer_engine``, ``start_weight_update``, ``update_weights``,
``finish_weight_update``) and has a backend that moves the tensors. On CUDA that is vLLM's own ``nccl``:
from the trainer's GPU to the engine's. On a CPU none of vLLM's runs, so ``shared_memory`` is registered here;
it loads the weights as vLLM's do, layer by layer, so that what the engine makes of them (packed copies,
merged projections) is made anew.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import (
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.utils.network_utils import get_open_port

from models.errors import EngineError
from models.shared_weights import Place, SharedWeights

NCCL, SHARED_MEMORY = "nccl", "shared_memory"


class WeightClient(Protocol):
    """The engine's end of the four calls, as the trainer has it."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Meet."""

    def start_weight_update(self) -> None:
        """Get ready for an update."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take the weights."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Compute with them from now on."""


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """``descriptor`` is that of the memory in the engine's process."""

    descriptor: int


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """Where every weight lies in the memory."""

    places: list[Place]


class SharedMemoryTransferEngine(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):
    """The engine's end of ``shared_memory``. The memory must stay as it is until the update is finished:
    vLLM keeps what it was shown of a layer until the layer is whole."""

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate
    _memory: SharedWeights

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        """Take the memory's descriptor."""
        self._memory = SharedWeights(init_info.descriptor)

    def start_weight_update(self) -> None:
        """Make every layer wait for weights."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        """Load what lies in the memory."""
        self.model.load_weights(self._memory.read(update_info.places))

    def finish_weight_update(self) -> None:
        """Make of the weights what the layers compute with."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing: the memory belongs to the processes, and ends with them."""


WeightTransferEngineFactory.register_engine(SHARED_MEMORY, SharedMemoryTransferEngine)


class NCCLSender:
    """The trainer's end of ``nccl``: a group of two, this process and its engine on another GPU."""

    def __init__(self, client: WeightClient, device: torch.device) -> None:
        self._source = _Given(device)
        # Not packed into buffers of a GiB, which trainer and engine would hold twice each.
        info = NCCLTrainerInitInfo("127.0.0.1", get_open_port(), 2, packed=False, rank=0)
        self._client = _Watched(client, self.close)
        self._engine = WeightTransferTrainerFactory.trainer_init(
            info, client=self._client, source=self._source
        )

    def send(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """A whole update, from its start to its end. Raises EngineError when the engine fails in it."""
        self._source.weights = list(weights)
        try:
            self._engine.send_weights()
        except Exception:
            if self._client.failure is not None:  # what the broadcast then says is only how it was given up
                raise self._client.failure from None
            raise
        finally:
            self._source.weights = []

    def close(self) -> None:
        """Leave the group; a broadcast that waits for the other end is given up."""
        self._engine.shutdown()


class _Watched:
    """A client whose failure in mid-transfer ends the transfer: else the broadcast would wait for ever."""

    def __init__(self, client: WeightClient, on_failure: Callable[[], None]) -> None:
        self.init_weight_transfer_engine = client.init_weight_transfer_engine
        self.start_weight_update = client.start_weight_update
        self.finish_weight_update = client.finish_weight_update
        self._update_weights, self._on_failure = client.update_weights, on_failure
        self.failure: EngineError | None = None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Called from a thread of vLLM's while the broadcast runs."""
        try:
            self._update_weights(update_info)
        except EngineError as error:
            self.failure = error
            self._on_failure()
            raise


class _Given(WeightSource):
    """The weights of one update, which NCCL wants on the GPU."""

    def __init__(self, device: torch.device) -> None:
        self.weights: list[tuple[str, Tensor]] = []
        self._device = device

    def metadata(self) -> list[ParamMeta]:
        """Names, types and shapes, in order."""
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.weights:
            yield name, tensor.to(self._device)
