"""Prefect's artifacts: what a run came to, for people, beside the run and through Prefect's API."""

import logging
import re
from collections.abc import Mapping, Sequence

import httpx
from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact, acreate_table_artifact
from prefect.context import TaskRunContext
from prefect.exceptions import PrefectException

logger = logging.getLogger(__name__)

_NOT_IN_A_KEY = re.compile(r"[^a-z0-9]+")


async def show_table(name: str, rows: Sequence[Mapping[str, object]], *, description: str) -> None:
    """A table under a key made of ``name``; nothing outside of a Prefect run."""
    if TaskRunContext.get() is None:
        return
    try:
        await acreate_table_artifact([dict(row) for row in rows], key=_key(name), description=description)
    except (PrefectException, httpx.HTTPError) as error:
        _warn(name, error)


async def show_markdown(name: str, text: str, *, description: str) -> None:
    """A page of Markdown under a key made of ``name``; nothing outside of a Prefect run."""
    if TaskRunContext.get() is None:
        return
    try:
        await acreate_markdown_artifact(text, key=_key(name), description=description)
    except (PrefectException, httpx.HTTPError) as error:
        _warn(name, error)


async def show_link(name: str, link: str, *, text: str, description: str) -> None:
    """A link under a key made of ``name``; nothing outside of a Prefect run."""
    if TaskRunContext.get() is None:
        return
    try:
        await acreate_link_artifact(link, link_text=text, key=_key(name), description=description)
    except (PrefectException, httpx.HTTPError) as error:
        _warn(name, error)


def _key(name: str) -> str:
    """Prefect's keys hold small letters, digits and dashes."""
    return _NOT_IN_A_KEY.sub("-", name.lower()).strip("-")


def _warn(name: str, error: Exception) -> None:
    """The results themselves are kept elsewhere."""
    logger.warning("Prefect did not take the artifact %s: %s", name, error)
