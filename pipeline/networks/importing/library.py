"""A class of another library, its arguments and its weights, to a network: built in a child process, exported at two sizes, read as files are."""

from __future__ import annotations

import json
import os
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from pipeline.errors import ModelError
from pipeline.networks.importing.archive import read_archive
from pipeline.networks.importing.lowering import Network, unlike

KNOWN: Mapping[str, str] = {
    "biapy": "biapy",
    "careamics": "careamics",
    "cellmap_models": "cellmap-models",
    "connectomics": "git+https://github.com/PytorchConnectomics/pytorch_connectomics",
    "dynamic_network_architectures": "dynamic-network-architectures",
    "funlib": "git+https://github.com/funkelab/funlib.learn.torch",
    "monai": "monai",
    "plantseg": "git+https://github.com/kreshuklab/plant-seg",
    "pytorch3dunet": "git+https://github.com/wolny/pytorch-3dunet",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "torch_em": "torch-em",
}
"""Packages whose classes are built without trust, since they are what users have; and what pip calls them."""

SIZES = (32, 48, 64, 96, 128, 192, 256, *range(36, 160, 4))
"""Voxels an axis of the first example, in the order in which they are tried; networks that pad nothing take odd ones."""

STEPS = (16, 32, 8, 4)
"""Voxels from the first example to the second, and twice as many along every second axis; the last that is tried is its own size."""

SECONDS = 900.0
"""That a library may take to be built and exported."""

LARGEST_ANSWER = 2**16
"""Bytes."""

LAST_WORDS = 2000
"""Characters of what the child printed, of which the last line is told where it ended without an answer."""

PASSED_ON = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH")
"""What the child sees of the environment: no credentials, no proxies, nothing of the run."""


