"""jseg's networks in plain PyTorch: the same layers under the same names, for networks.py.

Written as one would write them there, from `torch.nn` and nothing else. A network returns its
logits and then its auxiliary logits, and has the loss that jseg trains it with.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 21
_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_VGG = (2, 2, 3, 3, 3)
_WIDTHS = (64, 128, 256, 512, 512)


class Twin(nn.Module):
  """A network of which `aux` holds the weights of the auxiliary losses."""

  aux: Sequence[float] = ()

  def loss(self, outputs: Sequence[Tensor], label: Tensor) -> Tensor:
    """The mean cross entropy of the logits, and of the auxiliary ones by their weights."""
    terms = zip((1.0, *self.aux), outputs, strict=True)
    return sum((w * F.cross_entropy(o, self.labels(label)) for w, o in terms), torch.zeros(()))

  def labels(self, label: Tensor) -> Tensor:
    """The labels that the logits are compared with."""
    return label


def cover(scores: Tensor, size: Sequence[int], stride: int = 0) -> Tensor:
  """Interpolates scores to the image; corners on corners of an image padded to stride n + 1."""
  if not stride:
    return F.interpolate(scores, tuple(size), mode="bilinear")
  padded = [n + (1 - n) % stride for n in size]
  whole = F.interpolate(scores, padded, mode="bilinear", align_corners=True)
  return whole[..., : size[0], : size[1]]


def pad_to_corners(x: Tensor, stride: int, value: float = 0) -> Tensor:
  """Pads below and to the right to stride n + 1 pixels."""
  height, width = x.shape[-2:]
  return F.pad(x, (0, (1 - width) % stride, 0, (1 - height) % stride), value=value)


class UNet(Twin):
  """U-Net, padded, with batch norm."""

  def __init__(
    self,
    widths: Sequence[int] = (64, 128, 256, 512, 1024),
    volume: bool = False,
    channels: int = 3,
    classes: int = CLASSES,
  ):
    super().__init__()
    self.volume = volume
    self.depth = len(widths) - 1
    self.convs, self.ups, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
    conv, norm, up = (
      (nn.Conv3d, nn.BatchNorm3d, nn.ConvTranspose3d)
      if volume
      else (nn.Conv2d, nn.BatchNorm2d, nn.ConvTranspose2d)
    )

    def twice(c: int, first: int, second: int) -> None:
      for before, after in ((c, first), (first, second)):
        self.convs.append(conv(before, after, 3, padding=1, bias=volume))
        self.norms.append(norm(after))

    c = channels
    for width in widths:
      twice(c, width // 2 if volume else width, width)
      c = width
    for width in widths[-2::-1]:
      self.ups.append(up(c, c if volume else width, 2, 2, bias=not volume))
      twice(c + width if volume else 2 * width, width, width)
      c = width
    self.classifier = conv(c, classes, 1)

  def forward(self, x: Tensor) -> list[Tensor]:
    """Logits."""
    pool = F.max_pool3d if self.volume else F.max_pool2d
    layers = iter(zip(self.convs, self.norms, strict=True))

    def twice(x: Tensor) -> Tensor:
      for _ in range(2):
        conv, norm = next(layers)
        x = F.relu(norm(conv(x)), inplace=True)
      return x

    skips = [x := twice(x)]
    for _ in range(self.depth):
      skips.append(x := twice(pool(x, 2)))
    skips.pop()
    for up in self.ups:
      x = twice(torch.cat([skips.pop(), up(x)], 1))
    return [self.classifier(x)]

  def ours(self, path: Sequence[str]) -> str:
    """Name here of a layer of jseg's, which Flax numbers."""
    kind, number = path[0].split("_")
    if kind == "Conv" and int(number) == len(self.convs):
      return "classifier"
    return {"Conv": "convs", "Norm": "norms", "UpConv": "ups"}[kind] + f".{number}"


