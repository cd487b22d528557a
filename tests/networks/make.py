"""Small networks of the libraries that people have, with random weights; run by the environment that has the libraries.

    .venv-networks/bin/python -m tests.networks.make FOLDER [NAME ...]

writes for each network NAME.pt2, its program, and NAME.npz: a volume, what one whole pass of the module gives for it in float64, and how far
gradients of a block in the middle reach; the same of a smaller volume; and all into manifest.json, with versions and seeds.

Nothing here knows of Halotile: what is expected is what torch and the library do.
"""

from __future__ import annotations

import json
import sys
import types
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.networks.cnnectome import CNNectome

SEED = 16

SHELLS = ("biapy", "biapy.models", "careamics", "careamics.config", "careamics.models", "torch_em", "torch_em.model")
"""Packages of which only single modules are used: their `__init__` would import trainers, readers and viewers."""


@dataclass(frozen=True)
class Case:
    """A network.

    Args:
        library: Whose; None: written here.
        title: The class, and what of its settings matters.
        build: Makes it, with whatever weights.
        stride: Along z, y, x, as its layers say.
        large: Extents of the volume, z, y, x: a block in the middle has its whole halo, and a stride more.
        small: Of the volume whose pass is committed.
        margin: Voxels that a network that pads nothing loses at each end.
        whole: Whether it has norms over its whole input.
        gain: Of its weights: more than 1 where one block lies beside many others that see less, so that what it says is in the output.
        outer: By so much the outermost weights of a kernel are larger than those between: what lies far off is not lost on the way.
    """

    library: str | None
    title: str
    build: Callable[[], nn.Module]
    stride: tuple[int, int, int] = (4, 4, 4)
    large: tuple[int, int, int] = (62, 61, 63)
    small: tuple[int, int, int] = (21, 26, 27)
    margin: int = 0
    whole: bool = False
    gain: float = 1
    outer: float = 1

    @property
    def ndim(self) -> int:
        """Spatial axes of the module; where there are two, slices along z are images of their own."""
        return 3 if self.stride[0] > 0 else 2

    def legal(self, volume: np.ndarray) -> np.ndarray:
        """What the module is given for a volume (C, Z, Y, X): mirrored to whole strides, or by what it loses."""
        pads = [(0, 0)]
        for n, stride in zip(volume.shape[1:], self.stride, strict=True):
            pads.append((self.margin, self.margin) if self.margin else (0, -n % stride if stride else 0))
        return np.pad(volume, pads, mode="reflect")


# --- libraries ------------------------------------------------------------------------------------------------------------


def _monai(name: str, **settings: Any) -> nn.Module:
    return getattr(import_module("monai.networks.nets"), name)(in_channels=1, **settings)


def _monai_unet(ndim: int, norm: str) -> nn.Module:
    settings = {"channels": (4, 8, 12), "strides": (2, 2), "num_res_units": 2, "dropout": 0.1}
    return _monai("UNet", spatial_dims=ndim, out_channels=1, norm=norm, **settings)


def _monai_dynunet(norm: str) -> nn.Module:
    return _monai(
        "DynUNet", spatial_dims=3, out_channels=2, kernel_size=[[1, 3, 3], 3, 3], strides=[1, [1, 2, 2], 2],
        upsample_kernel_size=[[1, 2, 2], 2], filters=[4, 6, 8], norm_name=norm, res_block=True,
    )  # fmt: skip


def _monai_segresnet(**norm: Any) -> nn.Module:
    return _monai(
        "SegResNet", spatial_dims=3, out_channels=1, init_filters=4, blocks_down=(1, 1, 1), blocks_up=(1, 1), **norm
    )


def _monai_basic(**norm: Any) -> nn.Module:
    return _monai("BasicUNet", spatial_dims=2, out_channels=2, features=(4, 4, 8, 8, 12, 4), **norm)


def _smp(encoder: str, depth: int, widths: tuple[int, ...]) -> nn.Module:
    library = import_module("segmentation_models_pytorch")
    settings = {"encoder_name": encoder, "encoder_weights": None, "encoder_depth": depth, "decoder_channels": widths}
    return library.Unet(in_channels=1, classes=2, **settings)


def _pytorch3dunet(name: str, order: str) -> nn.Module:
    model = getattr(import_module("pytorch3dunet.unet3d.model"), name)
    return model(1, 1, final_sigmoid=True, f_maps=[4, 8, 12], layer_order=order, num_groups=2)