@dataclass(frozen=True)
class LibraryClass:
    """A class of another library.

    Args:
        name: `package.module.Class`.
        arguments: That it is built with, as JSON has them; a class among them as `{"class": "torch.nn.Conv3d"}`.
        folder: In which its module lies, where nobody has installed it; only with trust.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Built:
    """What came of a class.

    Args:
        network: At the larger of two sizes.
        library: Package and version.
        under: Keys that led to the weights in their file; empty where it held nothing else.
    """

    network: Network
    library: str
    under: str


def build_network(
    source: LibraryClass, weights: Path, *, trust: bool = False, output: int = 0, seconds: float = SECONDS
) -> Built:
    """The graph of a class with its weights.

    Programs of two sizes must give one graph and the same weights: what depends on the size otherwise has no rule.

    Args:
        source: What to build.
        weights: Its state dict, in a file of safetensors or `torch.save`.
        trust: Whether a class of any package may be built, and a file of weights unpickled; both in the child alone.
        output: Which of its outputs is predicted, where it has several.
        seconds: After which the child, and all that it started, is ended.

    Raises:
        ModelError: The package is not known and not trusted, the class cannot be built or exported, or what it does depends on the size.
    """
    if not weights.is_file():
        raise ModelError(f"Weights '{weights}' were asked for, but there is no such file. Check the path.")
    if source.package not in KNOWN and not trust:
        raise ModelError(
            f"'{source.name}' is of a package that is not known here (known are {', '.join(KNOWN)}), so building it runs code that "
            "somebody must trust. If you do, say --trust, or model.trust: true."
        )
    with tempfile.TemporaryDirectory(prefix="halotile-import-") as folder:
        answer = _asked(source, weights, Path(folder), trust=trust, seconds=seconds)
        first, second = (_read(source, Path(folder, f"{name}.pt2"), output) for name in ("first", "second"))
    if different := unlike(first, second):
        raise ModelError(
            f"'{source.name}' does one thing to an image of {_by(first)} voxels and another to one of {_by(second)}: {different}. So "
            "what it does to a tile says nothing of the whole."
        )
    return Built(second, str(answer.get("library", "")), str(answer.get("under", "")))


def _read(source: LibraryClass, path: Path, output: int) -> Network:
    try:
        return read_archive(path, output=output)
    except ModelError as error:
        raise ModelError(str(error).replace(str(path), source.name)) from error


def _by(network: Network) -> str:
    return " x ".join(str(n) for n in network.program.image[1][2:])


def _asked(source: LibraryClass, weights: Path, folder: Path, *, trust: bool, seconds: float) -> Mapping[str, Any]:
    """What the child answers.

    Raises:
        ModelError: It found an error, ended without an answer, or took too long.
    """
    job = {
        "class": source.name,
        "arguments": dict(source.arguments),
        "weights": str(weights.resolve()),
        "sizes": SIZES,
        "steps": STEPS,
        "trust": trust,
        "path": [str(part) for part in (source.folder, Path.cwd()) if part] if trust else [],
        "folder": str(folder),
    }
    answer = answer_of(job, folder, source.name, seconds)
    refused = answer.get("error")
    if refused is not None:
        raise ModelError(_refusal(source, str(refused)[:LAST_WORDS], answer.get("missing")))
    return answer


def answer_of(job: Mapping[str, Any], folder: Path, name: str, seconds: float = SECONDS) -> dict[str, Any]:
    """What a child of its own answers to a job of `builder`.

    Args:
        job: What it is told.
        folder: Its home, where its files are.
        name: Of what is built, for a person.
        seconds: After which it is ended.

    Raises:
        ModelError: It ended without an answer, or took too long.
    """
    said = _run(json.dumps(job, allow_nan=False), folder, name, seconds)
    file = folder / "answer.json"
    try:
        if file.stat().st_size > LARGEST_ANSWER:
            raise ValueError("it is too long")
        answer = json.loads(file.read_bytes())
        return dict(answer)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"The process that builds '{name}' gave no answer. It {said}.") from error


def _refusal(source: LibraryClass, error: str, missing: Any) -> str:
    if missing == source.package and source.package in KNOWN:
        return (
            f"'{source.name}' is of the package '{missing}', which is not installed here. Install it where the import runs, with "
            f"`pip install {KNOWN[source.package]}`; workers need it not."
        )
    if isinstance(missing, str) and not missing.startswith(f"{source.package}."):
        where = f"'{source.name}' needs the package '{missing[:100]}'"
        return f"{where}, which is not installed here: install it with pip. Workers need it not."
    return f"'{source.name}' could not be built and exported: {error}"


def _run(job: str, folder: Path, name: str, seconds: float) -> str:
    """Run the builder until it ends; the last that it printed, in words. Nothing that it started is left.

    Its home, temporary files and working folder are a folder that goes with it. `-P` and a path without relative entries: a package of
    a known name is the one that is installed, not what lies where the command happens to be run.
    """
    with subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("builder.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment(folder),
        start_new_session=True,
    ) as child:
        asked, last = cast(IO[bytes], child.stdin), _LastWords(cast(IO[bytes], child.stderr))
        try:
            with suppress(BrokenPipeError):
                asked.write(f"{job}\n".encode())
                asked.flush()
            ended = _ends_within(child.pid, seconds)
        finally:
            with suppress(ProcessLookupError):  # not waited for yet, so the number is still its own
                os.killpg(child.pid, signal.SIGKILL)
            with suppress(BrokenPipeError):
                asked.close()
        status = child.wait()
        words = last.line()
    if not ended:
        raise ModelError(
            f"'{name}' was not built and exported within {seconds:g} s, and was ended. Does it download, or train?"
        )
    return f"ended with {status}, and said: {words or 'nothing'}"


def environment(folder: Path) -> dict[str, str]:
    """All that a child sees of the environment.

    `PYTHONPATH` is passed on, but for relative entries: Halotile itself is imported by it, and on clusters packages are found through it.

    Args:
        folder: Its home.
    """
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(part).is_absolute()]
    own = {"HOME": str(folder), "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    if path:
        own["PYTHONPATH"] = os.pathsep.join(path)
    if site.ENABLE_USER_SITE:
        own["PYTHONUSERBASE"] = site.getuserbase()
    return {**passed, **own}


def _ends_within(pid: int, seconds: float) -> bool:
    """Whether a child ends within so long; it is not waited for, so that its number stays its own."""
    until = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


class _LastWords:
    """The end of what somebody prints, however much it is."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._end = stream, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError, ValueError):  # closed meanwhile
            while part := os.read(self._stream.fileno(), 2**16):
                self._end = (self._end + part)[-LAST_WORDS:]

    def line(self) -> str:
        """Its last line; of a stream that somebody who has left still holds open, what came so far."""
        self._thread.join(timeout=1)
        lines = self._end.decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else ""
