"""`python -m service segment FOLDER "expression" --out results.json`: many files, resumable."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from service.client_results import (
    Segmentation,
    SegVLMError,
    Unreachable,
    coco_document,
    parse_answer,
)
from service.errors import EngineStopped, ServiceError
from service.folder_journal import Journal
from service.settings import Settings

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
_TOGETHER = 8  # files on their way at a time
_WAIT = 1800.0  # seconds of one file: nobody waits at a terminal, but nothing may hang for ever

Ask = Callable[[bytes], Awaitable[Any]]
"""An image file's bytes -> the JSON document of `POST /segment`."""


def segment_folder(options: argparse.Namespace, settings: Settings) -> int:
    """Do what is not done yet. Returns 0, or 1 if a file failed: it is tried again next time."""
    if options.out is None:
        raise ValueError("a folder's results go into a file; name it with --out results.json")
    if options.format not in (None, "rle"):
        raise ValueError("a folder's results are COCO JSON; leave --format out")
    files = _images(options.photo, options.recursive)
    journal_path = options.out.with_name(options.out.name + ".journal")
    if options.out.exists() and not journal_path.exists():
        raise ValueError(f"{options.out} exists and is complete; delete it, or name another file")
    asked = {"expressions": list(options.expressions), "threshold": options.threshold}
    journal = Journal(journal_path, asked)
    failed: dict[str, str] = {}
    interrupted = False
    try:
        asyncio.run(_work(options, settings, files, journal, failed))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        # Also of a run that is interrupted: what is done can be read and is not done again.
        complete = not failed and all(name in journal.done for name in files)
        _write_results(options.out, files, journal)
        journal.close(finished=complete)
    for name, fault in failed.items():
        print(f"error: {name}: {fault}", file=sys.stderr)
    done = sum(name in journal.done for name in files)
    print(f"{options.out}: {done} of {len(files)} files")
    if interrupted:
        print("stopped; give the same command again to go on", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _images(folder: Path, recursive: bool) -> dict[str, Path]:
    """Image files by their name below the folder, sorted."""
    found = folder.rglob("*") if recursive else folder.iterdir()
    files = {
        path.relative_to(folder).as_posix(): path
        for path in found
        if path.suffix.lower() in SUFFIXES and path.is_file()
    }
    if not files:
        raise ValueError(
            f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}); "
            "--recursive looks into its folders too"
        )
    return dict(sorted(files.items()))


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
    with bar:
        async with _asker(options, settings) as ask:
            async for name, content, answer in _answers(ask, left, files):
                bar.update()
                if isinstance(answer, Exception):
                    failed[name] = str(answer)
                    continue
                journal.note(name, answer)
                if options.overlays is not None:
                    target = options.overlays / f"{name}.png"
                    await asyncio.to_thread(_draw, target, content, parse_answer(answer), settings)


async def _answers(
    ask: Ask, names: Iterable[str], files: dict[str, Path]
) -> AsyncIterator[tuple[str, bytes, Any]]:
    """(name, bytes, document or exception) in order, `_TOGETHER` on their way."""

    async def one(name: str) -> tuple[str, bytes, Any]:
        content = b""
        try:
            content = await asyncio.to_thread(files[name].read_bytes)
            return name, content, await ask(content)
        except Unreachable as error:  # the rest would fail alike, each after all its retries
            raise ValueError(f"{error}; what is done is kept, give the command again") from error
        except (SegVLMError, OSError) as error:
            return name, content, error
        except ServiceError as error:
            if isinstance(error, EngineStopped):
                raise
            return name, content, ValueError(error.detail)

    running: deque[asyncio.Task[tuple[str, bytes, Any]]] = deque()
    try:
        for name in names:
            running.append(asyncio.create_task(one(name)))
            if len(running) >= _TOGETHER:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


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
            answer = await client.segment(content, options.expressions, threshold=options.threshold)
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
        answer = await pipeline.answer(TaskTranslation(task, kind), StageTimes(engine.clock))
        return json.loads(answer.payload.body)

    engine.start()
    try:
        yield ask
    except EngineStopped as error:
        raise EngineStopped(engine.fault) from error
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


def _write_results(out: Path, files: Iterable[str], journal: Journal) -> None:
    answers = [(name, parse_answer(journal.done[name])) for name in files if name in journal.done]
    _replace(out, json.dumps(coco_document(answers)).encode())


def _replace(target: Path, content: bytes) -> None:
    """The whole file or none of it."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(target)
