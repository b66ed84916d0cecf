"""The engine of rollouts and evaluation: vLLM in this process, every live trajectory in flight.

Requests enter and leave the running batch at any step (continuous batching), so a trajectory that waits for
its crop holds nobody up. What makes engine and trainer agree:

* vLLM receives the sampled ids themselves, and ids, places and patches of pictures as the trainer's encoder
  makes them (:mod:`models.vllm_inputs`); it tokenises and processes nothing itself;
* log-probs are those of the distribution that was sampled from: after the temperature, without banned tokens;
* a weight update renews the output head and empties every cache that holds something of the old weights.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.allocator import keep_freed_memory
from models.config import EngineConfig, Look
from models.encoding import Collapsed, Encoder, TextSoFar  # first: it declares torchvision's operators
from models.errors import EncodingError, EngineError
from models.trajectory import Draft, Finish, GenerationRequest, Piece, SampledSpan

# vLLM reads these when it is imported: the engine core belongs in this process, beside the trainer, and its
# log is not ours to show.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from vllm import EngineArgs, ModelRegistry, RequestOutput, SamplingParams
    from vllm.exceptions import VLLMClientError
    from vllm.inputs import EngineInput
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.sample import sampler

    from models.vllm_cpu import register_layers
    from models.vllm_inputs import Inputs, LookAt

log = logging.getLogger(__name__)

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
# The class itself, not its name: vLLM inspects a name in a child process, where torchvision does not import.
ModelRegistry.register_model(ARCHITECTURE, Qwen2_5_VLForConditionalGeneration)
register_layers(current_platform)

MAX_BATCHED_TOKENS = 8192  # tokens of one step; what is over is prefilled in the next steps
# On a CPU a prompt must not be prefilled in parts: vLLM then rewinds the request's random generator, which
# torch has no word for there. So one step has room for every prompt, up to what is sensible to hold.
MAX_CPU_BATCHED_TOKENS = 65536
CPU_BLOCK_SIZE = 32  # tokens per cache block; vLLM's 128 would never share the prompts of a small model

# vLLM's level 2 keeps nothing of the weights: an update brings them all before anything is sampled again.
_SLEEP_LEVEL = 2


class VLLMEngine:
    """In-process vLLM as a :class:`models.engine.Engine`. One at a time per process.

    It seeds torch's global generator when it starts. ``version`` is the policy version that spans are marked
    with; :meth:`update_weights` sets it. While ``salt`` is not empty, requests share caches only with those
    of the same salt. With ``look_at`` pictures come with the features that it finds, those of a tower which
    somebody else has, and the engine's own looks at none (:meth:`looking_itself`). ``transfer`` names the
    backend of vLLM's weight transfer, for :meth:`receive`. With ``sleeps`` it can :meth:`sleep`, where the
    platform can: ``can_sleep``.
    """

    def __init__(
        self,
        model_path: Path,
        config: EngineConfig,
        *,
        look: Look,
        seed: int = 0,
        look_at: LookAt | None = None,
        transfer: str = "",
        sleeps: bool = False,
    ) -> None:
        self.encoder = Encoder.load(model_path)
        self._inputs = Inputs(self.encoder, max_pictures=config.max_images, look_at=look_at)
        self.version = 0
        self.salt = ""
        self._config = config
        self._waiting: dict[str, GenerationRequest] = {}
        self._arrived: dict[str, GenerationRequest] = {}  # of those that wait, what vLLM has not got yet
        self._texts: dict[str, TextSoFar] = {}
        self._drafts: list[Draft] = []
        self._shares_process_group = torch.distributed.is_initialized()
        self.can_sleep = can_sleep(current_platform, sleeps=sleeps)
        self._is_asleep = False
        self._engine = _start(
            model_path, config, look=look, seed=seed, transfer=transfer, sleeps=self.can_sleep
        )
        self._engine.apply_model(_ban(self.encoder.banned_ids))

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; its id must not be in flight."""
        if request.request_id in self._waiting:
            raise EngineError(f"Request {request.request_id!r} is already in flight.")
        if self._is_asleep:
            raise EngineError("The engine sleeps and has no weights; update them first.")
        self._waiting[request.request_id] = self._arrived[request.request_id] = request

    def step(self) -> list[Piece]:
        """One step of vLLM; the pieces that finished in it, and of requests that cannot be asked."""
        self._drafts = []
        pieces = self._admit()
        if self._engine.has_unfinished_requests():
            try:
                outputs = self._engine.step()
            except RuntimeError as error:
                raise EngineError(f"vLLM failed in a step: {error}") from error
            for output in outputs:
                if output.finished:
                    pieces.append(self._piece(output))
                else:
                    self._note_draft(output)
        elif self._waiting:
            raise EngineError(
                f"vLLM lost {len(self._waiting)} requests, the first {next(iter(self._waiting))!r}."
            )
        return pieces

    def drafts(self) -> list[Draft]:
        """The requests with ``shows_drafts`` whose text grew in the last step."""
        return self._drafts

    def abort(self, request_id: str) -> None:
        """Forget a request in flight; unknown ids are ignored."""
        self._texts.pop(request_id, None)
        is_waited_for = self._waiting.pop(request_id, None) is not None
        if self._arrived.pop(request_id, None) is None and is_waited_for:
            self._engine.abort_request([request_id])

    def close(self) -> None:
        """Shut the engine down and free its memory; the trainer's process group stays."""
        self._waiting.clear()
        self._arrived.clear()
        self._texts.clear()
        with _keep_default_group() if self._shares_process_group else nullcontext():
            self._engine.engine_core.shutdown()
        del self._engine

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Replace weights (named as in ``Policy.weights``) and forget everything the old ones made.

        A layer of which none come keeps its own, but for an engine that :attr:`can_sleep`: it may have none.
        Raises EngineError while requests are in flight: their cache belongs to the old weights.
        """
        self._require_idle()
        was_asleep, self._is_asleep = self._is_asleep, False
        if was_asleep:
            torch.cuda.empty_cache()  # what the trainer has freed and its allocator kept
            self._engine.wake_up(["weights"])
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if was_asleep:
            self._engine.wake_up(["kv_cache"])
        self.begin_version(version)

    def sleep(self) -> None:
        """Leave the device's memory to the trainer until :meth:`update_weights`; nothing where it cannot.

        Raises EngineError while requests are in flight.
        """
        if self.can_sleep:
            self._require_idle()
            self._engine.sleep(level=_SLEEP_LEVEL)
            self._is_asleep = True

    def receive(self, call: str, arguments: Mapping[str, Any]) -> None:
        """A call of vLLM's weight transfer, which brings the weights from elsewhere in place of
        :meth:`update_weights`; :meth:`begin_version` follows the last.

        Raises EngineError while requests are in flight.
        """
        self._require_idle()
        self._engine.collective_rpc(call, kwargs=dict(arguments))

    def begin_version(self, version: int) -> None:
        """Forget everything that older weights made, once new ones are there."""
        self._engine.apply_model(_renew_tied_head)
        if not self._engine.reset_prefix_cache():
            raise EngineError("vLLM did not reset its prefix cache, so old activations would be reused.")
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()
        self.version = version

    @contextmanager
    def looking_itself(self) -> Iterator[None]:
        """Within this context the engine's own tower looks at pictures, with ``look_at`` too. What was seen
        the other way is forgotten, before and after. Raises EngineError while requests are in flight."""
        self._require_idle()
        look_at, self._inputs.look_at = self._inputs.look_at, None
        self.begin_version(self.version)
        try:
            yield
        finally:
            self._inputs.look_at = look_at
            self.begin_version(self.version)

    def _require_idle(self) -> None:
        if self._waiting:
            raise EngineError(
                f"{len(self._waiting)} requests are in flight; update weights between rollouts."
            )

    def _admit(self) -> list[Piece]:
        """Hand vLLM what has arrived since the last step, all new pictures looked at together; the pieces of
        requests that it does not take."""
        arrived, self._arrived = self._arrived, {}
        sequences: dict[str, Collapsed] = {}
        refused = []
        for request in arrived.values():
            try:
                collapsed = self.encoder.collapse(request.prompt, request.spans)
                self._inputs.check(collapsed)
                sequences[request.request_id] = collapsed
            except EncodingError as error:
                refused.append(self._refused(request, "error", str(error)))
        seen = self._inputs.see([picture for one in sequences.values() for picture in one.pictures])
        for request_id, collapsed in sequences.items():
            refused += self._add(self._waiting[request_id], self._inputs.of(collapsed, seen, salt=self.salt))
        return refused

    def _add(self, request: GenerationRequest, given: EngineInput) -> list[Piece]:
        """Hand vLLM a request with its input; its piece when there is nothing to wait for."""
        room = self._config.max_model_len - len(given["prompt_token_ids"])
        if room <= 0:
            return [self._refused(request, "context")]
        try:
            added = self._engine.add_request(request.request_id, given, self._sampling(request, room))
        except (ValueError, VLLMClientError) as error:
            return [self._refused(request, "error", str(error))]
        # Nobody reads the text of every single token, which vLLM looks up to go with its log-prob.
        self._engine.output_processor.request_states[added].logprobs_processor.tokenizer = None
        if request.shows_drafts:
            self._texts[request.request_id] = TextSoFar(self.encoder)
        return []

    def _refused(self, request: GenerationRequest, finish: Finish, error: str = "") -> Piece:
        del self._waiting[request.request_id]
        return Piece(request.request_id, self._span((), ()), finish, error)

    def _sampling(self, request: GenerationRequest, room: int) -> SamplingParams:
        return SamplingParams(
            temperature=request.temperature,
            max_tokens=min(request.max_new_tokens, room),
            seed=request.seed,
            logprobs=0,  # of the sampled token only
            flat_logprobs=True,
            stop=list(request.stops),
            include_stop_str_in_output=True,
            stop_token_ids=list(self.encoder.end_ids),
            output_kind=RequestOutputKind.CUMULATIVE
            if request.shows_drafts
            else RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )

    def _piece(self, output: RequestOutput) -> Piece:
        request = self._waiting.pop(output.request_id)
        self._texts.pop(output.request_id, None)
        num_given = len(output.prompt_token_ids or ())
        sampled = output.outputs[0]
        flat = sampled.logprobs
        span = self._span(sampled.token_ids, [flat.logprobs[start] for start in flat.start_indices])
        if sampled.finish_reason == "stop":
            finish: Finish = "stop" if isinstance(sampled.stop_reason, str) else "end"
            return Piece(output.request_id, span, finish, context_tokens=num_given)
        if sampled.finish_reason == "length":
            cut_by_request = len(span.token_ids or ()) >= request.max_new_tokens
            finish = "length" if cut_by_request else "context"
            return Piece(output.request_id, span, finish, context_tokens=num_given)
        return Piece(output.request_id, self._span((), ()), "error", f"vLLM: {sampled.finish_reason}")

    def _note_draft(self, output: RequestOutput) -> None:
        added = self._texts[output.request_id].grow(output.outputs[0].token_ids)
        if added:
            self._drafts.append(Draft(output.request_id, added))

    def _span(self, ids: Iterable[int], logprobs: Iterable[float]) -> SampledSpan:
        kept = tuple(ids)
        return SampledSpan(self.encoder.decode(kept), kept, tuple(logprobs), self.version)


@contextmanager
def _keep_default_group() -> Iterator[None]:
    """vLLM destroys the default process group with its own groups, even one that it found there."""
    destroy = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda group=None: None if group is None else destroy(group)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy


def can_sleep(platform: Any, *, sleeps: bool) -> bool:
    """Whether an engine that is to sleep can, on a platform of vLLM's. On a CPU its ``sleep`` frees nothing,
    and the engine takes itself for asleep all the same."""
    return sleeps and platform.is_sleep_mode_available()


def _start(
    model_path: Path, config: EngineConfig, *, look: Look, seed: int, transfer: str, sleeps: bool
) -> LLMEngine:
    """A vLLM engine; leaves torch's thread setting usable for the trainer beside it."""
    on_cpu = not torch.cuda.is_available()
    room_for_all = min(config.max_num_seqs * config.max_model_len, MAX_CPU_BATCHED_TOKENS)
    arguments = EngineArgs(
        model=str(model_path),
        dtype=config.dtype,
        seed=seed,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max(room_for_all if on_cpu else MAX_BATCHED_TOKENS, config.max_model_len),
        enable_chunked_prefill=not on_cpu,
        limit_mm_per_prompt={"image": config.max_images, "video": 0},
        mm_processor_kwargs={"size": {"shortest_edge": look.min_pixels, "longest_edge": look.max_pixels}},
        mm_device_do_normalize=True,  # what models.vllm_inputs gives is not normalised
        enforce_eager=config.enforce_eager,
        block_size=CPU_BLOCK_SIZE if on_cpu else None,
        kv_cache_memory_bytes=int(config.kv_cache_gib * 2**30) or None,
        gpu_memory_utilization=config.gpu_memory_utilization,
        enable_prefix_caching=True,
        generation_config="vllm",  # not the model's own top-p and repetition penalty
        logprobs_mode="processed_logprobs",
        weight_transfer_config={"backend": transfer} if transfer else None,
        enable_sleep_mode=sleeps,
        # Beside a trainer it is that rank's GPU; vLLM would take the first, for every rank of the host.
        device_ids=None if on_cpu else [torch.cuda.current_device()],
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )
    if on_cpu:
        keep_freed_memory()
    if config.enforce_eager:
        # vLLM's own switch leaves this one compiled: 20 s at the first step on a CPU.
        sampler.batched_count_greater_than = _count_not_below
    set_num_threads = torch.set_num_threads
    if config.num_threads:
        set_num_threads(config.num_threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return LLMEngine.from_engine_args(arguments)
    except (ValueError, RuntimeError) as error:
        raise EngineError(f"vLLM does not start with {model_path}: {error}") from error
    finally:
        # vLLM's CPU worker replaces it by a function that only warns.
        torch.set_num_threads = set_num_threads


def _count_not_below(values: Tensor, limits: Tensor) -> Tensor:
    """How many values (N, V) of each row are not below its limit (N, 1); (N,). The ranks of sampled tokens,
    which vLLM reports and nobody reads."""
    return (values >= limits).sum(dim=-1)


def _ban(banned_ids: tuple[int, ...]) -> Callable[[Any], None]:
    """Take banned tokens out of every distribution; the log-probs that vLLM reports are then renormalised."""

    def wrap(model: Any) -> None:
        compute_logits = model.compute_logits
        banned = torch.tensor(banned_ids, device=next(model.parameters()).device)

        def without_banned(*args: Any, **kwargs: Any) -> Tensor | None:
            logits = compute_logits(*args, **kwargs)
            return None if logits is None else logits.index_fill_(-1, banned, -torch.inf)

        model.compute_logits = without_banned

    return wrap


def _renew_tied_head(model: Any) -> None:
    """Give a tied output head the new embeddings.

    vLLM's reload skips it, and on a CPU it computes with a packed copy of the old ones, silently.
    """
    language_model = model.language_model
    if language_model.config.tie_word_embeddings:
        head = language_model.lm_head
        head.weight = language_model.model.embed_tokens.weight
        head.quant_method.process_weights_after_loading(head)