class VGG16(nn.Module):
  """VGG16's convolutions, and fc6 and fc7 as convolutions."""

  def __init__(
    self,
    *,
    norm: bool = False,
    first_padding: int = 1,
    fc: tuple[int, ...] = (),
    dropout: float = 0.5,
  ):
    super().__init__()
    self.norm, self.dropout = norm, dropout
    c = 3
    for block, (layers, width) in enumerate(zip(_VGG, _WIDTHS, strict=True), 1):
      for layer in range(1, layers + 1):
        padding = first_padding if c == 3 else 1
        self.add_module(f"conv{block}_{layer}", nn.Conv2d(c, width, 3, padding=padding))
        if norm:
          self.add_module(f"norm{block}_{layer}", nn.BatchNorm2d(width))
        c = width
    if fc:
      self.fc6 = nn.Conv2d(c, fc[0], fc[1], padding=fc[2], dilation=fc[3])
      self.fc7 = nn.Conv2d(fc[0], fc[0], 1)

  def block(self, x: Tensor, block: int, rate: int = 1) -> Tensor:
    """The convolutions of a block."""
    for layer in range(1, _VGG[block - 1] + 1):
      conv = getattr(self, f"conv{block}_{layer}")
      padding = conv.padding if rate == 1 else rate
      x = F.conv2d(x, conv.weight, conv.bias, 1, padding, rate)
      x = getattr(self, f"norm{block}_{layer}")(x) if self.norm else x
      x = F.relu(x, inplace=True)
    return x

  def dense(self, x: Tensor) -> Tensor:
    """fc6 and fc7."""
    for layer in (self.fc6, self.fc7):
      x = F.dropout(F.relu(layer(x), inplace=True), self.dropout, self.training)
    return x


class SegNet(Twin):
  """SegNet."""

  def __init__(self) -> None:
    super().__init__()
    self.backbone = VGG16(norm=True)
    for block in range(5, 0, -1):
      for layer in range(_VGG[block - 1], 0, -1):
        before, after = _WIDTHS[block - 1], _WIDTHS[block - 1 if layer > 1 else block - 2]
        last = block == layer == 1
        self.add_module(
          f"conv{block}_{layer}_d", nn.Conv2d(before, CLASSES if last else after, 3, padding=1)
        )
        if not last:
          self.add_module(f"norm{block}_{layer}_d", nn.BatchNorm2d(after))

  def forward(self, x: Tensor) -> list[Tensor]:
    """Logits."""
    found = []
    for block in range(1, 6):
      x = self.backbone.block(x, block)
      size = x.shape[-2:]
      x, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
      found.append((indices, size))
    for block in range(5, 0, -1):
      indices, size = found.pop()
      x = F.max_unpool2d(x, indices, 2, output_size=size)
      for layer in range(_VGG[block - 1], 0, -1):
        x = getattr(self, f"conv{block}_{layer}_d")(x)
        if block > 1 or layer > 1:
          x = F.relu(getattr(self, f"norm{block}_{layer}_d")(x), inplace=True)
    return [x]


class FCN8s(Twin):
  """FCN-8s as published: 100 pixels of padding, an unpadded fc6 of 7 x 7."""

  def __init__(self) -> None:
    super().__init__()
    self.backbone = VGG16(first_padding=100, fc=(4096, 7, 0, 1))
    self.score_fr = nn.Conv2d(4096, CLASSES, 1)
    self.score_pool4, self.score_pool3 = nn.Conv2d(512, CLASSES, 1), nn.Conv2d(256, CLASSES, 1)
    up = [nn.ConvTranspose2d(CLASSES, CLASSES, 2 * s, s, bias=False) for s in (2, 2, 8)]
    self.upscore2, self.upscore_pool4, self.upscore8 = up

  def forward(self, x: Tensor) -> list[Tensor]:
    """Logits."""
    size = x.shape[-2:]
    pools = {}
    for block in range(1, 6):
      pools[block] = x = F.max_pool2d(self.backbone.block(x, block), 2, ceil_mode=True)
    up = self.upscore2(self.score_fr(self.backbone.dense(x)))
    for name, block, first, next_up in (
      ("score_pool4", 4, 5, self.upscore_pool4),
      ("score_pool3", 3, 9, self.upscore8),
    ):
      skip = getattr(self, name)(pools[block])
      skip = skip[..., first : first + up.shape[-2], first : first + up.shape[-1]]
      up = next_up(up + skip)
    return [up[..., 31 : 31 + size[0], 31 : 31 + size[1]].contiguous()]


