"""The one place that makes ONNX Runtime sessions, so that every session computes what the exporter checked."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, get_args

from .cgroup import cpu_quota
from .errors import EnvironmentProblem, InputError, UsageError
from .external import read_data_file
from .files import unreadable
from .processor import saturates

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

Provider = Literal["cpu", "cuda", "tensorrt"]

EXECUTION_PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Our names and ONNX Runtime's."""

SESSION_CONFIG = {
    # Two Q/DQ pairs in a row with different scales would be merged, which changes a third of the values.
    "session.disable_double_qdq_remover": "1",
    # Weight-only DQ + MatMul would compute with int8 activations, 5e-3 off.
    "session.qdq_matmulnbits_accuracy_level": "0",
}
EXACT_PAIRS = {"session.x64quantprecision": "1"}
"""For x86 processors without VNNI only: signed weights are read as unsigned, which is slower and does not saturate."""

_FATAL = 4  # every error is raised as an exception too, so ONNX Runtime need not write it to stderr
_CHAIN: dict[Provider, tuple[Provider, ...]] = {
    "cpu": ("cpu",),
    "cuda": ("cuda", "cpu"),
    "tensorrt": ("tensorrt", "cuda", "cpu"),
}


@cache
def onnxruntime_module() -> ModuleType:
    """Import onnxruntime with telemetry off and its device-discovery warnings unheard.

    Raises EnvironmentProblem when it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # otherwise a session writes a store under the home directory
    try:
        with _native_stderr_unheard():
            import onnxruntime as ort
    except ImportError as error:
        raise EnvironmentProblem(
            f"onnxruntime cannot be imported ({error}); wanted it to run ONNX files. pip install onnxruntime-gpu"
        ) from error
    ort.set_default_logger_severity(_FATAL)
    module: ModuleType = ort
    return module


def available_providers() -> list[Provider]:
    """The providers this build of ONNX Runtime contains; one that needs a device may still fail to load."""
    built = onnxruntime_module().get_available_providers()
    return [ours for ours, theirs in EXECUTION_PROVIDERS.items() if theirs in built]


def usable_cores() -> int:
    """Physical cores this process may run on, less what a container's quota takes away: what ``threads=None`` means.

    ONNX Runtime's own default counts the machine's cores, also those a container may not use. A quota of one core and
    a half counts as one: threads that wait for each other all stand still while the quota is used up.
    """
    affinity: set[int] = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    )
    siblings = Path("/sys/devices/system/cpu")
    try:
        cores = len({(siblings / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in affinity})
    except OSError:
        cores = len(affinity)
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def session_config() -> dict[str, str]:
    """What a session needs here for a quantized file to compute what it says; files repeat it (``fimaq.session``)."""
    return SESSION_CONFIG | (EXACT_PAIRS if saturates() else {})


def open_session(
    model: Path | str | bytes,
    provider: Provider = "cpu",
    threads: int | None = None,
    optimize: bool = True,
    spin: bool = True,
) -> onnxruntime.InferenceSession:
    """Open an ONNX file, or its bytes, on one execution provider.

    ``threads`` is the number of intra-op threads (None: ``usable_cores()``); ``optimize`` chooses ORT_ENABLE_ALL or
    ORT_DISABLE_ALL; ``spin=False`` lets idle intra-op threads sleep, for a process that has other work for the cores.
    On CUDA, float products are computed in float32, not TF32.

    Raises InputError for a file that is missing, corrupt, not ONNX or needs an operator this runtime lacks,
    EnvironmentProblem when the provider is not there or does not load, UsageError for a bad ``threads``.
    """
    if provider not in get_args(Provider):
        raise UsageError(f"provider is {provider!r}; wanted one of {', '.join(EXECUTION_PROVIDERS)}.")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; wanted 1 or more, or none to use every core.")
    ort = onnxruntime_module()
    _require_built(provider)
    source, name = _source(model)
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads or usable_cores()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    for key, value in session_config().items():
        options.add_session_config_entry(key, value)
    if provider != "cpu":
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it could not load; _require_loaded says it
            ort.preload_dlls()
    try:
        session = _create(ort, source, name, options, provider)
    except InputError:
        if isinstance(source, str) and (data := read_data_file(Path(source))) is not None:
            data.require_beside(Path(source))  # says it better, if that is what is wrong
        raise
    _require_loaded(session.get_providers(), provider)
    return session


def run_session(session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray], name: str) -> list[np.ndarray]:
    """Run a session and return its outputs in order. Raises InputError that calls the model ``name`` when it fails.

    Some graphs load and then fail: ONNX Runtime fuses kernels whose conditions it checks only when they run.
    """
    state = onnxruntime_module().capi.onnxruntime_pybind11_state
    try:
        outputs: list[np.ndarray] = session.run(None, dict(inputs))
    except (state.Fail, state.RuntimeException, state.EPFail, state.InvalidArgument, state.NotImplemented) as error:
        shapes = ", ".join(f"{key} {value.dtype} {list(value.shape)}" for key, value in inputs.items())
        raise InputError(
            f"{name} loads but fails when run on {shapes} ({_reason(error)}). "
            "Export it again, or try another --provider."
        ) from error
    return outputs


def _create(
    ort: ModuleType, source: str | bytes, name: str, options: onnxruntime.SessionOptions, provider: Provider
) -> onnxruntime.InferenceSession:
    chain = [item for item in _CHAIN[provider] if item in available_providers()]
    providers = [(EXECUTION_PROVIDERS[item], {"use_tf32": "0"} if item == "cuda" else {}) for item in chain]
    state = ort.capi.onnxruntime_pybind11_state
    try:
        # Without enable_fallback=0 a provider that fails is replaced by the CPU and the news printed to stdout.
        return ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except state.NotImplemented as error:
        raise InputError(
            f"{name} needs an operator that onnxruntime {ort.__version__} lacks ({_reason(error)}). "
            "Export it again with a lower --opset, or upgrade onnxruntime."
        ) from error
    except (state.InvalidProtobuf, state.InvalidArgument, state.InvalidGraph, state.NoSuchFile) as error:
        raise InputError(
            f"{name} is not a usable ONNX model ({_reason(error)}). "
            "Copy the file again, or write it again with fimaq-tool export."
        ) from error
    except (state.Fail, state.RuntimeException, state.EPFail, RuntimeError, ValueError) as error:
        if provider == "cpu":
            raise InputError(
                f"{name} cannot be loaded by onnxruntime {ort.__version__} ({_reason(error)}). "
                "Write it again with fimaq-tool export."
            ) from error
        _create(ort, source, name, options, "cpu")  # raises InputError where the model is what is at fault
        raise _provider_problem(provider, _library_problem(provider) or _reason(error)) from error


def _source(model: Path | str | bytes) -> tuple[str | bytes, str]:
    """What InferenceSession is given, and how messages name it."""
    if isinstance(model, bytes):
        return model, f"the model of {len(model)} bytes"
    path = Path(model)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not there"
        raise InputError(f"{path} is {kind}; wanted an ONNX file. Write one with fimaq-tool export RUN -o MODEL.onnx.")
    if not os.access(path, os.R_OK):
        raise unreadable(path)
    return str(path), str(path)


def _require_built(provider: Provider) -> None:
    built = available_providers()
    if provider not in built:
        raise EnvironmentProblem(
            f"provider {provider} is not in this onnxruntime, which has {', '.join(built)}. "
            "Choose one of those with --provider, or pip install onnxruntime-gpu."
        )


def _require_loaded(loaded: list[str], provider: Provider) -> None:
    """ONNX Runtime only warns when a provider does not load, and runs on the CPU: compare with what was asked."""
    if EXECUTION_PROVIDERS[provider] not in loaded:
        reason = _library_problem(provider) or "its libraries load, but it found no device it can use"
        raise _provider_problem(provider, reason)


def _provider_problem(provider: Provider, reason: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"provider {provider} was asked for and did not load ({reason}); the CPU is always there. "
        "Use --provider cpu, or install the driver and libraries that `fimaq-tool env` finds missing."
    )


def _library_problem(provider: Provider) -> str | None:
    """Ask the dynamic linker which library is missing, if any: ONNX Runtime tells only its log."""
    library = Path(onnxruntime_module().__file__ or "").parent / f"capi/libonnxruntime_providers_{provider}.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None


def _reason(error: Exception) -> str:
    """The first line of ONNX Runtime's message without its error number, source file and C++ signature."""
    line = str(error).strip().split("\n", maxsplit=1)[0]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : (Load model from .*? failed: ?)?", "", line)
    return re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", line)[:300]


@contextlib.contextmanager
def _native_stderr_unheard() -> Iterator[None]:
    """Drop what C++ writes to file descriptor 2: ONNX Runtime warns while it is imported, before a level can be set."""
    try:
        saved = os.dup(2)
    except OSError:  # no stderr at all, as in a daemon
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:  # not a temporary file: a container may have no place for one
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
