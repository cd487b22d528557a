"""Packages of bioimage.io: the layouts of two published ones, a small one of our own, and their files."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ruamel.yaml import YAML
from torch import Tensor, nn

from tests.networks.network_cases import randomise, save_program


def twice(given: int, channels: int) -> nn.Sequential:
    """Two convolutions of 3 x 3, rectified once."""
    return nn.Sequential(
        nn.Conv2d(given, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()
    )


class Broad(nn.Module):
    """The layout of the specification's `unet2d_nuclei_broad`, by the names of its state dict."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64, 128)
        self.encoders = nn.ModuleList(twice(a, b) for a, b in zip((1, *widths), widths[:3], strict=False))
        self.base = twice(64, 128)
        self.decoders = nn.ModuleList(twice(2 * n, n) for n in (64, 32, 16))
        self.upsamplers = nn.ModuleList(nn.Sequential(nn.Identity(), nn.Conv2d(2 * n, n, 1)) for n in (64, 32, 16))
        self.output = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.encoders:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.base(x)
        for up, block in zip(self.upsamplers, self.decoders, strict=True):
            x = up(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
            x = block(torch.cat([skips.pop(), x], 1))
        return self.output(x)


class FixedShape(nn.Module):
    """The layout of the specification's `unet2d_fixed_shape`, with an instance norm before each convolution."""

    class Block(nn.Module):
        """Norm, convolution, rectified; twice."""

        def __init__(self, given: int, channels: int) -> None:
            super().__init__()
            layers = [nn.InstanceNorm2d(given), nn.Conv2d(given, channels, 3, padding=1), nn.ReLU()]
            self.block = nn.Sequential(
                *layers, nn.InstanceNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)

    class Part(nn.Module):
        """Blocks, and what samples between them."""

        def __init__(self, pairs: tuple[tuple[int, int], ...], samplers: tuple[tuple[int, int], ...] = ()) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(FixedShape.Block(*pair) for pair in pairs)
            self.samplers = nn.ModuleList(nn.ModuleDict({"conv": nn.Conv2d(*pair, 1)}) for pair in samplers)

    def __init__(self) -> None:
        super().__init__()
        ups = ((128, 64), (64, 32), (32, 16))
        self.encoder, self.decoder = self.Part(((1, 16), (16, 32), (32, 64))), self.Part(ups, ups)
        self.base, self.out_conv = self.Block(64, 128), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.encoder.blocks:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.base(x)
        for sampler, block in zip(self.decoder.samplers, self.decoder.blocks, strict=True):
            x = sampler["conv"](F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
            x = block(torch.cat([x, skips.pop()], 1))
        return self.out_conv(x)


def published(folder: Path, network: nn.Module, weights: str) -> nn.Module:
    """A layout with the weights of a published package."""
    network.load_state_dict(torch.load(folder / weights, weights_only=True), strict=True)
    return network.eval().requires_grad_(False)


class Small(nn.Module):
    """Two channels in, three out, stride 2."""

    shape = (1, 2, 32, 40)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.low, self.last = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.first(x))
        low = F.interpolate(F.relu(self.low(F.max_pool2d(first, 2))), scale_factor=2)
        return self.last(torch.cat([first, low], 1))


AXES = ("batch", "channel", "y", "x")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def new_description(before: list, after: list, weights: dict, *, dtype: str = "float32") -> dict:
    """Of `Small`, format 0.5."""

    def space(**more: object) -> list[dict]:
        return [{"type": "space", "id": axis, **{key: make(axis) for key, make in more.items()}} for axis in "yx"]

    channels = {"type": "channel", "channel_names": ["one", "two"]}
    return {
        **ABOUT,
        "format_version": "0.5.4",
        "inputs": [
            {
                "id": "raw",
                "axes": [{"type": "batch"}, channels, *space(size=lambda _: {"min": 32, "step": 2})],
                "data": {"type": dtype},
                "test_tensor": {"source": "test_input.npy"},
                "preprocessing": before,
            }
        ],
        "outputs": [
            {
                "id": "classes",
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": ["a", "b", "c"]},
                    *space(size=lambda axis: {"tensor_id": "raw", "axis_id": axis}, halo=lambda _: 2),
                ],
                "test_tensor": {"source": "test_output.npy"},
                "postprocessing": after,
            }
        ],
        "weights": weights,
    }


