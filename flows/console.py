"""What commands share: lines and bars on the terminal, and a flow with its server while a command lasts."""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from tasks import progress
from tasks.services import prefect_server, sole_use
from tasks.settings import Settings, is_ci

Start = Callable[[], Coroutine[Any, Any, Any]]


def conduct(settings: Settings, stages: tuple[str, ...], load: Callable[[], Start]) -> Any:
    """What a flow comes to, run on this machine with ``stages`` on the display.

    ``load`` imports the flow and returns what starts it: a server starts up meanwhile, when none is
    configured. Raises ConfigError when another run uses the work directory.
    """
    board = progress.Board(say, stages)
    progress.use(board)
    with sole_use(settings), display(board), prefect_server(settings) as server:
        with board.stage("prepare"):
            start = load()
            quiet_logs()
            if server:
                server.wait()
        return asyncio.run(start())


@contextmanager
def display(board: progress.Board) -> Iterator[None]:
    """Bars on a terminal for the time of a block; plain lines elsewhere."""
    is_terminal = sys.stderr.isatty() and not is_ci()
    with board.live() if is_terminal else nullcontext():
        yield


def say(line: str) -> None:
    """A line beside the command's output."""
    print(line, file=sys.stderr, flush=True)


def quiet_logs() -> None:
    """Our own warnings on the terminal; what Prefect logs goes to its server."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    for name in ("models", "tasks", "flows"):
        ours = logging.getLogger(name)
        ours.addHandler(handler)
        ours.propagate = False
