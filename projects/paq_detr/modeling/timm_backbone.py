# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Any network of timm as a Detectron2 backbone. It needs timm: modeling/backbone.py imports it when it is asked for.

The network keeps timm's own names below ``backbone.body``, those of timm's classification files.
"""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Mapping, Sequence
from math import gcd

import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from timm.layers import BatchNormAct2d, GroupNormAct, freeze_batch_norm_2d
from timm.models import SwinTransformer, group_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_range
from ..errors import UserError
from .frozen_norm import TIMM_NORM, freeze_statistics, replace_modules
from .simple_feature_pyramid import SimpleFeaturePyramid

logger = logging.getLogger(__name__)

USUAL_STRIDES = (8, 16, 32)


class TimmBackbone(Backbone):
    """Feature maps of a timm network, named ``stride8``, ``stride16``, ..., with ceil(side / stride) rows and columns.

    Images are padded by zeros to what the network can take, and the maps are cut to the size above, so that positions
    do not depend on the size of the batch ("same" padding is then always on the same side).

    Swin's maps pass a layer norm each, as in the detectors that use it; the next stage gets the map without it
    (Swin Transformer's code for detection). The one map of a plain ViT becomes several in a simple feature pyramid.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        out_indices: Sequence[int] = (),
        pyramid_scales: Sequence[float] = (2.0, 1.0, 0.5),
        pyramid_width: int = 256,
    ):
        """
        Args:
            body: a network of timm, of any image size; its head and what lies behind the last map are cut off.
            out_indices: which of the network's maps; none: those of stride 8, 16 and 32, of a ViT the last.
            pyramid_scales, pyramid_width: of a ViT's maps relative to its own, and their channels.
        """
        super().__init__()
        infos = list(body.feature_info)
        plain = len({info["reduction"] for info in infos}) == 1
        indices = list(out_indices) or _usual_indices(infos, plain)
        _check_indices(indices, infos, plain)
        body.prune_intermediate_layers(indices, prune_norm=not plain, prune_head=True)
        self.body, self.indices, self.uses_norm = body, indices, plain
        strides = [infos[i]["reduction"] for i in indices]
        channels = [infos[i]["num_chs"] for i in indices]
        is_swin = isinstance(body, SwinTransformer)
        self.output_norms = nn.ModuleDict({str(i): nn.LayerNorm(c) for i, c in zip(indices, channels) if is_swin})
        self.pyramid = SimpleFeaturePyramid(channels[0], pyramid_width, pyramid_scales) if plain else None
        if plain:
            strides = [_divide(strides[0], scale) for scale in pyramid_scales]
            channels = [pyramid_width] * len(strides)
        self._shapes = {f"stride{s}": ShapeSpec(channels=c, stride=s) for s, c in zip(strides, channels)}
        # Swin pads what does not fill a window or a pair itself, as its authors' code does.
        self._divisor = body.patch_embed.patch_size[0] if is_swin else max(strides)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (B, 3, H, W)

        Returns:
            (B, C_i, ceil(H / stride_i), ceil(W / stride_i)) by name, finest first.
        """
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self._divisor, 0, -height % self._divisor))
        maps = self.body.forward_intermediates(
            padded, indices=self.indices, norm=self.uses_norm, stop_early=True, intermediates_only=True
        )
        if self.output_norms:
            norms = (self.output_norms[str(i)] for i in self.indices)
            maps = [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in zip(norms, maps)]
        if self.pyramid is not None:
            maps = self.pyramid(maps[0])
        return {
            name: x[..., : -(-height // spec.stride), : -(-width // spec.stride)]
            for (name, spec), x in zip(self._shapes.items(), maps)
        }

    def layer_ids(self) -> tuple[dict[str, int], int]:
        """Parameters of ``body`` by their names here and the number of their layer, and the number of layers.

        Layer 0 is the stem (patch and position embedding), the blocks are 1, 2, ... as timm groups them.

        Raises:
            UserError: timm does not tell the network's layers.
        """
        ids = _groups(self.body, "SOLVER.LAYER_DECAY", coarse=False)
        return {f"body.{name}": layer for name, layer in ids.items()}, max(ids.values())

    def from_classifier(self, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]] | None:
        """A classification file of this network under the names here, and what of it has no place (its head).

        timm's own reading also understands the files of many networks' authors, and resizes position tables. None
        where less than half of the network is in it: then it is another file.
        """
        read = getattr(sys.modules[type(self.body).__module__], "checkpoint_filter_fn", None)
        if read is not None:
            try:
                weights = read(dict(weights), self.body)
            except Exception:  # it expects files of this network and fails on others in any way
                return None
        own = self.body.state_dict()
        known = {f"body.{name}": tensor for name, tensor in weights.items() if name in own}
        if 2 * len(known) < len(own):
            return None
        return known, [name for name in weights if name not in own]


def _usual_indices(infos: Sequence[dict], plain: bool) -> list[int]:
    if plain:
        return [len(infos) - 1]
    last = {info["reduction"]: i for i, info in enumerate(infos)}
    return [last[stride] for stride in USUAL_STRIDES if stride in last]


def _check_indices(indices: Sequence[int], infos: Sequence[dict], plain: bool) -> None:
    strides = [info["reduction"] for info in infos]
    shown = ", ".join(f"{i} (stride {stride})" for i, stride in enumerate(strides))
    if not all(0 <= i < len(strides) for i in indices) or not indices:
        raise UserError(f"MODEL.TIMM.OUT_INDICES is {list(indices)}; the network's maps are {shown}")
    if plain and len(indices) > 1:
        raise UserError(
            f"MODEL.TIMM.OUT_INDICES is {list(indices)}, but all its maps have stride {strides[0]}: name one"
        )
    chosen = [strides[i] for i in indices]
    if sorted(set(chosen)) != chosen:
        raise UserError(f"MODEL.TIMM.OUT_INDICES is {list(indices)}, must have ascending strides, out of {shown}")


def _divide(stride: int, scale: float) -> int:
    if not (stride / scale).is_integer():
        raise UserError(f"MODEL.TIMM.PYRAMID_SCALES has {scale:g}, which makes no whole stride of the ViT's {stride}")
    return int(stride / scale)


def build_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """The network of ``MODEL.TIMM``.

    Raises:
        UserError: no such network, one that cannot be a backbone, or keys that it has no use for; naming the key.
    """
    T = cfg.MODEL.TIMM
    TIMM_NORM(T.NORM)
    pretrained = T.PRETRAINED and not cfg.MODEL.WEIGHTS  # a trained model needs no network
    check_range("MODEL.TIMM.DROP_PATH", T.DROP_PATH, "[0, 1)")
    body = _create(T.NAME, pretrained, T.DROP_PATH, input_shape.channels)
    if pretrained:
        _check_statistics(cfg, body)
    backbone = TimmBackbone(
        body,
        out_indices=T.OUT_INDICES,
        pyramid_scales=T.PYRAMID_SCALES,
        pyramid_width=cfg.MODEL.DETR.HIDDEN_DIM,
    )
    _check_any_size(T.NAME, backbone, input_shape.channels)
    if T.CHECKPOINT:
        body.set_grad_checkpointing(True)
    if T.NORM:
        _replace_norms(T.NAME, body, T.NORM)
    if check_range("MODEL.TIMM.FREEZE_AT", T.FREEZE_AT, "[0, inf)"):
        freeze_first(body, T.FREEZE_AT)
    return backbone


def _create(name: str, pretrained: bool, drop_path: float, channels: int) -> nn.Module:
    """timm's network of any image size, as far as it can be one."""
    if not timm.is_model(name):
        known = timm.list_models()
        close = difflib.get_close_matches(name, known, n=2) or [n for n in known if n.startswith(name[:4])][:2]
        hint = f"perhaps {' or '.join(close)} is meant" if close else "timm.list_models() lists them"
        raise UserError(f'MODEL.TIMM.NAME is "{name}", which timm {timm.__version__} does not have; {hint}')
    options = {"strict_img_size": False, "dynamic_img_size": True, "drop_path_rate": drop_path, "in_chans": channels}
    while True:
        try:
            body = timm.create_model(name, pretrained=pretrained, **options)
            break
        except TypeError as error:  # each family of networks takes other options
            refused = [option for option in options if f"'{option}'" in str(error)]
            if not refused:
                raise
            for option in refused:
                del options[option]
        except Exception as error:  # the hub's libraries raise what they like
            if not pretrained:
                raise
            raise UserError(
                f"MODEL.TIMM.PRETRAINED: the weights of {name} could not be fetched ({_line(error)}); download them "
                "elsewhere and name the file in MODEL.WEIGHTS, with MODEL.TIMM.PRETRAINED False"
            ) from error
    if drop_path and "drop_path_rate" not in options:
        raise UserError(f"MODEL.TIMM.DROP_PATH is {drop_path}, but {name} has no drop path")
    lacking = [attribute for attribute in ("feature_info", "forward_intermediates") if not hasattr(body, attribute)]
    if lacking:
        raise UserError(f"MODEL.TIMM.NAME {name} gives no feature maps: it has no {lacking[0]}")
    return body


