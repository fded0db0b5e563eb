"""Mask R-CNN (He et al. 2017, arXiv:1703.06870) with a feature pyramid, as in torchvision."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jseg.backbones import ResNet
from jseg.backbones.resnet import check_resnet
from jseg.nn import (
  AXIS,
  FPN,
  Conv,
  ConvTranspose,
  Norm,
  anchors,
  check_norm,
  clip_boxes,
  crop_masks,
  decode_boxes,
  encode_boxes,
  in_crowd,
  is_split,
  match,
  nms,
  resize_bilinear,
  roi_align,
  roi_pool,
  sample,
)
from jseg.types import Array, Detections, InputError, InstanceOutputs, Targets

_STRIDES = (4, 8, 16, 32)  # of the levels that regions are pooled from
_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of box differences of regions


class MaskRCNN(nn.Module):
  """[b h w c] -> Detections, or InstanceOutputs in training, for any h and w.

  A region proposal network slides over all levels of the pyramid; of the proposals, the box head
  says what they are and where exactly, and the mask head which pixels of the box belong to them, by
  a sigmoid for each class. All shapes are static: what there may be fewer of comes with a mask of
  what is valid, so that memory and time do not depend on the number of objects.

  The defaults are torchvision's `maskrcnn_resnet50_fpn`, and with `**MaskRCNN.V2` its
  `maskrcnn_resnet50_fpn_v2`; `masks=False, keypoints=17` is its `keypointrcnn_resnet50_fpn`.

  Attributes:
    num_classes: k, with the background, which is class 0.
    depth: of the ResNet, 18 to 152.
    width: factor of the ResNet's channel counts, for small machines.
    norm: kind of normalisation in the ResNet (`jseg.nn.Norm`).
    head_norm: the same in the pyramid and the heads; "none" gives convolutions a bias.
    channels: of the pyramid, and of the convolutions of all heads.
    dense: channels of the box head's fully connected layers.
    rpn_convs: 3x3 convolutions of the proposal network.
    box_convs: 3x3 convolutions of the box head.
    box_dense: fully connected layers of the box head.
    masks: whether there is a mask head.
    mask_convs: 3x3 convolutions of the mask head.
    keypoints: how many the keypoint head looks for (section 5); 0: there is none. It is for
      inference with weights trained elsewhere.
    keypoint_convs: 3x3 convolutions of the keypoint head.
    keypoint_channels: their channels.
    anchor_sizes: edges of the anchors of the five levels, in pixels.
    anchor_ratios: their heights over their widths.
    roi: "align", or "pool", which rounds regions to whole cells.
    aligned: see `jseg.nn.roi_align`.
    proposals: regions an image, after suppression; (in training, in inference).
    candidates: proposals of each level before it; (in training, in inference).
    proposal_nms: IoU above which a proposal is suppressed by a better one.
    anchor_samples: anchors an image that are trained on, half of them matches at most.
    samples: regions an image that are trained on.
    positives: share of them that are matches, at most.
    min_score: detections below it are left out.
    detection_nms: IoU above which a detection is suppressed by a better one of its class.
    detections: how many there are in an image at most.
    dtype: type of the computation; boxes, logits and masks are float32.
    param_dtype: type of the parameters.
  """

  TINY: ClassVar[dict[str, Any]] = {
    "depth": 18,
    "width": 0.125,
    "norm": "group",
    "channels": 8,
    "dense": 16,
    "mask_convs": 1,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "proposals": (32, 16),
    "candidates": (32, 16),
    "anchor_samples": 32,
    "samples": 16,
    "detections": 8,
  }
  V2: ClassVar[dict[str, Any]] = {
    "norm": "batch",
    "head_norm": "batch",
    "rpn_convs": 2,
    "box_convs": 4,
    "box_dense": 1,
  }
  task: ClassVar[str] = "instance"

  num_classes: int
  depth: int = 50
  width: float = 1.0
  norm: str = "frozen_batch"
  head_norm: str = "none"
  channels: int = 256
  dense: int = 1024
  rpn_convs: int = 1
  box_convs: int = 0
  box_dense: int = 2
  masks: bool = True
  mask_convs: int = 4
  keypoints: int = 0
  keypoint_convs: int = 8
  keypoint_channels: int = 512
  anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512)
  anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0)
  roi: str = "align"
  aligned: bool = False
  proposals: Sequence[int] = (2000, 1000)
  candidates: Sequence[int] = (2000, 1000)
  proposal_nms: float = 0.7
  anchor_samples: int = 256
  samples: int = 512
  positives: float = 0.25
  min_score: float = 0.05
  detection_nms: float = 0.5
  detections: int = 100
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    check_resnet(self.depth, self.width)
    check_norm(self.norm)
    check_norm(self.head_norm)
    if self.roi not in ("align", "pool"):
      raise InputError(f"roi: {self.roi!r} is unknown; choose from align, pool")
    if len(self.anchor_sizes) != 5 or min(self.anchor_sizes) <= 0:
      raise InputError(f"anchor_sizes: {self.anchor_sizes} must be 5 edges above 0, one a level")
    if not self.anchor_ratios or min(self.anchor_ratios) <= 0:
      raise InputError(f"anchor_ratios: {self.anchor_ratios} must be one or more, above 0")
    for key in ("proposals", "candidates"):
      value = getattr(self, key)
      if len(value) != 2 or min(value) < 1:
        raise InputError(f"{key}: {value} must be two numbers, in training and in inference")
    for key, least in (
      *(("channels", 1), ("dense", 1), ("rpn_convs", 1), ("box_convs", 0), ("box_dense", 1)),
      *(("mask_convs", 0), ("keypoints", 0), ("keypoint_convs", 0), ("keypoint_channels", 1)),
      *(("anchor_samples", 2), ("samples", 1), ("detections", 1)),
    ):
      if (value := getattr(self, key)) < least:
        raise InputError(f"{key}: {value} must be at least {least}")
    for key in ("proposal_nms", "positives", "min_score", "detection_nms"):
      if not 0 <= (value := getattr(self, key)) <= 1:
        raise InputError(f"{key}: {value} must be 0 to 1")
    if self.samples * self.positives < 1:
      raise InputError(
        f"positives: {self.positives} of {self.samples} samples is less than one; raise either"
      )
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    image: Array,
    *,
    size: Array | None = None,
    train: bool = False,
    targets: Targets | None = None,
  ) -> Detections | InstanceOutputs:
    """Finds the objects in normalised images.

    Args:
      image: [b h w c].
      size: int [b 2], the upper left part of the canvas that the image covers; None: all of it.
      train: whether to return what the losses need. The key "sample" draws what is trained on.
      targets: the objects, for training.
    """
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    b, height, width, _ = image.shape
    if size is None:
      size = jnp.tile(jnp.array([[height, width]]), (b, 1))
    rows = jnp.arange(height)[None] < size[:, :1]
    columns = jnp.arange(width)[None] < size[:, 1:]
    inside = rows[:, :, None] & columns[:, None]
    x = jnp.where(inside[..., None], image, 0)
    # Every level is twice as large as the next, as the pyramid wants it.
    x = jnp.pad(x, [(0, 0), (0, -height % 32), (0, -width % 32), (0, 0)])
    canvas = x.shape[1:3]

    backbone = ResNet(self.depth, norm=self.norm, width=self.width, name="backbone", **types)
    fpn = FPN(self.channels, self.head_norm, name="fpn", **types)
    levels = fpn(backbone(x, train=train), train=train)
    rpn = ProposalHead(self.channels, len(self.anchor_ratios), self.rpn_convs, name="rpn", **types)
    scores, deltas = zip(*(rpn(level) for level in levels), strict=True)
    boxes = [
      a.reshape(-1, 4)
      for a in anchors(
        canvas,
        [level.shape[1:3] for level in levels],
        [(edge,) for edge in self.anchor_sizes],
        self.anchor_ratios,
      )
    ]
    propose = functools.partial(self._propose, boxes, train=train)
    regions, valid = jax.vmap(propose)(*jax.lax.stop_gradient((scores, deltas)), size)
    box_head = BoxHead(
      *(self.num_classes, self.channels, self.dense, self.box_convs, self.box_dense),
      norm=self.head_norm,
      name="box_head",
      **types,
    )
    mask_head = MaskHead(
      *(self.num_classes, self.channels, self.mask_convs),
      norm=self.head_norm,
      name="mask_head",
      **types,
    )
    if not train:
      class_logits, region_deltas = box_head(self._pool(levels, regions, 7), train=False)
      found = jax.vmap(self._detect)(
        class_logits.reshape(b, -1, self.num_classes),
        region_deltas.reshape(b, -1, self.num_classes, 4),
        *(regions, valid, size),
      )
      pooled = self._pool(levels, found[0], 14)
      masks = points = None
      if self.masks:
        masks = nn.sigmoid(mask_head(pooled, found[2].reshape(-1), train=False))
        masks = jnp.where(found[3][..., None, None], masks.reshape(b, -1, *masks.shape[1:]), 0)
      if self.keypoints:
        points = KeypointHead(
          *(self.keypoints, self.keypoint_channels, self.keypoint_convs),
          name="keypoint_head",
          **types,
        )(pooled)
        points = points.reshape(b, -1, *points.shape[1:])
      return Detections(*found[:3], masks, found[3], points)

    if self.keypoints or not self.masks:
      raise InputError("only masks are trained here; leave masks=True and keypoints=0")
    if targets is None:
      raise InputError("targets are missing; give them to train a network of instances")
    # By the place in the global batch, so that the number of devices changes nothing.
    place = jnp.arange(b) + (b * jax.lax.axis_index(AXIS) if is_split() else 0)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self.make_rng("sample"), place)
    rpn_targets = jax.vmap(functools.partial(self._anchor_targets, np.concatenate(boxes)))(
      keys, targets, size
    )
    chosen = jax.vmap(self._region_targets)(keys, regions, valid, targets)
    class_logits, region_deltas = box_head(self._pool(levels, chosen["boxes"], 7), train=True)
    truth = jax.nn.one_hot(chosen["classes"].reshape(-1), self.num_classes)
    region_deltas = region_deltas.reshape(-1, self.num_classes, 4)
    region_deltas = jnp.einsum("rk,rkd->rd", truth, region_deltas)
    mask_logits = mask_head(
      self._pool(levels, chosen["mask_boxes"], 14), chosen["mask_classes"].reshape(-1), train=True
    )
    return InstanceOutputs(
      rpn_logits=jnp.concatenate(scores, 1),
      rpn_deltas=jnp.concatenate(deltas, 1),
      **rpn_targets,
      class_logits=class_logits.reshape(b, -1, self.num_classes),
      deltas=region_deltas.reshape(b, -1, 4),
      **{key: chosen[key] for key in ("classes", "targets", "sampled", "masks", "mask_valid")},
      mask_logits=mask_logits.reshape(b, -1, *mask_logits.shape[1:]),
    )

  def _pool(self, levels: Sequence[Array], boxes: Array, size: int) -> Array:
    """[b n 4] -> [b*n size size c]."""
    align = functools.partial(roi_align, aligned=self.aligned)
    pool = align if self.roi == "align" else roi_pool
    pool = functools.partial(pool, size=size, strides=_STRIDES)
    pooled = jax.vmap(pool)(tuple(levels[: len(_STRIDES)]), boxes)
    return pooled.reshape(-1, *pooled.shape[2:])

  def _propose(
    self,
    boxes: Sequence[np.ndarray],
    scores: Sequence[Array],
    deltas: Sequence[Array],
    size: Array,
    *,
    train: bool,
  ) -> tuple[Array, Array]:
    """The best regions of one image, [n 4], and which of them there are."""
    most, number = (pair[0 if train else 1] for pair in (self.proposals, self.candidates))
    decoded, best, level = [], [], []
    for i, (box, score, delta) in enumerate(zip(boxes, scores, deltas, strict=True)):
      top, index = jax.lax.top_k(score, min(number, len(box)))
      decoded.append(decode_boxes(delta[index], jnp.asarray(box)[index]))
      best.append(top)
      level.append(np.full(len(index), i))
    regions = clip_boxes(jnp.concatenate(decoded), size)
    kept, valid = nms(
      regions,
      jnp.concatenate(best),
      _has_sides(regions, 1e-3),
      threshold=self.proposal_nms,
      most=most,
      groups=jnp.concatenate(level),
    )
    return jnp.where(valid[:, None], regions[kept], 0), valid

  def _detect(
    self, logits: Array, deltas: Array, regions: Array, valid: Array, size: Array
  ) -> tuple[Array, Array, Array, Array]:
    """Boxes, scores, classes and validity of the objects in one image."""
    boxes = clip_boxes(decode_boxes(deltas[:, 1:], regions[:, None], _BOX_WEIGHTS), size)
    scores = nn.softmax(logits)[:, 1:]
    classes = jnp.broadcast_to(jnp.arange(1, self.num_classes), scores.shape).reshape(-1)
    valid = valid[:, None] & (scores > self.min_score) & _has_sides(boxes, 1e-2)
    boxes, scores = boxes.reshape(-1, 4), scores.reshape(-1)
    kept, found = nms(
      boxes,
      scores,
      valid.reshape(-1),
      threshold=self.detection_nms,
      most=self.detections,
      groups=classes,
    )
    return (
      jnp.where(found[:, None], boxes[kept], 0),
      jnp.where(found, scores[kept], 0),
      jnp.where(found, classes[kept], 0),
      found,
    )

  def _anchor_targets(
    self, boxes: np.ndarray, key: Array, targets: Targets, size: Array
  ) -> dict[str, Array]:
    """What the proposal network should say about the anchors of one image."""
    single, crowd = _kinds(targets)
    index, label = match(
      jnp.asarray(boxes), targets.boxes, single, high=0.7, low=0.3, best_too=True
    )
    # Anchors around padding teach nothing, and of others only what lies in the image may be crowd.
    outside = ((boxes[:, :2] + boxes[:, 2:]) / 2 >= size[None]).any(-1)
    ignored = outside | in_crowd(clip_boxes(jnp.asarray(boxes), size), targets.boxes, crowd)
    label = jnp.where((label == 0) & ignored, -1, label)
    picked, there = sample(
      jax.random.fold_in(key, 0), label, self.anchor_samples, self.anchor_samples // 2
    )
    sampled = jnp.zeros(len(boxes), bool).at[picked].max(there)
    matched = label == 1
    deltas = encode_boxes(targets.boxes[index], jnp.asarray(boxes))
    return {
      "rpn_labels": matched,
      "rpn_targets": jnp.where(matched[:, None], deltas, 0),
      "rpn_sampled": sampled,
    }

  def _region_targets(
    self, key: Array, regions: Array, valid: Array, targets: Targets
  ) -> dict[str, Array]:
    """Regions of one image to train on, and what the heads should say about them."""
    single, crowd = _kinds(targets)
    # At first no proposal is any good: the objects themselves are regions too.
    regions = jnp.concatenate([regions, targets.boxes])
    valid = jnp.concatenate([valid, single])
    index, label = match(regions, targets.boxes, single, high=0.5, low=0.5)
    ignored = (label == 0) & in_crowd(regions, targets.boxes, crowd)
    label = jnp.where(valid & ~ignored, label, -1)
    most = int(self.samples * self.positives)
    picked, sampled = sample(jax.random.fold_in(key, 1), label, self.samples, most)
    regions, index = regions[picked], index[picked]
    matched = sampled & (label[picked] == 1)
    classes = jnp.where(matched, targets.classes[index], 0)
    deltas = encode_boxes(targets.boxes[index], regions, _BOX_WEIGHTS)
    # Matches come first. Where they are few they are repeated, so that a batch norm sees nothing
    # but objects; the repetitions don't count.
    place = jnp.arange(most)
    again = place % jnp.maximum(matched.sum(), 1)
    boxes, owner = regions[again], index[again]
    masks = crop_masks(targets.masks[owner], targets.frames[owner], boxes, 28)
    found = place < matched.sum()
    return {
      "boxes": regions,
      "classes": classes,
      "targets": jnp.where(matched[:, None], deltas, 0),
      "sampled": sampled,
      "mask_boxes": boxes,
      "mask_classes": classes[again],
      "masks": jnp.where(found[:, None, None], masks, 0),
      "mask_valid": found,
    }


class ProposalHead(nn.Module):
  """A level [b h w c] -> scores [b h*w*a] and box differences [b h*w*a 4] of its anchors, float32.

  Attributes:
    features: channels of the convolutions.
    anchors: a, at each pixel.
    convs: how many 3x3 convolutions come first.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  features: int
  anchors: int
  convs: int = 1
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    """Computes both from the same features."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def conv(x: Array, features: int, kernel: int, name: str) -> Array:
      init = nn.initializers.normal(0.01)
      return Conv(features, (kernel, kernel), kernel_init=init, name=name, **types)(x)

    for i in range(1, self.convs + 1):
      x = nn.relu(conv(x, self.features, 3, f"conv{i}"))
    scores = conv(x, self.anchors, 1, "score").astype(jnp.float32)
    deltas = conv(x, 4 * self.anchors, 1, "box").astype(jnp.float32)
    return scores.reshape(len(x), -1), deltas.reshape(len(x), -1, 4)


class BoxHead(nn.Module):
  """Regions [n s s c] -> class logits [n k] and box differences [n k*4], float32.

  Attributes:
    num_classes: k.
    features: channels of the convolutions.
    dense: channels of the fully connected layers.
    convs: how many 3x3 convolutions come first.
    layers: how many fully connected layers follow.
    norm: kind of normalisation of the convolutions.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  num_classes: int
  features: int
  dense: int
  convs: int = 0
  layers: int = 2
  norm: str = "none"
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
    """Computes both from the same features."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = _convs(x, self.features, self.convs, self.norm, types, train)
    for i in range(1, self.layers + 1):
      x = nn.relu(Conv(self.dense, x.shape[1:3], padding="VALID", name=f"dense{i}", **types)(x))

    def last(features: int, deviation: float, name: str) -> Array:
      init = nn.initializers.normal(deviation)
      y = Conv(features, (1, 1), kernel_init=init, name=name, **types)(x)
      return y.astype(jnp.float32).reshape(len(x), -1)

    return last(self.num_classes, 0.01, "score"), last(4 * self.num_classes, 0.001, "box")


class MaskHead(nn.Module):
  """Regions [n s s c] and their classes [n] -> mask logits [n 2s 2s] of those classes, float32.

  Each class has a mask of its own (section 3), of which only one is ever looked at.

  Attributes:
    num_classes: k.
    features: channels of the convolutions.
    convs: how many 3x3 convolutions come first.
    norm: kind of normalisation of the convolutions.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  num_classes: int
  features: int
  convs: int = 4
  norm: str = "none"
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array, classes: Array, *, train: bool = False) -> Array:
    """Computes the masks of the given classes."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = _convs(x, self.features, self.convs, self.norm, types, train)
    x = nn.relu(ConvTranspose(self.features, (2, 2), 2, use_bias=True, name="upsample", **types)(x))
    return ClassConv(self.num_classes, name="score", **types)(x, classes)


class KeypointHead(nn.Module):
  """Regions [n s s c] -> logits [n 4s 4s q] of where in the region each keypoint is, float32.

  A softmax over the 4s x 4s cells of each keypoint (section 5). Without norms, as in torchvision.

  Attributes:
    keypoints: q.
    features: channels of the convolutions.
    convs: how many 3x3 convolutions come first.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  keypoints: int
  features: int = 512
  convs: int = 8
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Computes the logits at twice the size of the last layer's."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = _convs(x, self.features, self.convs, "none", types, train=False)
    x = ConvTranspose(self.keypoints, (4, 4), 2, use_bias=True, name="score", **types)(x)
    x = x[:, 1:-1, 1:-1].astype(jnp.float32)
    return resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))


