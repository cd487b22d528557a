"""Classes of other libraries: what is built, in what surroundings, and what is refused before anything of it runs."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.networks.importing import builder
from pipeline.networks.importing.library import SIZES, STEPS, LibraryClass, build_network, environment
from pipeline.networks.importing.network import import_network

LIBRARY = '''
import os, sys
import torch
from torch import nn
import torch.nn.functional as F
from collections import OrderedDict

__version__ = "7.1"


class Net(nn.Module):
    """Strides by 4, and takes nothing else."""

    def __init__(self, width, act=nn.ReLU):
        super().__init__()
        self.late = nn.Conv3d(width, 1, 1)
        self.first = nn.Conv3d(2, width, 3, padding=1)
        self.norm, self.act = nn.BatchNorm3d(width), act()

    def forward(self, x):
        assert all(n % 4 == 0 for n in x.shape[2:])
        y = F.max_pool3d(self.act(self.norm(self.first(x))), 4)
        return self.late(F.interpolate(y, scale_factor=4))


class Loud(Net):
    """Prints much, reads the standard input, and tells what it sees of the environment by its version."""

    def __init__(self, width):
        super().__init__(width)
        global __version__
        print("x" * 10**6, flush=True)
        print(repr(sys.stdin.read()), "y" * 10**6, file=sys.stderr, flush=True)
        __version__ = "sees " + " ".join(sorted(os.environ))


class Sized(Net):
    """Divides by the number of voxels."""

    def forward(self, x):
        return super().forward(x) / x.numel()


class Branching(Net):
    """Does another thing to large images."""

    def forward(self, x):
        return self.late(self.first(x)) if x.shape[-1] > 40 else self.late(F.relu(self.first(x)))


class Marker(Net):
    def __init__(self, width, marker):
        os.mkdir(marker)
        super().__init__(width)


def marks(marker):
    os.mkdir(marker)
'''


class Net(nn.Module):
    """The layers of the library's, for its weights."""

    def __init__(self, width=3):
        super().__init__()
        self.late, self.first, self.norm = (
            nn.Conv3d(width, 1, 1),
            nn.Conv3d(2, width, 3, padding=1),
            nn.BatchNorm3d(width),
        )


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A folder with an installed package that is known by name, and weights of its networks; torch writes `w.pth`."""
    for package in ("biapy", "stranger"):
        folder = tmp_path / "installed" / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(LIBRARY)
    monkeypatch.setenv("PYTHONPATH", f":relative:{tmp_path / 'installed'}")
    torch.manual_seed(0)
    torch.save(Net().state_dict(), tmp_path / "w.pth")
    yield tmp_path
    for name in ("biapy", "stranger"):
        sys.modules.pop(name, None)


def built(library: Path, name: str, arguments=None, *, weights="w.pth", trust=False, sizes=SIZES):
    """What the builder answers, in this process: it is quicker."""
    job = {
        "class": name,
        "arguments": arguments or {"width": 3},
        "weights": str(library / weights),
        "sizes": sizes,
        "steps": STEPS,
        "trust": trust,
        "folder": str(library),
    }
    return builder.built(job)


@pytest.fixture
def here(library, monkeypatch):
    """The library can be imported in this process."""
    monkeypatch.syspath_prepend(library / "installed")
    return library


@pytest.fixture
def in_process(monkeypatch):
    """The builder's work is done in this process, which is quicker; what it says of the child is not shown."""

    def run(job, folder, *_):
        (folder / "answer.json").write_text(json.dumps(builder.built(json.loads(job))))
        return ""

    monkeypatch.setattr("pipeline.networks.importing.library._run", run)