def _check_any_size(name: str, backbone: TimmBackbone, channels: int) -> None:
    """Run the network on shapes alone, for an image whose sides no stride divides."""
    tensors = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    shapes = {key: tensor.detach().to("meta") for key, tensor in tensors.items()}
    height, width = 321, 259
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            image = torch.zeros(1, channels, height, width, device="meta")
            maps = torch.func.functional_call(backbone, shapes, (image,))
    except Exception as error:  # networks of a fixed size fail in many ways
        raise UserError(f"MODEL.TIMM.NAME {name} cannot take images of any size: {_line(error)}") from error
    backbone.train(training)
    for key, spec in backbone.output_shape().items():
        expected = (1, spec.channels, -(-height // spec.stride), -(-width // spec.stride))
        if tuple(maps[key].shape) != expected:
            raise UserError(
                f"MODEL.TIMM.NAME {name} cannot be a backbone: its map {key} of an image of {height} x {width} pixels "
                f"is {tuple(maps[key].shape)}, must be {expected}"
            )


def _check_statistics(cfg, body: nn.Module) -> None:
    for key, mine, trained in (
        ("MODEL.PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, body.pretrained_cfg["mean"]),
        ("MODEL.PIXEL_STD", cfg.MODEL.PIXEL_STD, body.pretrained_cfg["std"]),
    ):
        expected = [round(255 * value, 3) for value in trained]
        if any(abs(a - b) > 1 for a, b in zip(mine, expected)):
            logger.warning("%s is %s, but timm trained %s with %s", key, list(mine), cfg.MODEL.TIMM.NAME, expected)


def _replace_norms(name: str, body: nn.Module, norm: str) -> None:
    if not any(isinstance(module, nn.BatchNorm2d) for module in body.modules()):
        raise UserError(f"MODEL.TIMM.NORM is {norm}, but {name} has no batch norms; leave it empty")
    make = {"FrozenBN": freeze_batch_norm_2d, "FrozenStatsBN": _freeze_statistics, "GN": _group_norm}[norm]
    replace_modules(body, nn.BatchNorm2d, make)


class FrozenStatsBatchNormAct2d(BatchNormAct2d):
    """As ``FrozenStatsBatchNorm2d``, with timm's activation in it."""

    def train(self, mode: bool = True) -> FrozenStatsBatchNormAct2d:
        return super().train(False)


def _freeze_statistics(norm: nn.BatchNorm2d) -> nn.Module:
    if not isinstance(norm, BatchNormAct2d):
        return freeze_statistics(norm)
    frozen = FrozenStatsBatchNormAct2d(norm.num_features, norm.eps, norm.momentum)
    frozen.load_state_dict(norm.state_dict())
    frozen.drop, frozen.act = norm.drop, norm.act
    return frozen.train(False)


def _group_norm(norm: nn.BatchNorm2d) -> nn.Module:
    groups = gcd(32, norm.num_features)
    if not isinstance(norm, BatchNormAct2d):
        return nn.GroupNorm(groups, norm.num_features)
    new = GroupNormAct(norm.num_features, num_groups=groups)
    new.drop, new.act = norm.drop, norm.act
    return new


def freeze_first(body: nn.Module, count: int) -> None:
    """No gradients in the stem and the first ``count - 1`` stages, whose batch norms also keep their statistics."""
    groups = _groups(body, "MODEL.TIMM.FREEZE_AT", coarse=True)
    for name, parameter in body.named_parameters():
        if groups[name] < count:
            parameter.requires_grad_(False)
    for name, module in list(body.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and groups.get(f"{name}.weight", count) < count:
            body.set_submodule(name, freeze_batch_norm_2d(module))


def _groups(body: nn.Module, key: str, coarse: bool) -> dict[str, int]:
    """Names of parameters and the number of their stage (block, where not ``coarse``), the stem's is 0."""
    if not hasattr(body, "group_matcher"):
        raise UserError(f"{key} is set, but timm does not tell the layers of {type(body).__name__}")
    return group_parameters(body, body.group_matcher(coarse=coarse), reverse=True)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split(chr(10))[0].split())[:200]}"
