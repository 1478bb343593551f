"""What the memory panel asks the server. Memories are those of the default database."""

from __future__ import annotations

import asyncio
import functools
import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import folder_paths
from aiohttp import web

from ..guidance.memory import Memory, MemoryLog, MemoryLogError, gallery
from ..guidance.memory.exchange import export_memory, import_memory
from ..guidance.memory.projection import MemoryMap
from ..guidance.memory.undo import undo_forgetting
from ..guidance.novelty_memory import NoveltyMemory
from . import _host
from ._saved_images import saved_workflow

PREFIX = "/uncommon"
MOST_CHOSEN = 1_000_000  # samples of one request to forget
MOST_IMPORTED = 2 ** 34  # bytes of one file
CHUNK = 2 ** 20  # bytes
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@functools.lru_cache(maxsize=4)
def shared_log(url: str) -> MemoryLog:
    """One per process: it makes the tables when it is first opened."""
    return MemoryLog(url)


@functools.lru_cache(maxsize=16)
def shared_map(url: str, name: str) -> MemoryMap:
    """One map per memory and process."""
    return MemoryMap(shared_log(url).database, name)


def answering(handler: Handler) -> Handler:
    """Wrong input is answered with what was wrong, as HTTP 400 {"error": ...}."""
    @functools.wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except MemoryLogError as error:
            return web.json_response({"error": str(error)}, status=400)
    return answer


def numbers_of(given: object, most: int) -> list[int]:
    """Numbers of samples. Raises MemoryLogError."""
    whole = isinstance(given, list) and all(
        type(one) is int and 1 <= one < 2 ** 31 for one in given)
    if not whole or not 1 <= len(given) <= most:
        raise MemoryLogError(f"`numbers` are no numbers of samples; expected a list of 1 to {most} "
                             "whole numbers from 1 on.")
    return given


async def body_of(request: web.Request) -> dict:
    """The JSON object of a POST. Raises MemoryLogError."""
    # Pages of other sites can post text without being asked, but not JSON.
    if request.content_type == "application/json":
        try:
            body = await request.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            body = None
        if isinstance(body, dict):
            return body
    raise MemoryLogError("The request holds no JSON object; expected one, of content type "
                         "application/json.")


@answering
async def list_memories(request: web.Request) -> web.Response:
    def read() -> list[dict]:
        return gallery.summaries(_log().database)
    return web.json_response(await asyncio.to_thread(read))


@answering
async def list_numbers(request: web.Request) -> web.Response:
    """int32 numbers of the live samples, oldest first."""
    given = request.query.get("memory")

    def read() -> web.Response:
        revision, numbers = gallery.live_numbers(_log().database, _memory(given).name)
        return _columns(revision, numbers.astype("<i4").tobytes())
    return await asyncio.to_thread(read)


@answering
async def read_map(request: web.Request) -> web.Response:
    """For each live sample, oldest first: int32 numbers, then float32 x and y by turns, then
    float32 distances to the nearest before."""
    given = request.query.get("memory")

    def read() -> web.Response:
        found = shared_map(_host.default_database(), _memory(given).name).latest()
        return _columns(found.revision, b"".join((
            found.numbers.astype("<i4").tobytes(), found.points.astype("<f4").tobytes(),
            found.nearest.astype("<f4").tobytes())), share=found.share)
    return await asyncio.to_thread(read)


@answering
async def read_samples(request: web.Request) -> web.Response:
    """The live ones of up to gallery.PAGE samples, newest first."""
    given = request.query.get("memory")
    numbers = _listed(request, gallery.PAGE)

    def read() -> list[dict]:
        return gallery.samples(_log().database, _memory(given).name, numbers)
    return web.json_response(await asyncio.to_thread(read))


@answering
async def read_workflow(request: web.Request) -> web.Response:
    """{"workflow"} that made one sample, as the image of it in the output folder carries it; null
    where there is none."""
    given = request.query.get("memory")
    [number] = _listed(request, 1)

    def read() -> dict:
        memory = _memory(given)
        found = [saved_workflow(Path(folder_paths.get_output_directory()),
                                sample.get("guided_by", memory.name), sample)
                 for sample in gallery.samples(_log().database, memory.name, [number])]
        return {"workflow": next(iter(found), None)}
    return web.json_response(await asyncio.to_thread(read))


