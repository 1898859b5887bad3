"""ONNX Runtime's execution providers for NVIDIA GPUs: options, installation, engine cache.

No torch: what is said here can be checked without a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from model.bundle import Bundle
from service.backends.onnx_graphs import Value

Provider = tuple[str, dict[str, str]]
"""Name and options, as `onnxruntime.InferenceSession` takes them."""

NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""By kind of device."""

_LIBRARIES = {
    "cuda": "CUDA's and cuDNN's libraries: `pip install 'onnxruntime-gpu[cuda,cudnn]'`",
    "tensorrt": "TensorRT's libraries, of the release that this onnxruntime-gpu was built for: "
    "`pip install tensorrt`",
}


def require_installed(kind: str) -> None:
    """Raises ValueError if the installed ONNX Runtime was built without the provider of `kind`."""
    available = ort.get_available_providers()
    if NAMES[kind] not in available:
        raise ValueError(
            f"ONNX Runtime {ort.__version__} as installed here has no {NAMES[kind]}, only "
            f"{', '.join(available)}; put onnxruntime-gpu in the place of onnxruntime "
            "(`pip uninstall onnxruntime`, then `pip install 'segvlm[serve-gpu]'`), or choose "
            "device cpu"
        )


def require_running(session: Any, kind: str) -> None:
    """Raises ValueError if `session` fell back to another provider than that of `kind`."""
    running = session.get_providers()
    if running[0] != NAMES[kind]:
        raise ValueError(
            f"ONNX Runtime {ort.__version__} has {NAMES[kind]} but could not start it, only "
            f"{', '.join(running)}; it needs {_LIBRARIES[kind]}, and its own log says what was "
            "missing. Or choose another device"
        )


def cuda_provider(index: int, stream: int) -> Provider:
    """The CUDA provider on GPU `index`, queueing its work on the CUDA stream at address `stream`.

    Memory grows by what is asked for: batches come in few sizes, and torch needs some, too.
    Everything else is ONNX Runtime's default: an exhaustive search of convolutions for each shape
    (the warm-up pays for it), TF32 in float32 graphs.
    """
    return NAMES["cuda"], {
        "device_id": str(index),
        "user_compute_stream": str(stream),
        "arena_extend_strategy": "kSameAsRequested",
    }


def tensorrt_provider(
    index: int,
    stream: int,
    inputs: Sequence[Value],
    sizes: Sequence[int],
    *,
    fp16: bool,
    cache: Path,
) -> Provider:
    """The TensorRT provider for a graph of these inputs, one engine for all batch `sizes`.

    The engine is tuned for the largest size, which is what runs under load, and kept in `cache`.
    """

    def profile(size: int) -> str:
        shapes = ("x".join(map(str, (size, *value.shape))) for value in inputs)
        return ",".join(f"{v.name}:{shape}" for v, shape in zip(inputs, shapes, strict=True))

    return NAMES["tensorrt"], {
        "device_id": str(index),
        "user_compute_stream": str(stream),
        "trt_fp16_enable": str(int(fp16)),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_profile_min_shapes": profile(sizes[0]),
        "trt_profile_opt_shapes": profile(sizes[-1]),
        "trt_profile_max_shapes": profile(sizes[-1]),
    }


def engine_cache(root: Path, bundle: Bundle, circumstances: Mapping[str, Any]) -> Path:
    """A directory below `root` for the TensorRT engines of `bundle` under these `circumstances`.

    TensorRT takes minutes to build its engines; the next start finds them there. An engine is only
    good for the graphs, versions, GPU and batch sizes that it was built for, so each has its own
    directory. It is the user's alone: an engine is code.

    Raises ValueError if it cannot be made.
    """
    facts = [ort.__version__, *bundle.config.files.values(), *map(str, circumstances.items())]
    path = root / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"TensorRT's engines cannot be kept in {path}: {error}; give the service a home "
            "directory that it can write to, or choose device cuda"
        ) from error
    return path
