"""`python -m service segment FOLDER "expression" --out results.json`: many files, resumable."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from service.client_results import (
    Segmentation,
    SegVLMError,
    ServiceRefused,
    coco_document,
    parse_answer,
)
from service.errors import EngineStopped, ServiceError
from service.folder_journal import Journal
from service.settings import Settings

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
_TOGETHER = 8  # files on their way at a time
_WAIT = 1800.0  # seconds of one file: nobody waits at a terminal, but nothing may hang for ever

_OF_ONE_FILE = frozenset({400, 413, 500, 503, 504})  # the next one may be answered
_KEPT = "what is done is kept, give the command again"

Ask = Callable[[bytes], Awaitable[Any]]
"""An image file's bytes -> the JSON document of `POST /segment`. Raises FileFailed."""


class FileFailed(Exception):
    """This file only; the others go on."""


def segment_folder(options: argparse.Namespace, settings: Settings) -> int:
    """Do what is not done yet. Returns 0, or 1 if a file failed: it is tried again next time."""
    _check(options)
    files = _images(options.photo, options.recursive, options.overlays)
    journal_path = options.out.with_name(options.out.name + ".journal")
    if options.out.exists() and not journal_path.exists():
        raise ValueError(f"{options.out} exists and is complete; delete it, or name another file")
    asked = {
        "folder": str(options.photo.resolve()),
        "expressions": list(options.expressions),
        "threshold": options.threshold,
    }
    journal = Journal(journal_path, asked)
    failed: dict[str, str] = {}
    interrupted = False
    try:
        asyncio.run(_work(options, settings, files, journal, failed))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        # Also of a run that is interrupted: what is done can be read and is not done again.
        complete = not failed and not interrupted and all(name in journal.done for name in files)
        _write_results(options.out, journal)
        journal.close(finished=complete)
    for name, fault in failed.items():
        print(f"error: {name}: {fault}", file=sys.stderr)
    done = sum(name in journal.done for name in files)
    print(f"{options.out}: {done} of {len(files)} files")
    if interrupted:
        print("stopped; give the same command again to go on", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _check(options: argparse.Namespace) -> None:
    if options.out is None:
        raise ValueError("a folder's results go into a file; name it with --out results.json")
    if options.format not in (None, "rle"):
        raise ValueError("a folder's results are COCO JSON; leave --format out")
    if options.server is None and options.api_key_file is not None:
        raise ValueError("--api-key-file is for --server, which is missing")
    if options.server is not None and (options.bundle or options.backend):
        raise ValueError("the service at --server has its own model; leave out --bundle, --backend")
    if options.overlays is not None:
        drawn, photos = options.overlays.resolve(), options.photo.resolve()
        if drawn == photos or drawn in photos.parents:
            raise ValueError(f"--overlays {options.overlays} holds the photos; name another folder")


def _images(folder: Path, recursive: bool, overlays: Path | None) -> dict[str, Path]:
    """Image files by their name below the folder, sorted; not hidden ones, nor what was drawn."""
    drawn = overlays and overlays.resolve()
    files = {}
    for place, folders, names in os.walk(folder, onerror=_refuse):
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                files[path.relative_to(folder).as_posix()] = path
        folders[:] = [
            name
            for name in folders
            if recursive and not name.startswith(".") and Path(place, name).resolve() != drawn
        ]
    if not files:
        raise ValueError(
            f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}); "
            "--recursive looks into its folders too"
        )
    return dict(sorted(files.items()))


def _refuse(error: OSError) -> None:
    raise error


async def _work(
    options: argparse.Namespace,
    settings: Settings,
    files: dict[str, Path],
    journal: Journal,
    failed: dict[str, str],
) -> None:
    from tqdm import tqdm

    left = [name for name in files if name not in journal.done]
    bar = tqdm(total=len(files), initial=len(files) - len(left), unit="file", disable=None)

    async def one(name: str, ask: Ask | None) -> None:
        try:
            content = await asyncio.to_thread(files[name].read_bytes)
        except OSError as error:
            failed[name] = str(error)
            return
        if ask is not None:
            try:
                answer = await ask(content)
            except FileFailed as error:
                failed[name] = str(error)
                return
            journal.note(name, answer)  # at once: a file before it may take longer
        if options.overlays is not None:
            target = options.overlays / f"{name}.png"
            found = parse_answer(journal.done[name])
            try:
                await asyncio.to_thread(_draw, target, content, found, settings)
            except ServiceError as error:
                failed[name] = f"done, but not drawn: {error.detail}"

    # In process a place in the queue is needed for each; a service says itself when to wait.
    places = _TOGETHER if options.server is not None else min(_TOGETHER, settings.max_queue)
    with bar:
        # A run that was ended between a file's answer and its overlay, or made without them.
        undrawn = [name for name in files if name in journal.done and _lacks(options, name)]
        await _together(undrawn, lambda name: one(name, None), places, lambda: None)
        if left:
            async with _asker(options, settings) as ask:
                await _together(left, lambda name: one(name, ask), places, bar.update)