class DeepLabV1(Twin):
  """DeepLab V1, LargeFOV."""

  def __init__(self, fc: int = 1024, dropout: float = 0.5, classes: int = CLASSES):
    super().__init__()
    self.backbone = VGG16(fc=(fc, 3, 12, 12), dropout=dropout)
    self.fc8 = nn.Conv2d(fc, classes, 1)

  def forward(self, x: Tensor) -> list[Tensor]:
    """Logits, in training at stride 8."""
    size = x.shape[-2:]
    x = pad_to_corners(x, 8)
    for block in range(1, 6):
      x = self.backbone.block(x, block, 2 if block == 5 else 1)
      x = F.max_pool2d(x, 3, 2 if block < 4 else 1, 1, ceil_mode=block < 4)
    x = self.fc8(self.backbone.dense(F.avg_pool2d(x, 3, 1, 1)))
    return [x if self.training else cover(x, size, 8)]

  def labels(self, label: Tensor) -> Tensor:
    """Every eighth label."""
    return pad_to_corners(label, 8, 255)[:, ::8, ::8]

  def loss(self, outputs: Sequence[Tensor], label: Tensor) -> Tensor:
    """The mean cross entropy of the pixels within the image."""
    return F.cross_entropy(outputs[0], self.labels(label), ignore_index=255)


class Bottleneck(nn.Module):
  """A bottleneck of ResNet."""

  def __init__(self, c: int, channels: int, stride: int, rate: int, stride_on: str):
    super().__init__()
    first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
    self.conv1 = nn.Conv2d(c, channels, 1, first, bias=False)
    self.conv2 = nn.Conv2d(channels, channels, 3, second, rate, rate, bias=False)
    self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
    self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
    self.norm3 = nn.BatchNorm2d(4 * channels)
    self.projects = c != 4 * channels or stride != 1
    if self.projects:
      self.conv_shortcut = nn.Conv2d(c, 4 * channels, 1, stride, bias=False)
      self.norm_shortcut = nn.BatchNorm2d(4 * channels)

  def forward(self, x: Tensor) -> Tensor:
    """Adds the branch to the shortcut."""
    y = F.relu(self.norm1(self.conv1(x)), inplace=True)
    y = F.relu(self.norm2(self.conv2(y)), inplace=True)
    y = self.norm3(self.conv3(y))
    if self.projects:
      x = self.norm_shortcut(self.conv_shortcut(x))
    return F.relu(y + x, inplace=True)