def test_a_class_becomes_a_network_and_sees_nothing_of_the_run(library, monkeypatch):
    """No credentials, no proxies; what it prints and reads is nobody's, and does not disturb the answer."""
    for secret in ("AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "PREFECT_API_KEY", "HALOTILE_MARKER"):
        monkeypatch.setenv(secret, "secret")
    checkpoint = import_network(library / "w.pth", of=LibraryClass("biapy.Loud", {"width": 3}))
    assert checkpoint.architecture.stride == (4, 4, 4)
    assert checkpoint.architecture.in_channels == 2
    facts = checkpoint.provenance
    assert (facts["class"], facts["arguments"], facts["imported from"]) == ("biapy.Loud", '{"width": 3}', "w.pth")
    assert "tile against whole" in facts["proof"]
    seen = set(facts["library"].removeprefix("biapy sees ").split())
    assert {"HOME", "PYTHONPATH"} <= seen
    assert not {"AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "PREFECT_API_KEY", "HALOTILE_MARKER"} & seen


def test_a_home_of_its_own_and_no_relative_path(library, tmp_path):
    """A package of a known name is the installed one, not a folder that lies where somebody stands."""
    seen = environment(tmp_path)
    assert seen["HOME"] == str(tmp_path)
    assert seen["PYTHONPATH"] == str(library / "installed")


@pytest.mark.usefixtures("in_process", "here")
def test_a_package_that_is_not_known_is_not_run_without_trust(library, tmp_path):
    """The control: with trust it runs."""
    marker = tmp_path / "marker"
    source = LibraryClass("stranger.Marker", {"width": 3, "marker": str(marker)})
    with pytest.raises(ModelError, match=r"package that is not known here.*--trust, or model.trust"):
        build_network(source, library / "w.pth")
    assert not marker.exists()
    answer = build_network(source, library / "w.pth", trust=True)
    assert answer.library == "stranger 7.1"
    assert marker.exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("biapy.marks", "no class of networks"),
        ("biapy.OrderedDict", "no class of networks"),
        ("biapy.os.system", "No module named 'biapy.os'"),
        ("biapy.nothing", "has nothing called 'nothing'"),
        ("os.system", "no class of networks"),
        ("Net", "names no package"),
    ],
)
def test_only_a_class_of_networks_is_called(here, tmp_path, name, why):
    """A known package holds functions too, and modules such as `os`; none of these is called."""
    assert why in built(here, name, {"marker": str(tmp_path / "marker")})["error"]
    assert not (tmp_path / "marker").exists()


def test_a_class_among_the_arguments_is_one_of_torch_or_the_package(here):
    """As nnU-Net's plans name convolutions and norms; what is of elsewhere is not imported."""
    assert "error" not in built(here, "biapy.Net", {"width": 3, "act": {"class": "torch.nn.ELU"}}, sizes=[8])
    arguments = {"width": 3, "act": "torch.nn.ELU", "_kw_requires_import": ["act"]}
    assert "error" not in built(here, "biapy.Net", arguments, sizes=[8])
    for strange in ("stranger.Net", "os.system"):
        refused = built(here, "biapy.Net", {"width": 3, "act": {"class": strange}}, sizes=[8])["error"]
        assert f"'{strange}' is of neither torch nor the package" in refused
    assert (
        "'torch.load' is no class of networks"
        in built(here, "biapy.Net", {"width": 3, "act": {"class": "torch.load"}})["error"]
    )


@pytest.mark.usefixtures("in_process")
def test_wrong_arguments_and_packages_that_are_not_there_are_told(here):
    """In the words of the library, and with what to install."""
    assert "unexpected keyword argument 'depth'" in built(here, "biapy.Net", {"depth": 3})["error"]
    with pytest.raises(ModelError, match=r"'torch_em', which is not installed here.*pip install torch-em"):
        build_network(LibraryClass("torch_em.model.UNet2d"), here / "w.pth")
    with pytest.raises(ModelError, match="no such file"):
        build_network(LibraryClass("torch_em.model.UNet2d"), here / "none.pth")


def test_weights_that_do_not_fit_are_told_by_name(here):
    """Which are missing, too many, or of another shape."""
    refused = built(here, "biapy.Net", {"width": 5})["error"]
    assert "first.weight is (3, 2, 3, 3, 3) and not (5, 2, 3, 3, 3)" in refused
    torch.save({"norm.weight": torch.zeros(3), "other": torch.zeros(1)}, here / "part.pth")
    refused = built(here, "biapy.Net", weights="part.pth")["error"]
    assert "Missing: first.bias, first.weight" in refused
    assert "Unknown: other" in refused
    torch.save({"epoch": 3}, here / "none.pth")
    assert "holds no state dict" in built(here, "biapy.Net", weights="none.pth")["error"]