def _nnunet(name: str, norm: type[nn.Module], *, deep: bool) -> nn.Module:
    settings = {
        "input_channels": 1, "n_stages": 3, "features_per_stage": (4, 6, 8), "conv_op": nn.Conv3d,
        "kernel_sizes": [(1, 3, 3), 3, 3], "strides": [1, (1, 2, 2), 2], "num_classes": 2, "conv_bias": True,
        "norm_op": norm, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True}, "deep_supervision": deep,
    }  # fmt: skip
    blocks = ("n_conv_per_stage", (2, 2, 2)) if name == "PlainConvUNet" else ("n_blocks_per_stage", (1, 2, 2))
    unet = getattr(import_module("dynamic_network_architectures.architectures.unet"), name)
    return unet(**settings, **dict([blocks]), n_conv_per_stage_decoder=(1, 1))


def _torch_em_2d(norm: str) -> nn.Module:
    return _bare("torch_em.model.unet").UNet2d(
        1, 2, depth=3, initial_features=4, norm=norm, final_activation="Sigmoid", return_side_outputs=False
    )


def _torch_em_3d(norm: str) -> nn.Module:
    return _bare("torch_em.model.unet").AnisotropicUNet(1, 1, [[1, 2, 2], [2, 2, 2]], initial_features=4, norm=norm)


def _biapy(module: str, name: str, **settings: Any) -> nn.Module:
    unet = getattr(_bare(f"biapy.models.{module}"), name)
    return unet(
        image_shape=(32, 32, 32, 1), activation="elu", feature_maps=[4, 6, 8], drop_values=[0.1] * 3, z_down=[1, 2], larger_io=False,
        conv_layers=[2, 2, 2], **settings,
    )  # fmt: skip


def _careamics(**settings: Any) -> nn.Module:
    return _bare("careamics.models.unet.unet").UNet(depth=2, **settings)


def _bare(module: str) -> types.ModuleType:
    """A module of a package in `SHELLS`, without what the packages import by themselves."""
    for name in SHELLS:
        top, *rest = name.split(".")
        if name not in sys.modules and (spec := find_spec(top)) and spec.submodule_search_locations:
            shell = types.ModuleType(name)
            shell.__path__ = [str(Path(spec.submodule_search_locations[0]).joinpath(*rest))]
            shell.__spec__ = spec
            sys.modules[name] = shell
    return import_module(module)


PLANE: dict[str, Any] = {"stride": (0, 4, 4), "large": (2, 94, 105), "small": (2, 45, 58)}
FLAT: dict[str, Any] = {"stride": (2, 4, 4), "large": (46, 61, 70), "small": (17, 26, 27)}
DEEP: dict[str, Any] = {"stride": (0, 16, 16), "large": (1, 253, 260), "small": (1, 125, 139)}
VALID: dict[str, Any] = {"large": (40, 44, 48), "small": (24, 24, 28), "margin": 20}

FAR: dict[str, Any] = {"gain": 2, "outer": 4}
"""Of networks that hardly look at the outermost of their halo otherwise: 2e-6 to 3e-5 of the range, beside 1e-4 and more."""