class ResNet(nn.Module):
  """Maps of ResNet's layers 1 to 4, with dilation from an output stride on."""

  def __init__(
    self,
    depth: int,
    *,
    output_stride: int = 32,
    multi_grid: Sequence[int] = (1,),
    keep_first_rate: bool = False,
    deep: bool = False,
    stride_on: str = "3x3",
    ceil: bool = False,
    frozen: bool = False,
  ):
    super().__init__()
    self.ceil, self.frozen, self.units = ceil, frozen, _DEPTHS[depth]
    stem = [(3, 64, 3, 2), (64, 64, 3, 1), (64, 128, 3, 1)] if deep else [(3, 64, 7, 2)]
    self.stem = len(stem)
    for i, (c, f, kernel, step) in enumerate(stem, 1):
      self.add_module(f"conv{i}", nn.Conv2d(c, f, kernel, step, kernel // 2, bias=False))
      self.add_module(f"norm{i}", nn.BatchNorm2d(f))
    stride, rate, c = 4, 1, stem[-1][1]
    for layer, count in enumerate(self.units, 1):
      step, first_rate = (1 if layer == 1 else 2), rate
      if stride * step > output_stride:
        step, rate = 1, rate * step
      stride *= step
      for unit in range(count):
        grid = multi_grid[min(unit, len(multi_grid) - 1)] if layer == 4 else 1
        unit_rate = first_rate if keep_first_rate and unit == 0 else rate * grid
        channels = 64 * 2 ** (layer - 1)
        block = Bottleneck(c, channels, step if unit == 0 else 1, unit_rate, stride_on)
        self.add_module(f"layer{layer}_{unit}", block)
        c = 4 * channels
    if frozen:
      for module in self.modules():
        if isinstance(module, nn.BatchNorm2d):
          module.requires_grad_(False)

  def train(self, mode: bool = True) -> "ResNet":
    """Frozen norms use the running statistics in training too."""
    return super().train(mode and not self.frozen)

  def forward(self, x: Tensor) -> list[Tensor]:
    """The maps, finest first."""
    for i in range(1, self.stem + 1):
      x = F.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)), inplace=True)
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=self.ceil)
    maps = []
    for layer, count in enumerate(self.units, 1):
      for unit in range(count):
        x = getattr(self, f"layer{layer}_{unit}")(x)
      maps.append(x)
    return maps


class FCNHead(nn.Module):
  """3x3 to fewer channels, norm, ReLU, dropout, 1x1."""

  def __init__(self, c: int, f: int, dropout: float):
    super().__init__()
    self.conv, self.norm = nn.Conv2d(c, f, 3, padding=1, bias=False), nn.BatchNorm2d(f)
    self.classifier, self.dropout = nn.Conv2d(f, CLASSES, 1), dropout

  def forward(self, x: Tensor) -> Tensor:
    """Scores."""
    x = F.relu(self.norm(self.conv(x)), inplace=True)
    return self.classifier(F.dropout(x, self.dropout, self.training))


class DeepLabV2(Twin):
  """DeepLab V2: three scales, frozen statistics."""

  aux = (1.0, 1.0, 1.0)

  def __init__(self) -> None:
    super().__init__()
    self.backbone = ResNet(101, output_stride=8, stride_on="1x1", ceil=True, frozen=True)
    for i, rate in enumerate((6, 12, 18, 24), 1):
      self.add_module(f"fc8_{i}", nn.Conv2d(2048, CLASSES, 3, padding=rate, dilation=rate))

  def forward(self, x: Tensor) -> list[Tensor]:
    """Logits, and in training those of each scale."""
    size = x.shape[-2:]
    shapes = [tuple(int(n * s) for n in size) for s in (1.0, 0.75, 0.5)]
    every = []
    for shape in shapes:
      y = self.backbone(F.interpolate(x, shape, mode="bilinear"))[3]
      every.append(sum((getattr(self, f"fc8_{i}")(y) for i in range(2, 5)), self.fc8_1(y)))
    fused = torch.stack([cover(y, every[0].shape[-2:]) for y in every]).max(0)[0]
    return [cover(y, size) for y in ([fused, *every] if self.training else [fused])]


class ASPP(nn.Module):
  """Atrous spatial pyramid pooling with the image's mean."""

  def __init__(self, rates: Sequence[int], f: int = 256):
    super().__init__()
    kernels = {"conv0": (1, 1), "image": (1, 1)}
    kernels |= {f"conv{i}": (3, rate) for i, rate in enumerate(rates, 1)}
    for name, (kernel, rate) in kernels.items():
      conv = nn.Conv2d(2048, f, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False)
      self.add_module(name, conv)
      self.add_module(f"{name}_norm", nn.BatchNorm2d(f))
    self.project = nn.Conv2d(f * len(kernels), f, 1, bias=False)
    self.project_norm = nn.BatchNorm2d(f)
    self.names = ["conv0", *[f"conv{i}" for i, _ in enumerate(rates, 1)], "image"]

  def forward(self, x: Tensor) -> Tensor:
    """The pyramid."""
    branches = []
    for name in self.names:
      y = F.adaptive_avg_pool2d(x, 1) if name == "image" else x
      y = F.relu(getattr(self, f"{name}_norm")(getattr(self, name)(y)), inplace=True)
      branches.append(y.expand(-1, -1, *x.shape[-2:]))
    return F.relu(self.project_norm(self.project(torch.cat(branches, 1))), inplace=True)


