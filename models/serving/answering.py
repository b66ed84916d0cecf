"""From the body of a chat request to its answer: pictures, episodes, the news from the loop, the reply."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import Image

from models.conversation import Said, follow_up
from models.errors import RegionError
from models.narration import Looked, Wrote
from models.protocol import STOPS
from models.rollout import Asked, Episode
from models.serving.chat import Ask
from models.serving.config import ServingConfig
from models.serving.download import Downloader
from models.serving.driver import Broke, Driver, Ended, Job, News
from models.serving.errors import APIError, bad_request
from models.serving.images import decode, from_data_uri, is_data_uri
from models.serving.messages import Question
from models.serving.metrics import Metrics
from models.serving.replies import Choice, Reply


class Answerer:
    """What every answer needs: the driver, threads that decode, a client that fetches."""

    def __init__(self, config: ServingConfig, driver: Driver, metrics: Metrics) -> None:
        self.config = config
        self.driver = driver
        self.metrics = metrics
        self._decoders = ThreadPoolExecutor(config.limits.num_decoders, "decode")
        self._downloader = Downloader(config)

    async def close(self) -> None:
        """End the threads and connections."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        await self._downloader.close()

    async def begin(self, ask: Ask) -> "Answer":
        """Get the pictures and hand the episodes to the loop.

        Raises APIError for pictures that cannot be used, and 503 when the engine is gone.
        """
        received = time.monotonic()
        urls = [source for source in ask.said.sources if not is_data_uri(source)]
        fetched = dict(zip(urls, await asyncio.gather(*map(self._downloader.fetch, urls)), strict=True))
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(self._decoders, self._ready, ask, fetched)
        if self.driver.failure:
            raise APIError(503, f"The engine is gone: {self.driver.failure}", code="engine_failed")
        return Answer(self, ask, asked, received)

    def _ready(self, ask: Ask, fetched: Mapping[str, bytes]) -> Asked:
        """Pictures decoded and resized; runs on a thread of its own."""
        config, said = self.config, ask.said
        look = config.look.model_copy(update={"max_crops": config.limits.max_crops})
        room = config.engine.max_images - len(said.sources) - ask.look.max_crops
        try:
            asked = follow_up(
                "question",
                self._decoded(said.question, fetched),
                [(self._decoded(question, fetched), reply) for question, reply in said.earlier],
                ask.look,
                earlier_look=look if ask.looks_again else None,
                max_earlier_crops=max(0, room),
            )
        except RegionError as error:
            raise bad_request(str(error), param="messages", code="invalid_image") from error
        if said.system is None:
            return asked
        # A system message of the client's is used as it is.
        return replace(asked, prompt=replace(asked.prompt, system=said.system))

    def _decoded(self, question: Question, fetched: Mapping[str, bytes]) -> Said:
        limits = self.config.limits
        images: list[Image.Image] = []
        for source in question.sources:
            data = fetched.get(source)
            if data is None:
                data = from_data_uri(source, max_bytes=limits.max_image_bytes)
            images.append(decode(data, max_pixels=limits.max_image_pixels))
        return Said(question.text, tuple(images), question.places)


class Answer:
    """One request on its way through the loop. Abort it when nobody waits for it any more."""

    def __init__(self, answerer: Answerer, ask: Ask, asked: Asked, received: float) -> None:
        self._answerer = answerer
        self._metrics = answerer.metrics
        self._ask = ask
        self._received = received
        id = f"chatcmpl-{secrets.token_hex(12)}"
        self.reply = Reply(id, int(time.time()), answerer.config.model_name, ask, asked)
        self.choices = [Choice() for _ in range(ask.num_choices)]
        seed = secrets.randbits(63) if ask.seed is None else ask.seed
        episodes = tuple(
            Episode(
                asked,
                index,
                look=ask.look,
                temperature=ask.temperature,
                seed=seed,
                stops=STOPS if ask.looks_again else (),
                id=f"{id}-{index}",
                shows_drafts=ask.is_stream,
            )
            for index in range(ask.num_choices)
        )
        self._news: asyncio.Queue[Sequence[tuple[int, News]]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._job = Job(id, episodes, lambda news: _from_thread(loop, self._news, news), received=received)
        answerer.driver.submit(self._job)

    def abort(self) -> None:
        """Free what the request holds in the engine; harmless when it has ended."""
        self._answerer.driver.abort(self._job)

    async def news(self) -> AsyncIterator[list[tuple[int, Wrote | Looked | Ended]]]:
        """What happened, as it happens, until every choice has ended.

        Raises APIError: 400 when the question does not fit into the context, 5xx when we failed.
        """
        missing = len(self.choices)
        is_first = True
        while missing:
            batch: list[tuple[int, Wrote | Looked | Ended]] = []
            for index, news in await self._news.get():
                if isinstance(news, Broke):
                    raise APIError(503, f"No answer: {news.reason}", code="engine_failed")
                if isinstance(news, Ended):
                    self._check(news)
                    self.choices[index].ended = news
                    missing -= 1
                batch.append((index, news))
            if is_first and self._ask.is_stream:
                self._metrics.first_text_seconds.observe(time.monotonic() - self._received)
                is_first = False
            yield batch
        self._count()

    async def whole(self) -> bytes:
        """The whole answer as one body."""
        async for batch in self.news():
            for index, news in batch:
                if isinstance(news, Wrote):
                    self.choices[index].text += news.text
                elif isinstance(news, Looked):
                    self.choices[index].looks.append(self.reply.look(news))
        return self.reply.completion(self.choices)

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events, what came together in one piece."""
        opening = b"".join(self.reply.first(index) for index in range(len(self.choices)))
        async for batch in self.news():
            yield opening + b"".join(
                self.reply.last(index, news.trajectory)
                if isinstance(news, Ended)
                else self.reply.delta(index, news)
                for index, news in batch
            )
            opening = b""
        if self._ask.includes_usage:
            yield self.reply.usage_chunk(self.choices)

    def _check(self, ended: Ended) -> None:
        trajectory = ended.trajectory
        if trajectory.stop.is_our_failure:
            raise APIError(500, f"No answer: {trajectory.detail or trajectory.stop}", code="engine_error")
        if trajectory.is_unasked:
            raise bad_request(
                "The conversation with its images is longer than the model's context of "
                f"{self._answerer.config.engine.max_model_len} tokens. Shorten it, leave out old turns, or "
                "send fewer images.",
                param="messages",
                code="context_length_exceeded",
            )

    def _count(self) -> None:
        self._metrics.request_seconds.observe(time.monotonic() - self._received)
        for choice in self.choices:
            trajectory = choice.trajectory
            self._metrics.answers.labels(trajectory.stop).inc()
            self._metrics.given_tokens.inc(choice.num_given_tokens)
            self._metrics.sampled_tokens.inc(trajectory.num_sampled_tokens)
            self._metrics.crops.inc(len(trajectory.crops))
            for error in trajectory.errors:
                self._metrics.protocol_errors.labels(error).inc()


def _from_thread(
    loop: asyncio.AbstractEventLoop,
    queue: "asyncio.Queue[Sequence[tuple[int, News]]]",
    news: Sequence[tuple[int, News]],
) -> None:
    loop.call_soon_threadsafe(queue.put_nowait, news)