CASES: dict[str, Case] = {
    "monai-unet": Case("monai", "UNet, 3D, residual", lambda: _monai_unet(3, "batch")),
    "monai-unet-2d": Case("monai", "UNet, 2D, residual", lambda: _monai_unet(2, "batch"), **PLANE),
    "monai-basicunet": Case("monai", "BasicUNet, 2D", lambda: _monai_basic(norm="batch"), **DEEP),
    "monai-dynunet": Case("monai", "DynUNet, residual", lambda: _monai_dynunet("batch"), **FLAT),
    "monai-segresnet": Case("monai", "SegResNet", lambda: _monai_segresnet(norm="batch"), large=(78, 77, 79), **FAR),
    "smp-resnet18": Case(
        "segmentation_models_pytorch", "Unet, resnet18, depth 2", lambda: _smp("resnet18", 2, (8, 4)),
        **{**PLANE, "large": (2, 141, 146)},
    ),
    "smp-mobilenet": Case(
        "segmentation_models_pytorch", "Unet, mobilenet_v2, depth 3", lambda: _smp("mobilenet_v2", 3, (12, 8, 4)),
        **{**PLANE, "stride": (0, 8, 8), "large": (2, 189, 204), "small": (2, 69, 91)},
    ),
    "pytorch3dunet-unet": Case("pytorch3dunet", "UNet3D", lambda: _pytorch3dunet("UNet3D", "bcr")),
    "pytorch3dunet-residual": Case("pytorch3dunet", "ResidualUNet3D", lambda: _pytorch3dunet("ResidualUNet3D", "cbr")),
    "nnunet-plain": Case(
        "dynamic_network_architectures", "PlainConvUNet, deep supervision",
        lambda: _nnunet("PlainConvUNet", nn.BatchNorm3d, deep=True), **FLAT,
    ),
    "nnunet-residual": Case(
        "dynamic_network_architectures", "ResidualEncoderUNet",
        lambda: _nnunet("ResidualEncoderUNet", nn.BatchNorm3d, deep=False), **FLAT,
    ),
    "torch-em-unet": Case(
        "torch_em", "UNet2d", lambda: _torch_em_2d("BatchNorm"),
        **{**PLANE, "stride": (0, 8, 8), "large": (2, 117, 124), "small": (2, 53, 59)},
    ),
    "torch-em-anisotropic": Case("torch_em", "AnisotropicUNet", lambda: _torch_em_3d("BatchNorm"), **FLAT),
    "biapy-unet": Case("biapy", "U_Net", lambda: _biapy("unet", "U_Net"), **FLAT),
    "biapy-resunet": Case(
        "biapy", "ResUNet, linear up-sampling",
        lambda: _biapy("resunet", "ResUNet", normalization="bn", upsample_layer="upsampling"), **FLAT,
    ),
    "careamics-unet": Case("careamics", "UNet, 3D", lambda: _careamics(conv_dims=3, num_channels_init=4), **FAR),
    "careamics-n2v2": Case(
        "careamics", "UNet, 2D, N2V2", lambda: _careamics(conv_dims=2, num_channels_init=8, n2v2=True), **PLANE, **{**FAR, "outer": 8}
    ),
    "cnnectome-transposed": Case(None, "CNNectome's layout, transposed", CNNectome, **VALID),
    "cnnectome-nearest": Case(
        None, "CNNectome's layout, nearest, batch norm", lambda: CNNectome(transposed=False, norm=nn.BatchNorm3d),
        **VALID,
    ),
    "monai-unet-instance": Case("monai", "UNet, 3D, residual", lambda: _monai_unet(3, "instance"), whole=True),
    "monai-basicunet-instance": Case("monai", "BasicUNet, 2D", _monai_basic, **DEEP, whole=True),
    "monai-dynunet-instance": Case(
        "monai", "DynUNet, residual", lambda: _monai_dynunet("instance"), **FLAT, whole=True
    ),
    "monai-segresnet-group": Case(
        "monai", "SegResNet", lambda: _monai_segresnet(norm=("GROUP", {"num_groups": 2})), large=(78, 77, 79), whole=True
    ),
    "pytorch3dunet-unet-group": Case("pytorch3dunet", "UNet3D", lambda: _pytorch3dunet("UNet3D", "gcr"), whole=True),
    "pytorch3dunet-residual-group": Case(
        "pytorch3dunet", "ResidualUNet3D", lambda: _pytorch3dunet("ResidualUNet3D", "gcr"), whole=True
    ),
    "nnunet-plain-instance": Case(
        "dynamic_network_architectures", "PlainConvUNet",
        lambda: _nnunet("PlainConvUNet", nn.InstanceNorm3d, deep=False), **FLAT, whole=True,
    ),
    "nnunet-residual-instance": Case(
        "dynamic_network_architectures", "ResidualEncoderUNet",
        lambda: _nnunet("ResidualEncoderUNet", nn.InstanceNorm3d, deep=False), **FLAT, whole=True,
    ),
    "torch-em-unet-instance": Case(
        "torch_em", "UNet2d", lambda: _torch_em_2d("InstanceNorm"),
        **{**PLANE, "stride": (0, 8, 8), "large": (2, 117, 124), "small": (2, 53, 59)}, whole=True,
    ),
    "torch-em-anisotropic-instance": Case(
        "torch_em", "AnisotropicUNet", lambda: _torch_em_3d("InstanceNorm"), **FLAT, whole=True
    ),
    "biapy-resunet-instance": Case(
        "biapy", "ResUNet, linear up-sampling",
        lambda: _biapy("resunet", "ResUNet", normalization="in", upsample_layer="upsampling"), **FLAT, whole=True,
    ),
}  # fmt: skip
"""By name; those with norms over their whole input last."""


# --- networks and what they give ----------------------------------------------------------------------------------------------