def old_description(before: list, after: list, weights: dict, *, dtype: str = "float32") -> dict:
    """Of `Small`, format 0.4."""
    given = {"name": "raw", "axes": "bcyx", "data_type": dtype, "preprocessing": before}
    found = {"name": "classes", "axes": "bcyx", "data_type": "float32", "halo": [0, 0, 2, 2], "postprocessing": after}
    reference = {"reference_tensor": "raw", "scale": [1, 1, 1, 1], "offset": [0, 0.5, 0, 0]}
    return {
        **ABOUT,
        "format_version": "0.4.9",
        "timestamp": "2026-11-30T00:00:00Z",
        "documentation": "README.md",
        "inputs": [given | {"shape": {"min": [1, 2, 32, 32], "step": [0, 0, 2, 2]}}],
        "outputs": [found | {"shape": reference}],
        "test_inputs": ["test_input.npy"],
        "test_outputs": ["test_output.npy"],
        "weights": weights,
    }


ABOUT = {
    "type": "model",
    "name": "a small network",
    "description": "Made up",
    "authors": [{"name": "nobody"}],
    "cite": [{"text": "nothing", "doi": "10.5281/zenodo.5108853"}],
    "license": "MIT",
}

DESCRIPTIONS = {"0.4": old_description, "0.5": new_description}


def reference(description: dict, network: nn.Module, image: np.ndarray) -> np.ndarray:
    """What bioimageio.core's own operations make of an image before the network, and of what it gives."""
    from bioimageio.core import Sample, Tensor  # noqa: PLC0415 - slow
    from bioimageio.core.proc_setup import setup_pre_and_postprocessing  # noqa: PLC0415 - as above
    from bioimageio.spec import ValidationContext, build_description  # noqa: PLC0415 - as above

    model = build_description(description, context=ValidationContext(perform_io_checks=False))
    sample = Sample(members={"raw": Tensor.from_numpy(image, dims=AXES)}, stat={}, id="test")
    steps = setup_pre_and_postprocessing(model, [sample])
    for step in steps.pre:
        step(sample)
    given = torch.from_numpy(sample.members["raw"].data.to_numpy().astype(np.float32))
    sample.members["classes"] = Tensor.from_numpy(network(given).numpy(), dims=AXES)
    for step in steps.post:
        step(sample)
    return sample.members["classes"].data.to_numpy()


def write_package(folder: Path, description: dict, *, image: np.ndarray, output: np.ndarray, **files: Path) -> Path:
    """The folder of a package: its description, its published test, and files by their names, dots as two underscores."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "test_input.npy", image)
    np.save(folder / "test_output.npy", output)
    for name, source in files.items():
        (folder / name.replace("__", ".")).write_bytes(source.read_bytes())
    with (folder / "rdf.yaml").open("w") as file:
        YAML(typ="safe").dump(description, file)
    return folder


def zipped(folder: Path, target: Path) -> Path:
    """The package as a zip."""
    with zipfile.ZipFile(target, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return target


def broad_package(source: Path, target: Path) -> Path:
    """The published nuclei package with the file of its network's program in place of its scripted one, which is not at hand."""
    target.mkdir(parents=True)
    for name in ("test_input.npy", "test_output.npy"):
        (target / name).write_bytes((source / name).read_bytes())
    program = save_program(target / "net.pt2", published(source, Broad(), "state_dict_extracted.pt"), (1, 1, 256, 256))
    weights = program.rename(target / "weights.pt")
    text = (source / "bioimageio_offline.yaml").read_text(encoding="utf-8")
    described = YAML(typ="safe").load(text)
    scripted = described["weights"]["torchscript"]["sha256"]
    (target / "rdf.yaml").write_text(text.replace(scripted, digest(weights)), encoding="utf-8")
    return target


def small_package(folder: Path, version: str = "0.5", *, seed: int = 0, **describe: list) -> Path:
    """A package of `Small`: its program, and what it gives over noise, without a step before or after it but `describe`'s.

    Args:
        folder: Where it will lie.
        version: Of its description.
        seed: Of its weights.
        describe: Steps `before` and `after`; the published output is of bioimageio.core then.
    """
    network = randomise(Small(), seed).float()
    program = save_program(folder.with_suffix(".pt2"), network)
    weights = {"torchscript": {"source": "weights.pt2", "sha256": digest(program), "pytorch_version": "2.10"}}
    steps = {"before": [], "after": [], **describe}
    description = DESCRIPTIONS[version](steps["before"], steps["after"], weights)
    image = np.random.default_rng(0).gamma(3, 20, Small.shape).astype(np.float32)
    output = reference(description, network, image) if describe else network(torch.from_numpy(image)).numpy()
    return write_package(folder, description, image=image, output=output, weights__pt2=program)