@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
def test_weights_are_found_below_other_keys_and_prefixes(here, prefix):
    """As parallel training, Lightning and trainers store them."""
    state = {f"{prefix}{name}": tensor for name, tensor in Net().state_dict().items()}
    torch.save({"epoch": 3, "optimizer": {"state": {}}, "state": {"weights": state}}, here / "w.pth")
    assert built(here, "biapy.Net", sizes=[8])["under"] == "state.weights"


class Pickled:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_nothing_is_unpickled_without_trust(here, tmp_path):
    """The control: with trust it is, in the child."""
    marker = tmp_path / "marker"
    torch.save({"weights": Net().state_dict(), "hyper": Pickled(marker)}, here / "w.pth")
    assert "nothing else is unpickled without trust" in built(here, "biapy.Net")["error"]
    assert not marker.exists()
    assert built(here, "biapy.Net", trust=True, sizes=[8])["under"] == "weights"
    assert marker.exists()


@pytest.mark.parametrize(("name", "what"), [("Sized", "constants that depend on it"), ("Branching", "")])
@pytest.mark.usefixtures("in_process")
def test_what_depends_on_the_size_is_refused(here, name, what):
    """Programs of two sizes are compared: nodes, and constants."""
    with pytest.raises(ModelError, match="does one thing to an image of 32 x 32 x 32 voxels and another") as refused:
        build_network(LibraryClass(f"biapy.{name}", {"width": 3}), here / "w.pth")
    assert what in str(refused.value)
    assert build_network(LibraryClass("biapy.Net", {"width": 3}), here / "w.pth").library == "biapy 7.1"


def test_sizes_that_it_does_not_take_are_passed_over(here):
    """Its own assertion is heard; where it takes none, what it said is told."""
    assert "error" not in built(here, "biapy.Net", sizes=[30, 8])
    assert "and 30x30x30 ... voxels (AssertionError" in built(here, "biapy.Net", sizes=[30])["error"]


def test_a_build_that_takes_too_long_is_ended_with_all_that_it_started(library):
    """The limit is an argument; nothing of the process group is left."""
    pids = library / "pids"
    (library / "installed" / "sitecustomize.py").write_text(
        f"import os, subprocess, time\nchild = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(pids) + '.new'!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(pids) + '.new'!r}, {str(pids)!r})\ntime.sleep(1000)\n"
    )
    for seconds in (0.5, 4, 30, 120):  # until it came as far as that
        with pytest.raises(ModelError, match=f"was not built and exported within {seconds:g} s"):
            build_network(LibraryClass("biapy.Net", {"width": 3}), library / "w.pth", seconds=seconds)
        if pids.exists():
            break
    for pid in map(int, pids.read_text().split()):
        assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether a process computes; one that was ended and that nobody has looked at does not."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_child_that_dies_is_told(library):
    """Its status, and its last words."""
    (library / "installed" / "sitecustomize.py").write_text(
        "import os, sys\nsys.stderr.write('out of luck\\n')\nsys.stderr.flush()\nos.kill(os.getpid(), 9)\n"
    )
    with pytest.raises(
        ModelError, match=f"gave no answer. It ended with -{int(signal.SIGKILL)}, and said: out of luck"
    ):
        build_network(LibraryClass("biapy.Net", {"width": 3}), library / "w.pth")


def test_an_answer_that_is_no_answer_is_refused(library, monkeypatch):
    """Huge, or of another form: it is somebody else's process that wrote it."""
    for content in ("x" * 10**6, "[1]", "", '{"error": "no", "missing": 3}'):

        def answers(job, folder, *_, content=content):
            (folder / "answer.json").write_text(content)
            return "ended with 0, and said: nothing"

        monkeypatch.setattr("pipeline.networks.importing.library._run", answers)
        with pytest.raises(ModelError, match=r"gave no answer|could not be built and exported: no"):
            build_network(LibraryClass("biapy.Net"), library / "w.pth")