class DeepLabV3(Twin):
  """DeepLab V3 at stride 16 with multi-grid, on ResNet-50."""

  def __init__(self) -> None:
    super().__init__()
    self.backbone = ResNet(50, output_stride=16, multi_grid=(1, 2, 4))
    self.aspp = ASPP((6, 12, 18))
    self.classifier = nn.Conv2d(256, CLASSES, 1)

  def forward(self, x: Tensor) -> list[Tensor]:
    """Logits."""
    return [cover(self.classifier(self.aspp(self.backbone(x)[3])), x.shape[-2:])]


class FCNResNet(Twin):
  """FCN on ResNet-50, as in torchvision."""

  def __init__(self) -> None:
    super().__init__()
    self.backbone = ResNet(50, output_stride=8, keep_first_rate=True)
    self.head = FCNHead(2048, 512, 0.1)

  def forward(self, x: Tensor) -> list[Tensor]:
    """Logits."""
    return [cover(self.head(self.backbone(x)[3]), x.shape[-2:])]


class PyramidPooling(nn.Module):
  """Averages over coarse bins beside the map."""

  def __init__(self, c: int, bins: Sequence[int]):
    super().__init__()
    self.bins = bins
    for n in bins:
      self.add_module(f"level{n}", nn.Conv2d(c, c // len(bins), 1, bias=False))
      self.add_module(f"level{n}_norm", nn.BatchNorm2d(c // len(bins)))

  def forward(self, x: Tensor) -> Tensor:
    """The pyramid."""
    levels = [x]
    for n in self.bins:
      y = getattr(self, f"level{n}")(F.adaptive_avg_pool2d(x, n))
      y = F.relu(getattr(self, f"level{n}_norm")(y), inplace=True)
      levels.append(F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=True))
    return torch.cat(levels, 1)


class PSPNet(Twin):
  """PSPNet on ResNet-50 with the deep stem."""

  aux = (0.4,)

  def __init__(self, dropout: float = 0.1):
    super().__init__()
    self.backbone = ResNet(50, output_stride=8, deep=True)
    self.pyramid = PyramidPooling(2048, (1, 2, 3, 6))
    self.head, self.aux_head = FCNHead(4096, 512, dropout), FCNHead(1024, 256, dropout)

  def forward(self, x: Tensor) -> list[Tensor]:
    """Logits, and in training the auxiliary ones."""
    maps = self.backbone(pad_to_corners(x, 8))
    scores = [self.head(self.pyramid(maps[3]))]
    if self.training:
      scores.append(self.aux_head(maps[2]))
    return [cover(y, x.shape[-2:], 8) for y in scores]

  def ours(self, path: Sequence[str]) -> str:
    """Name here of a layer of jseg's; `aux` is taken."""
    return ".".join(["aux_head" if name == "aux" else name for name in path])


class RefineNet(Twin):
  """RefineNet on ResNet-101, four blocks, chains of four."""

  def __init__(self) -> None:
    super().__init__()
    self.backbone = ResNet(101, frozen=True)
    carried = 0
    for block, (layer, c) in enumerate({4: 2048, 3: 1024, 2: 512, 1: 256}.items()):
      f = 512 if block == 0 else 256
      self._conv(f"layer{layer}_reduce", c, f)
      self._units(f"layer{layer}_unit", f, 2)
      if block:
        self._conv(f"carry{block}_fuse", carried, f)
        self._conv(f"layer{layer}_fuse", f, f)
      for i in range(4):
        self._conv(f"chain{block}_{i}", f, f)
      self._units(f"out{block}", f, 3)
      carried = f
    self._conv("classifier", carried, CLASSES, bias=True)

  def _conv(self, name: str, c: int, f: int, bias: bool = False) -> None:
    self.add_module(name, nn.Conv2d(c, f, 3, padding=1, bias=bias))

  def _units(self, name: str, c: int, count: int) -> None:
    for i in range(count):
      self._conv(f"{name}_{i}_1", c, c, bias=True)
      self._conv(f"{name}_{i}_2", c, c)

  def _apply_units(self, x: Tensor, name: str, count: int) -> Tensor:
    for i in range(count):
      y = F.relu(getattr(self, f"{name}_{i}_1")(F.relu(x)), inplace=True)
      x = x + getattr(self, f"{name}_{i}_2")(y)
    return x

  def forward(self, x: Tensor) -> list[Tensor]:
    """Logits."""
    size = x.shape[-2:]
    maps = self.backbone(x)
    for block, layer in enumerate((4, 3, 2, 1)):
      y = maps[layer - 1]
      y = F.dropout(y, 0.5, self.training) if layer > 2 else y
      y = self._apply_units(getattr(self, f"layer{layer}_reduce")(y), f"layer{layer}_unit", 2)
      if block:
        y = getattr(self, f"layer{layer}_fuse")(y)
        low = getattr(self, f"carry{block}_fuse")(x)
        y = y + F.interpolate(low, y.shape[-2:], mode="bilinear", align_corners=True)
      y = top = F.relu(y)
      for i in range(4):
        top = getattr(self, f"chain{block}_{i}")(F.max_pool2d(top, 5, 1, 2))
        y = y + top
      x = self._apply_units(y, f"out{block}", 3)
    return [cover(self.classifier(F.dropout(x, 0.5, self.training)), size)]


def volume_unet(
  widths: Sequence[int] = (64, 128, 256, 512), channels: int = 1, classes: int = CLASSES
) -> UNet:
  """The 3D U-Net."""
  return UNet(widths, volume=True, channels=channels, classes=classes)


TWINS: dict[str, Callable[..., Twin]] = {
  "unet": UNet,
  "unet3d": volume_unet,
  "segnet": SegNet,
  "fcn8s": FCN8s,
  "deeplab_v1": DeepLabV1,
  "deeplab_v2": DeepLabV2,
  "deeplab_v3": DeepLabV3,
  "fcn_resnet": FCNResNet,
  "pspnet": PSPNet,
  "refinenet": RefineNet,
}
"""By jseg's names."""

_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


def place(twin: Twin, path: Sequence[str]) -> str:
  """Name of the twin's parameter, or running statistic, that an array of jseg's network is."""
  rename: Any = getattr(twin, "ours", ".".join)
  *layer, leaf = path
  return f"{rename(layer)}.{_LEAVES[leaf]}"


@torch.no_grad()
def load(twin: Twin, arrays: Mapping[tuple[str, ...], np.ndarray]) -> None:
  """Copies weights and statistics of jseg's network, by their paths."""
  tensors = dict(twin.named_parameters()) | dict(twin.named_buffers())
  left = {name for name in tensors if not name.endswith("num_batches_tracked")}
  for path, array in arrays.items():
    name = place(twin, path)
    layer = twin.get_submodule(name.rpartition(".")[0])
    transposed = isinstance(layer, (nn.ConvTranspose2d, nn.ConvTranspose3d))
    if array.ndim > 1:
      first = (-2, -1) if transposed else (-1, -2)
      array = np.moveaxis(array, first, (0, 1))
    tensors[name].copy_(torch.from_numpy(np.array(array)))
    left.remove(name)
  assert not left, f"no weights for {sorted(left)}"
