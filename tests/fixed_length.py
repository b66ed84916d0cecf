"""A vLLM that samples a fixed number of tokens and is timed; an engine that then says what was written."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from models.config import resolve_model_path
from models.encoding import Encoder
from models.engine import Engine
from models.trajectory import Finish, GenerationRequest, Piece, SampledSpan
from models.vllm_engine import VLLMEngine

from transformers import Qwen2_5_VLForConditionalGeneration  # isort: skip  # after models.encoding
from vllm import RequestOutput, SamplingParams  # isort: skip


@dataclass(kw_only=True)
class Pass:
    """One run over all trajectories: seconds altogether and inside vLLM, and the tokens that vLLM counted.

    ``prefilled`` were computed, ``cached`` were found in the prefix cache.
    """

    seconds: float = 0.0
    engine_seconds: float = 0.0
    requests: int = 0
    sampled: int = 0
    prefilled: int = 0
    cached: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens over all of the time."""
        return self.sampled / self.seconds


class FixedLengthEngine(VLLMEngine):
    """vLLM that samples exactly as many tokens as it is asked for."""

    measured = Pass()

    def _sampling(self, request: GenerationRequest, room: int) -> SamplingParams:
        parameters = super()._sampling(request, room)
        parameters.min_tokens = parameters.max_tokens
        return parameters

    def begin(self) -> None:
        """Count from zero, with empty caches."""
        self.measured = Pass()
        assert self._engine.reset_prefix_cache()
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()

    def watch(self) -> None:
        """From now on, count what vLLM does and how long it takes."""
        core = self._engine
        core.add_request = self._timed(core.add_request)
        core.step = self._timed(core.step)

    def _timed(self, call: Callable) -> Callable:
        def timed(*arguments, **named):
            started = time.perf_counter()
            found = call(*arguments, **named)
            self.measured.engine_seconds += time.perf_counter() - started
            if call.__name__ == "step":
                self._count(found)
            return found

        return timed

    def _count(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            if output.finished:
                self.measured.requests += 1
                self.measured.sampled += len(output.outputs[0].token_ids)
                cached = output.num_cached_tokens or 0
                self.measured.prefilled += len(output.prompt_token_ids) - cached
                self.measured.cached += cached

    def run_raw(self, requests: Sequence[GenerationRequest], files: Mapping[str, bytes]) -> Pass:
        """vLLM alone: every request at once, then steps until all are done.

        ``files`` holds pictures in their original size, by the digest of what the loop makes of them; others
        are given as the loop gave them.
        """
        prompts = [self._prompt(request, files) for request in requests]
        self.begin()
        started = time.perf_counter()
        for number, (prompt, parameters) in enumerate(prompts):
            self._engine.add_request(str(number), self._engine.renderer.render_cmpl([prompt])[0], parameters)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        self.measured.seconds = time.perf_counter() - started
        return self.measured

    def _prompt(self, request: GenerationRequest, files: Mapping[str, bytes]) -> tuple[dict, SamplingParams]:
        collapsed = self.encoder.collapse(request.prompt, request.spans)
        pictures = collapsed.pictures
        prompt = {
            "prompt_token_ids": list(collapsed.ids),
            # Pillow decodes a file when vLLM asks for its pixels.
            "multi_modal_data": {
                "image": [
                    Image.open(io.BytesIO(files[picture.digest]))
                    if picture.digest in files
                    else picture.image
                    for picture in pictures
                ]
            },
            "multi_modal_uuids": {"image": [picture.digest for picture in pictures]},
        }
        return prompt, self._sampling(request, self._config.max_model_len)


class PlainTransformers:
    """A loop of ``generate`` over the turns of one trajectory after the other, each from its beginning."""

    def __init__(self, model: str, encoder: Encoder) -> None:
        self._encoder = encoder
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(resolve_model_path(model)).eval()

    def run(self, requests: Sequence[GenerationRequest]) -> Pass:
        """As many tokens per request as it asks for."""
        measured = Pass(requests=len(requests))
        started = time.perf_counter()
        for request in requests:
            inputs = self._inputs(request)
            count = request.max_new_tokens
            found = self._model.generate(
                **inputs, do_sample=True, max_new_tokens=count, min_new_tokens=count, pad_token_id=0
            )
            prefilled = inputs["input_ids"].shape[1]
            measured.sampled += found.shape[1] - prefilled
            measured.prefilled += prefilled
        measured.seconds = time.perf_counter() - started
        return measured

    def _inputs(self, request: GenerationRequest) -> dict[str, torch.Tensor]:
        collapsed = self._encoder.collapse(request.prompt, request.spans)
        ids = torch.from_numpy(self._encoder.expand_ids(collapsed))[None]
        patches, grids = self._encoder.patches(collapsed.pictures)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._encoder.image_token_id).int(),
            "pixel_values": patches,
            "image_grid_thw": grids,
        }


class Dictated:
    """An engine that works like the one behind it, and then says what was written beforehand."""

    def __init__(
        self, engine: Engine, dictate: Callable[[GenerationRequest], tuple[SampledSpan, Finish]]
    ) -> None:
        self.requests: list[GenerationRequest] = []
        self._engine, self._dictate = engine, dictate
        self._written: dict[str, tuple[SampledSpan, Finish]] = {}

    def submit(self, request: GenerationRequest) -> None:
        """Ask for as many tokens as are written."""
        span, finish = self._dictate(request)
        request = replace(request, max_new_tokens=span.num_tokens)
        self._written[request.request_id] = span, finish
        self.requests.append(request)
        self._engine.submit(request)

    def step(self) -> list[Piece]:
        """What is written, for every request that has been worked off."""
        return [self._replaced(piece) for piece in self._engine.step()]

    def abort(self, request_id: str) -> None:
        """Forget a request."""
        self._engine.abort(request_id)

    def close(self) -> None:
        """The engine behind stays open for the next pass."""

    def _replaced(self, piece: Piece) -> Piece:
        span, finish = self._written.pop(piece.request_id)
        assert piece.span.num_tokens == span.num_tokens, f"{piece.finish}: {piece.error}"
        return Piece(piece.request_id, span, finish)