@answering
async def forget(request: web.Request) -> web.Response:
    """{"memory", "numbers": [...] or "all"} -> {"revision", "samples"} as they are now."""
    body = await body_of(request)
    numbers = body.get("numbers")
    if numbers != "all":
        numbers = numbers_of(numbers, MOST_CHOSEN)

    def change() -> dict:
        memory = _memory(body.get("memory"))
        if numbers == "all":
            memory.forget_all()
        else:
            memory.forget(numbers, "user: chosen")
        return _changed(memory.name)
    return web.json_response(await asyncio.to_thread(change))


@answering
async def undo(request: web.Request) -> web.Response:
    """{"memory"} -> {"revision", "samples", "numbers" of those that came back, "lost"}."""
    body = await body_of(request)

    def change() -> dict:
        name = _memory(body.get("memory")).name
        restored = undo_forgetting(_log().database, name)
        return _changed(name) | {"numbers": list(restored.numbers), "lost": restored.lost}
    return web.json_response(await asyncio.to_thread(change))


@answering
async def export_file(request: web.Request) -> web.StreamResponse:
    """The memory as a safetensors file."""
    memory = await asyncio.to_thread(_memory, request.query.get("memory"))
    with tempfile.TemporaryDirectory(prefix="uncommon-") as folder:
        file = Path(folder) / "memory.safetensors"
        await asyncio.to_thread(export_memory, memory, file)
        answer = web.StreamResponse(headers={
            "Content-Type": "application/octet-stream", "Content-Length": str(file.stat().st_size),
            "Content-Disposition":
                f"attachment; filename*=UTF-8''{quote(memory.name)}.safetensors"})
        await answer.prepare(request)
        with file.open("rb") as content:
            while chunk := await asyncio.to_thread(content.read, CHUNK):
                await answer.write(chunk)
        await answer.write_eof()
        return answer


@answering
async def import_file(request: web.Request) -> web.Response:
    """The body is an exported file -> {"revision", "samples", "new", "duplicates"}."""
    if request.content_type != "application/octet-stream":
        raise MemoryLogError("The request holds no file; expected one as the body, of content "
                             "type application/octet-stream.")
    memory = await asyncio.to_thread(_memory, request.query.get("memory"))
    with tempfile.TemporaryDirectory(prefix="uncommon-") as folder:
        file = Path(folder) / "upload.safetensors"
        size = 0
        with file.open("wb") as target:
            async for chunk in request.content.iter_chunked(CHUNK):
                size += len(chunk)
                if size > MOST_IMPORTED:
                    raise MemoryLogError(f"The file is larger than {MOST_IMPORTED / 2 ** 30:g} GB, "
                                         "the most that can be imported here.")
                await asyncio.to_thread(target.write, chunk)

        def change() -> dict:
            merged = import_memory(memory, file)
            return _changed(memory.name) | {"new": merged.new, "duplicates": merged.duplicates}
        return web.json_response(await asyncio.to_thread(change))


def add_routes() -> None:
    """Adds the routes to the server, where there is one."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    for path, handler in (("memories", list_memories), ("numbers", list_numbers),
                          ("map", read_map), ("samples", read_samples),
                          ("workflow", read_workflow), ("export", export_file)):
        server.routes.get(f"{PREFIX}/{path}")(handler)
    for path, handler in (("forget", forget), ("undo", undo), ("import", import_file)):
        server.routes.post(f"{PREFIX}/{path}")(handler)


def _listed(request: web.Request, most: int) -> list[int]:
    """The `numbers` of a query, with commas between. Raises MemoryLogError."""
    listed = request.query.get("numbers", "")[:12 * most].split(",")
    return numbers_of([int(one) if one.isascii() and one.isdigit() else 0 for one in listed], most)


def _log() -> MemoryLog:
    return shared_log(_host.default_database())


def _memory(given: object) -> Memory:
    """The memory of a given name. Raises MemoryLogError if it cannot be one."""
    if not isinstance(given, str):
        raise MemoryLogError("No memory was named; give its name as the text `memory`.")
    return _log().memory(given)


def _changed(name: str) -> dict:
    """Tells the pages, and whoever asked, what the memory is now."""
    _host.tell_memory_changed(NoveltyMemory(url=_host.default_database(), name=name))
    stats = _log().memory(name).stats()
    return {"revision": stats.revision, "samples": stats.live_samples}


def _columns(revision: int, content: bytes, **figures: float) -> web.Response:
    headers = {"Uncommon-Revision": str(revision)} | {
        f"Uncommon-{key.title()}": f"{value:.4f}" for key, value in figures.items()}
    return web.Response(body=content, headers=headers)