def randomised(network: nn.Module, seed: int, gain: float = 1, outer: float = 1) -> nn.Module:
    """Weights under which values neither fade nor grow, and statistics that change values; float32, evaluation mode.

    Args:
        network: With whatever weights.
        seed: Of all that is drawn.
        gain, outer: As of `Case`.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if tensor.ndim > 1:
                fan = prod(tensor.shape[1:])
                tensor.normal_(0, gain * sqrt(2 / fan), generator=generator)
                if outer != 1:
                    tensor.mul_(profile(tuple(tensor.shape[2:]), outer))
            elif name.endswith("bias"):
                tensor.normal_(0, 0.1, generator=generator)
            else:
                tensor.uniform_(0.7, 1.3, generator=generator)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return network.float().eval().requires_grad_(False)


def profile(extents: tuple[int, ...], outer: float) -> Tensor:
    """What a kernel's weights are multiplied by: more at its faces, edges and corners; its mean square is 1."""
    shares = torch.ones(extents)
    for axis, extent in enumerate(extents):
        if extent > 2:
            along = torch.full((extent,), 1 / outer)
            along[0] = along[-1] = 1
            along *= sqrt(extent) / along.norm()
            shares = shares * along.view([extent if n == axis else 1 for n in range(len(extents))])
    return shares


def volume_of(extents: tuple[int, int, int], seed: int) -> np.ndarray:
    """Noise, uint8, (1, Z, Y, X)."""
    return np.random.default_rng(seed).integers(0, 256, (1, *extents), np.uint8)


def images_of(case: Case, volume: np.ndarray, dtype: torch.dtype = torch.float64) -> Tensor:
    """What the module is given: one image (1, C, Z, Y, X), or a batch of slices (Z, C, Y, X)."""
    legal = torch.from_numpy(case.legal(volume)).to(dtype) / 255
    return legal[None] if case.ndim == 3 else legal.transpose(0, 1)


def first(given: Any) -> Tensor:
    """Where there are several, the first is of the image's size."""
    return given if isinstance(given, Tensor) else first(next(iter(given)))


def whole_pass(case: Case, network: nn.Module, volume: np.ndarray) -> np.ndarray:
    """One pass of the module in its own type, over the volume: (K, Z, Y, X)."""
    images = images_of(case, volume, next(iter(network.parameters())).dtype)
    with torch.inference_mode():
        given = torch.cat([first(network(image[None])) for image in images])
    solid = given[0] if case.ndim == 3 else given.transpose(0, 1)
    z, y, x = volume.shape[1:]
    return solid[:, :z, :y, :x].numpy()


def gradient_reach(case: Case, network: nn.Module, volume: np.ndarray) -> list[list[int]]:
    """Voxels before and after a block of one stride in the middle that its gradient is not zero at; along z, y, x."""
    image = images_of(case, volume)[:1].requires_grad_()
    output = first(network(image))
    strides = [stride for stride in case.stride if stride]
    starts = [n // 2 // s * s for n, s in zip(output.shape[2:], strides, strict=True)]
    block = output[(slice(None), slice(None), *(slice(a, a + s) for a, s in zip(starts, strides, strict=True)))]
    generator = torch.Generator().manual_seed(0)
    (gradient,) = torch.autograd.grad((block * torch.rand(block.shape, generator=generator)).sum(), image)
    places = torch.nonzero(gradient[0].abs().sum(0)) - case.margin
    reach = [
        [start - int(places[:, axis].min()), int(places[:, axis].max()) + 1 - start - stride]
        for axis, (start, stride) in enumerate(zip(starts, strides, strict=True))
    ]
    return [[0, 0]] * (3 - case.ndim) + reach


def make(name: str, folder: Path) -> dict[str, Any]:
    """A network's files, and its entry of the manifest."""
    case, seed = CASES[name], SEED + list(CASES).index(name)
    torch.manual_seed(seed)
    network = randomised(case.build(), seed, case.gain, case.outer)
    large, small = volume_of(case.large, seed), volume_of(case.small, seed)
    example = images_of(case, large, torch.float32)[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(network, (example,), strict=False), folder / f"{name}.pt2")
    precise = network.double()
    np.savez(
        folder / f"{name}.npz",
        large=large,
        large_pass=whole_pass(case, precise, large),
        small=small,
        small_pass=whole_pass(case, precise, small),
    )
    known = ["torch"] if case.library is None else ["torch", case.library]
    return {
        "network": case.title,
        "library": case.library,
        "versions": {library: version(library).partition("+")[0] for library in known},
        "seed": seed,
        **({"gain": case.gain, "outer": case.outer} if (case.gain, case.outer) != (1, 1) else {}),
        "whole": case.whole,
        "stride": [stride or 1 for stride in case.stride],
        "gradient": None if case.whole else gradient_reach(case, precise, large),
    }


def main(arguments: Iterable[str]) -> None:
    """Make the networks that are named, or all, in a folder."""
    target, *names = arguments
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # sums in one order
    sys.modules["torchvision._meta_registrations"] = types.ModuleType(
        "meta"
    )  # of operations that it has only beside CUDA
    manifest = {}
    for name in names or CASES:
        manifest[name] = make(name, folder)
        print(name, manifest[name]["gradient"], flush=True)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