class ClassConv(nn.Module):
  """A 1x1 convolution of which each image wants one output: [n h w c], [n] -> [n h w], float32.

  Attributes:
    num_classes: outputs that there are.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  num_classes: int
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array, classes: Array) -> Array:
    """Multiplies by the kernels of the classes alone."""
    shape = (1, 1, x.shape[-1], self.num_classes)
    init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    kernel = self.param("kernel", init, shape, self.param_dtype)
    bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    # Products and no look-ups, whose derivative would be a scatter.
    one = jax.nn.one_hot(classes, self.num_classes, dtype=x.dtype)
    y = jnp.einsum("nhwc,nc->nhw", x, one @ kernel[0, 0].T)
    return (y + (one @ bias)[:, None, None]).astype(jnp.float32)


def _convs(
  x: Array, features: int, number: int, norm: str, types: dict[str, Any], train: bool
) -> Array:
  """3x3 convolutions with ReLU of the module that calls."""
  for i in range(1, number + 1):
    x = Conv(features, (3, 3), use_bias=norm == "none", name=f"conv{i}", **types)(x)
    x = nn.relu(Norm(norm, name=f"norm{i}", **types)(x, train=train))
  return x


def _kinds(targets: Targets) -> tuple[Array, Array]:
  """Which objects [n] of an image are single ones with an area, and which are crowds."""
  single = targets.valid & ~targets.crowd & _has_sides(targets.boxes, 1e-3)
  return single, targets.valid & targets.crowd


def _has_sides(boxes: Array, least: float) -> Array:
  """Bool [...]: whether both sides of boxes [... 4] have at least so many pixels."""
  return ((boxes[..., 2:] - boxes[..., :2]) >= least).all(-1)