def _lacks(options: argparse.Namespace, name: str) -> bool:
    return options.overlays is not None and not (options.overlays / f"{name}.png").exists()


async def _together(
    names: Iterable[str],
    work: Callable[[str], Awaitable[None]],
    places: int,
    tick: Callable[[], object],
) -> None:
    """`work` on each name, `places` at a time; what one raises ends the others."""
    running: set[asyncio.Future[None]] = set()
    try:
        for name in names:
            running.add(asyncio.ensure_future(work(name)))
            if len(running) >= places:
                running = await _first(running, tick)
        while running:
            running = await _first(running, tick)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _first(
    running: set[asyncio.Future[None]], tick: Callable[[], object]
) -> set[asyncio.Future[None]]:
    """Wait until some are done, and answer the others."""
    done, rest = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
        tick()
    return rest


@asynccontextmanager
async def _asker(options: argparse.Namespace, settings: Settings) -> AsyncIterator[Ask]:
    if options.server is not None:
        async with _server_asker(options) as ask:
            yield ask
    else:
        async with _local_asker(options, settings) as ask:
            yield ask


@asynccontextmanager
async def _server_asker(options: argparse.Namespace) -> AsyncIterator[Ask]:
    from service.client import AsyncClient

    key = None if options.api_key_file is None else options.api_key_file.read_text().strip()
    async with AsyncClient(options.server, api_key=key) as client:

        async def ask(content: bytes) -> Any:
            try:
                answer = await client.segment(
                    content, options.expressions, threshold=options.threshold
                )
            except ServiceRefused as error:
                if error.status in _OF_ONE_FILE:
                    raise FileFailed(str(error)) from error
                raise ValueError(f"{error}; {_KEPT}") from error
            except SegVLMError as error:  # the rest would fail alike, each after all its retries
                raise ValueError(f"{error}; {_KEPT}") from error
            return _document(answer)

        yield ask


@asynccontextmanager
async def _local_asker(options: argparse.Namespace, settings: Settings) -> AsyncIterator[Ask]:
    from service.loading import load_engine
    from service.negotiation import AnswerKind
    from service.pipeline import Pipeline
    from service.request_parsing import SegmentTask, validate_options
    from service.segment_translation import TaskTranslation
    from service.stages import StageTimes

    settings = settings.model_copy(update={"timeout": _WAIT})
    engine = load_engine(settings)
    pipeline = Pipeline(engine, settings)
    choices = validate_options({"threshold": options.threshold})
    kind = AnswerKind("json", "application/json")

    async def ask(content: bytes) -> Any:
        task = SegmentTask(content, tuple(options.expressions), choices)
        try:
            answer = await pipeline.answer(TaskTranslation(task, kind), StageTimes(engine.clock))
        except EngineStopped as error:
            raise EngineStopped(engine.fault) from error
        except ServiceError as error:
            raise FileFailed(error.detail) from error
        return json.loads(answer.payload.body)

    engine.start()
    try:
        yield ask
    finally:
        engine.stop(settings.shutdown_timeout)
        pipeline.close()


def _document(answer: Segmentation) -> dict[str, Any]:
    """The JSON of `POST /segment` again, as the journal keeps it."""
    return {
        "model": {"name": answer.model, "version": answer.version},
        "image": {"width": answer.width, "height": answer.height},
        "results": [
            {
                "expression": found.expression,
                "truncated": found.truncated,
                "score": found.score,
                "area": found.area,
                "bbox": found.box,
                "mask": {"format": "rle", **found.rle},
            }
            for found in answer.results
        ],
        "timings": dict(answer.timings),
    }


def _draw(target: Path, content: bytes, answer: Segmentation, settings: Settings) -> None:
    from service.image_input import decode_photo
    from service.mask_formats import Overlay
    from service.placed_mask import PlacedMask

    overlay = Overlay(decode_photo(content, settings.max_pixels).picture)
    for found in answer.results:
        overlay.add(PlacedMask.whole(found.mask), f"{found.expression} {found.score:.2f}")
    target.parent.mkdir(parents=True, exist_ok=True)
    _replace(target, overlay.encode("image/png"))


def _write_results(out: Path, journal: Journal) -> None:
    """All that was done, also of files that are gone since."""
    answers = [(name, parse_answer(answer)) for name, answer in sorted(journal.done.items())]
    _replace(out, json.dumps(coco_document(answers)).encode())


def _replace(target: Path, content: bytes) -> None:
    """The whole file or none of it."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(target)
