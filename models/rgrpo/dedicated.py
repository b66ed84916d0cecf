"""Placement ``dedicated``: a rank's engine in a process of its own, on a device of its own.

One engine per rank, as with ``colocate``: questions, trajectories and weights never leave their rank, so what
is sampled is the same to the bit, no rank waits for another's engine, and nothing is to be shared out.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from multiprocessing.reduction import send_handle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.errors import ConfigError, EngineError
from models.records import Question
from models.rgrpo.engine_process import Call, Done, Failed, Opening, environment_of_engine, run
from models.shared_weights import SharedWeights
from models.trajectory import Trajectory

if TYPE_CHECKING:
    from models.weight_transfer import NCCLSender

_LAST_SECONDS = 10.0  # between the end of a process's pipe and its own


def engine_device(
    devices: Sequence[int], *, trainer: torch.device, num_trainers: int, num_devices: int
) -> int | None:
    """The GPU of a rank's engine, None on a CPU.

    ``devices`` are ``rgrpo.engine_devices``; ``trainer`` is where this rank trains, of ``num_trainers`` on
    this host, which has ``num_devices`` GPUs. Raises ConfigError when they cannot be meant.
    """
    if trainer.type != "cuda":
        if devices:
            raise ConfigError(
                f"rgrpo.engine_devices {list(devices)} names GPUs, and this machine has none. Leave it empty."
            )
        return None
    free = range(num_trainers, num_devices)
    if len(set(devices)) < max(num_trainers, len(devices)) or not set(devices) <= set(free):
        raise ConfigError(
            f"rgrpo.engine_devices {list(devices)} must name another GPU for each of the {num_trainers} "
            f"engines of this host, and none on which a rank trains: of {num_devices} GPUs those are "
            f"{f'{free.start} to {free.stop - 1}' if free else 'none'}. Set it, lower rgrpo.num_ranks, or "
            "use rgrpo.placement=colocate."
        )
    return devices[trainer.index]


class DedicatedSampler:
    """A :class:`models.rgrpo.samplers.Sampler` whose work is done by a child process.

    ``trainer`` is where this rank trains, ``device`` the GPU of the engine, None on a CPU. The child is
    started at once and waited for when it is first needed. It ends when it is closed, and when this process
    dies, whatever the reason. Every method raises EngineError when the engine has ended, did not start, or
    does not answer within ``timeout_seconds``.
    """

    has_weights = True
    shares_tower = False
    keeps_frozen = True

    def __init__(
        self, opening: Opening, *, trainer: torch.device, device: int | None, timeout_seconds: float
    ) -> None:
        self.version = 0
        self._trainer = trainer
        self._memory = SharedWeights() if opening.shares_memory else None
        self._nccl: NCCLSender | None = None
        self._engine = EngineClient(opening, device=device, timeout_seconds=timeout_seconds)
        if self._memory is not None:
            self._engine.hand_over(self._memory.descriptor)

    def roll_out(self, questions: Sequence[Question], **how: Any) -> list[Trajectory]:
        """See :class:`models.rgrpo.samplers.Sampler`."""
        self.begin(questions, **how)
        return self.collect()

    def begin(self, questions: Sequence[Question], *, salt: str = "", **how: Any) -> None:
        """Let the engine roll out while this process does something else; :meth:`collect` gives it."""
        self._engine.begin("roll_out", questions=list(questions), salt=salt, **how)

    def collect(self) -> list[Trajectory]:
        """What was begun, once it is finished."""
        trajectories: list[Trajectory] = self._engine.answer()
        return trajectories

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Send weights (named as in ``Policy.weights``), which replace the engine's."""
        if self._memory is not None:
            places = self._memory.write(weights)
            self._engine.start_weight_update()
            self._engine.update_weights({"places": places})
            self._engine.finish_weight_update()
        else:
            self._meet().send(weights)
        self._engine.call("begin_version", version=version)
        self.version = version

    def looking_itself(self) -> AbstractContextManager[None]:
        """See :class:`models.rgrpo.samplers.Sampler`; it always does."""
        return nullcontext()

    def rest(self) -> None:
        """Nothing: the engine's device is its own."""

    def close(self) -> None:
        """End the engine; what it was doing is lost."""
        if self._nccl is not None:
            self._nccl.close()
        self._engine.close()
        if self._memory is not None:
            self._memory.close()

    def _meet(self) -> "NCCLSender":
        if self._nccl is None:
            from models.weight_transfer import NCCLSender  # vLLM, which a CPU's trainer has no use for

            self._engine.wait_until_up()  # meeting is not waited for as long
            self._nccl = NCCLSender(self._engine, self._trainer)
        return self._nccl


class EngineClient:
    """The engine's process as its trainer has it: calls and answers, in order, and its end.

    It is also the client of vLLM's weight transfer (:class:`models.weight_transfer.WeightClient`).
    """

    def __init__(self, opening: Opening, *, device: int | None, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._is_up = False
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=run, args=(theirs, opening), name="vlm-r3-engine")
        with environment_of_engine(device):
            self._process.start()
        theirs.close()

    def hand_over(self, descriptor: int) -> None:
        """Give the child a file descriptor."""
        try:
            send_handle(self._pipe, descriptor, self._process.pid)
        except OSError as error:
            reason = self._obituary()
            self.close()
            raise EngineError(reason) from error

    def call(self, method: str, **arguments: Any) -> Any:
        """What a method of the engine's :class:`models.rgrpo.engine_process.Worker` returns."""
        self.begin(method, **arguments)
        return self.answer()

    def begin(self, method: str, **arguments: Any) -> None:
        """Ask, and do not wait; :meth:`answer` follows before anything else is asked."""
        try:
            self._pipe.send(Call(method, arguments))
        except OSError as error:
            raise EngineError(self._obituary()) from error

    def answer(self) -> Any:
        """What was asked for last, once it is there."""
        self.wait_until_up()
        return self._receive()

    def wait_until_up(self) -> None:
        """Its first answer is that it has started."""
        if not self._is_up:
            self._is_up = True
            self._receive()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Meet for the transfer of weights."""
        self._transfer("init_weight_transfer_engine", init_info=init_info)

    def start_weight_update(self) -> None:
        """Get ready for new weights."""
        self._transfer("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take the weights."""
        self._transfer("update_weights", update_info=update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The weights are whole."""
        self._transfer("finish_weight_update")

    def close(self) -> None:
        """End the child, which has nothing to save."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _transfer(self, call: str, **arguments: Any) -> None:
        self.call("receive", call=call, arguments=arguments)

    def _receive(self) -> Any:
        try:
            if not self._pipe.poll(self._timeout_seconds):
                raise EngineError(
                    f"The engine's process has not answered for {self._timeout_seconds:g} seconds. Look into "
                    "the log, or allow more by rgrpo.engine_timeout_seconds. The same command goes on from "
                    "the last checkpoint."
                )
            message: Done | Failed = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise EngineError(self._obituary()) from error
        if isinstance(message, Failed):
            raise EngineError(f"In the engine's process: {message.reason}")
        return message.value

    def _obituary(self) -> str:
        self._process.join(_LAST_SECONDS)
        return (
            f"The engine's process ended with exit code {self._process.exitcode} (negative: killed by that "
            "signal, -9 often for want of memory); the log says more. The same command goes on from the last "
            "checkpoint."
        )
