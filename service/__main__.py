"""`python -m service serve`, `segment` and `key`; `--help` explains each.

Exit status: 0 done, 1 a fault of the service, 2 something for the caller to mend.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from service.api_keys import make_key
from service.backends import BACKENDS
from service.errors import CallerError, EngineStopped, ServiceError
from service.loading import load_engine
from service.negotiation import AnswerKind
from service.pipeline import Answer, Pipeline
from service.request_parsing import SegmentTask, check_expressions, validate_options
from service.segment_translation import TaskTranslation
from service.settings import Settings, SettingsError, load_settings
from service.stages import StageTimes

_KINDS = {
    "png": AnswerKind("mask", "image/png"),
    "overlay": AnswerKind("overlay", "image/png"),
    "rle": AnswerKind("json", "application/json"),
    "polygons": AnswerKind("json", "application/json"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve(options)
        if options.command == "key":
            return _key(options)
        return _segment(options)
    except ServiceError as error:
        _complain(error.detail)
        return 2 if isinstance(error, CallerError) else 1
    except SettingsError as error:
        _complain(*error.faults)
        return 2
    except (ValueError, OSError) as error:  # bundles and files: the caller's to mend
        _complain(str(error))
        return 2


def _complain(*faults: str) -> None:
    """A line for each, whatever a library wrote into it."""
    for fault in faults:
        line = " ".join(part.strip() for part in fault.splitlines())
        print(f"error: {line}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Find in a photo what a sentence names. Settings: variables SEGVLM_<NAME>.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--bundle", type=Path, help="model bundle (default: the one in the package)")
    model.add_argument("--backend", choices=BACKENDS, help="what runs the model (default: onnx)")

    serve = commands.add_parser("serve", parents=[model], help="answer HTTP requests")
    serve.add_argument("--host", help="address to listen on (default: 0.0.0.0)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8000)")

    segment = commands.add_parser(
        "segment", parents=[model], help="segment a photo, or all photos of a folder"
    )
    segment.add_argument("photo", type=Path, help="a photo, or a folder of photos")
    segment.add_argument("expressions", nargs="+", metavar="expression", help='"the dog"')
    segment.add_argument("--out", type=Path, help="file to write (default: the terminal, for JSON)")
    segment.add_argument(
        "--format",
        choices=sorted(_KINDS),
        help="png: the mask; overlay: the photo with the masks; rle, polygons: JSON "
        "(default: png with --out, rle without)",
    )
    segment.add_argument("--threshold", type=float, help="probability above which a pixel counts")
    many = segment.add_argument_group("a folder (--out is COCO JSON; a killed run goes on)")
    many.add_argument("--recursive", action="store_true", help="its folders too")
    many.add_argument("--overlays", type=Path, help="folder for the photos with masks drawn on")
    many.add_argument("--server", metavar="URL", help="ask this service (default: no server)")
    many.add_argument("--api-key-file", type=Path, help="file with the key that it wants")

    key = commands.add_parser("key", help="make an API key, and its line for the file of keys")
    key.add_argument("name", help="whose it is; the log shows it")
    return parser


def _serve(options: argparse.Namespace) -> int:
    # As process 1 of a container it would not hear a stop before the server listens for it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # The web framework takes a second that `segment` saves.
    from service.process_memory import return_large_blocks
    from service.request_log import configure_log
    from service.server import Server

    return_large_blocks()  # before there are threads
    settings = load_settings(
        host=options.host, port=options.port, bundle=options.bundle, backend=options.backend
    )
    configure_log(settings)
    engine = load_engine(settings)
    server = Server(settings, engine)
    server.run()
    if engine.fault is not None:
        print(f"error: the model has stopped: {engine.fault}", file=sys.stderr, flush=True)
        # Not by returning: the interpreter would wait for a thread that hangs in the device.
        os._exit(server.exit_code)
    return server.exit_code


def _key(options: argparse.Namespace) -> int:
    key, line = make_key(options.name)
    print(f"The key, for {options.name}; it is shown this once:\n{key}")
    print(f"Its line for the file that SEGVLM_API_KEYS_FILE names; limits may follow:\n{line}")
    return 0


def _segment(options: argparse.Namespace) -> int:
    settings = load_settings(bundle=options.bundle, backend=options.backend)
    check_expressions(options.expressions, settings)
    if options.photo.is_dir():
        from service.folder_command import segment_folder

        return segment_folder(options, settings)
    for name in ("server", "overlays", "recursive", "api_key_file"):
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} is for a folder of photos")
    chosen = options.format or ("png" if options.out else "rle")
    kind = _KINDS[chosen]
    if kind.name == "mask" and len(options.expressions) > 1:
        raise ValueError(
            "a mask picture holds one expression; choose --format overlay, rle or polygons"
        )
    if kind.name != "json" and options.out is None:
        raise ValueError(f"--format {chosen} is a picture; name its file with --out")
    task = SegmentTask(
        image=options.photo.read_bytes(),
        expressions=tuple(options.expressions),
        options=validate_options({"format": chosen, "threshold": options.threshold}),
    )
    answer = asyncio.run(_answer_once(settings, task, kind))
    if options.out is None:
        print(answer.payload.body.decode())
    else:
        options.out.write_bytes(answer.payload.body)
        print(f"{options.out}: {len(answer.payload.body):,} bytes in {answer.timings.total:.0f} ms")
    return 0


async def _answer_once(settings: Settings, task: SegmentTask, kind: AnswerKind) -> Answer:
    engine = load_engine(settings)
    pipeline = Pipeline(engine, settings)
    engine.start()
    try:
        return await pipeline.answer(TaskTranslation(task, kind), StageTimes(engine.clock))
    except EngineStopped as error:
        raise EngineStopped(engine.fault) from error
    finally:
        engine.stop(settings.shutdown_timeout)
        pipeline.close()


if __name__ == "__main__":
    sys.exit(main())
