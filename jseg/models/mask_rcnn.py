"""Mask R-CNN (He et al. 2017, arXiv:1703.06870) with a feature pyramid, as in torchvision."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jseg import backbones
from jseg.images import valid_area
from jseg.models.base import Network, depth_to_backbone
from jseg.nn import Staged, check_norm, pad_to_multiple
from jseg.nn.detection import (
  FPN,
  BoxHead,
  KeypointHead,
  MaskHead,
  Proposals,
  RegionTargets,
  RPNHead,
  Slots,
  anchor_targets,
  detect,
  in_chunks,
  list_slots,
  make_anchors,
  pool_regions,
  propose,
  region_targets,
)
from jseg.nn.devices import example_keys
from jseg.types import Arguments, Array, Detections, InputError, InstanceOutputs, Targets, Tree

_STRIDES = (4, 8, 16, 32)  # of the levels that regions are pooled from
_BOX_BINS, _MASK_BINS = 7, 14  # edges of pooled regions; masks are twice as large
# Regions that go through a head together: the fewer, the closer time follows their number; the
# more, the more often the box head's 50 MB of weights are used each time they are read.
_BOX_CHUNK, _MASK_CHUNK = 256, 8
_LEAST = {
  0: ("box_convs", "mask_convs", "keypoints", "keypoint_convs"),
  1: ("channels", "dense", "rpn_convs", "box_dense", "keypoint_channels", "samples", "detections"),
  2: ("anchor_samples",),
}


class MaskRCNN(Network, Staged):
  """[b h w c] -> Detections, or InstanceOutputs in training, for any h and w.

  A region proposal network slides over all levels of the pyramid. For each proposal the box head
  predicts the class and a refined box, and the mask head a mask of the box for each class. All
  shapes are static: what varies in number comes with a mask of what is valid, so that memory does
  not depend on the number of objects. Time does: the heads work through what is valid, in chunks.

  The defaults are torchvision's `maskrcnn_resnet50_fpn`, and with `**MaskRCNN.V2` its
  `maskrcnn_resnet50_fpn_v2`; `masks=False, keypoints=17` is its `keypointrcnn_resnet50_fpn`.

  Attributes:
    backbone: name of a ResNet, VGG16 or GoogLeNet of `jseg.backbones`.
    width: factor of the backbone's channel counts, for small machines.
    norm: kind of normalization in the backbone (`jseg.nn.Norm`).
    head_norm: kind of normalization in the pyramid and the heads; "none" gives convolutions a bias.
    channels: channels of the pyramid and of the convolutions of all heads.
    dense: channels of the box head's fully connected layers.
    rpn_convs: number of 3x3 convolutions in the proposal network.
    box_convs: number of 3x3 convolutions in the box head.
    box_dense: number of fully connected layers in the box head.
    masks: whether there is a mask head.
    mask_convs: number of 3x3 convolutions in the mask head.
    keypoints: number of keypoints that the keypoint head predicts (section 5); 0 for no such head.
      It is for inference with imported weights.
    keypoint_convs: number of 3x3 convolutions in the keypoint head.
    keypoint_channels: channels of the keypoint head's convolutions.
    anchor_sizes: edges of the anchors of the five levels, in pixels.
    anchor_ratios: heights of the anchors over their widths.
    roi: "align", or "pool", which rounds regions to whole cells.
    aligned: whether regions are aligned exactly (`jseg.nn.detection.roi_align`).
    proposals: regions per image after suppression; (in training, in inference).
    candidates: regions per level before suppression; (in training, in inference).
    proposal_nms: IoU above which a proposal is suppressed by a better one.
    anchor_samples: anchors per image that are trained on, of which at most half are matches.
    samples: regions per image that are trained on.
    positives: highest share of matches among these regions.
    min_score: probability below which detections are dropped.
    detection_nms: IoU above which a detection is suppressed by a better one of its class.
    detections: highest number of detections per image.
  """

  TINY: ClassVar[Arguments] = {
    "backbone": "resnet18",
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
  V2: ClassVar[Arguments] = {
    "norm": "batch",
    "head_norm": "batch",
    "rpn_convs": 2,
    "box_convs": 4,
    "box_dense": 1,
  }
  task: ClassVar[str] = "instance"
  MAX_CLASSES: ClassVar[int | None] = None

  backbone: str = "resnet50"
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

  def __post_init__(self) -> None:
    backbones.check(self.backbone, strides=_STRIDES, width=self.width)
    check_norm(self.norm)
    check_norm(self.head_norm, "head_norm")
    if self.roi not in ("align", "pool"):
      raise InputError(f"roi: {self.roi!r} is unknown; choose from align, pool")
    if len(self.anchor_sizes) != 5 or min(self.anchor_sizes) <= 0:
      raise InputError(f"anchor_sizes: {self.anchor_sizes} must be 5 edges above 0, one per level")
    if not self.anchor_ratios or min(self.anchor_ratios) <= 0:
      raise InputError(f"anchor_ratios: {self.anchor_ratios} must be one or more, above 0")
    for key in ("proposals", "candidates"):
      value = getattr(self, key)
      if len(value) != 2 or min(value) < 1:
        raise InputError(f"{key}: {value} must be two numbers, in training and in inference")
    for least, keys in _LEAST.items():
      for key in keys:
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

  @classmethod
  def upgrade(cls, arguments: Arguments) -> Arguments:
    """Translates the former argument `depth` of the ResNet to `backbone`."""
    return depth_to_backbone(arguments)

  @nn.compact
  def __call__(
    self,
    image: Array,
    *,
    size: Array | None = None,
    train: bool = False,
    targets: Targets | None = None,
  ) -> Detections | InstanceOutputs:
    """Finds the objects in normalized images.

    Args:
      image: [b h w c].
      size: int [b 2], (height, width) of the upper left part of the canvas that each image covers;
        None: all of it.
      train: whether to return what the losses need. The key "sample", the same on every device,
        draws the anchors and regions to train on.
      targets: objects of the images, for training.

    Raises:
      InputError: in training, targets are missing or the network has other heads than masks.
    """
    if size is None:
      size = jnp.tile(jnp.array([image.shape[1:3]]), (len(image), 1))
    # Each level must be exactly twice as large as the next.
    valid = valid_area(size, height=image.shape[1], width=image.shape[2])
    x = pad_to_multiple(jnp.where(valid[..., None], image, 0), 32)
    levels = self._pyramid(x, train=train)
    anchors = make_anchors(
      x.shape[1:3],
      [level.shape[1:3] for level in levels],
      [(edge,) for edge in self.anchor_sizes],
      self.anchor_ratios,
    )
    logits, deltas = self.stage(MaskRCNN._rpn, levels)
    phase = 0 if train else 1
    propose_regions = functools.partial(
      propose,
      anchors,
      candidates=self.candidates[phase],
      limit=self.proposals[phase],
      threshold=self.proposal_nms,
    )
    proposals = jax.vmap(propose_regions)(*jax.lax.stop_gradient((logits, deltas)), size)
    if not train:
      return self._infer(levels, proposals, size)
    return self._train(
      levels,
      proposals,
      size,
      targets,
      anchors=np.concatenate(anchors),
      rpn_logits=logits,
      rpn_deltas=deltas,
    )

  def _infer(self, levels: Sequence[Array], proposals: Proposals, size: Array) -> Detections:
    """Detections of the batch, with masks and keypoints within their boxes."""
    regions = list_slots(proposals.valid)
    pooled = self._pool(levels, proposals.boxes, regions, _BOX_BINS)
    found = self._in_chunks(self._box_head(), pooled, None, regions, chunk=_BOX_CHUNK)
    logits, deltas = jax.tree.map(regions.put_back, found)
    detect_objects = functools.partial(
      detect,
      min_score=self.min_score,
      threshold=self.detection_nms,
      limit=self.detections,
    )
    detections = jax.vmap(detect_objects)(logits, deltas, proposals, size)
    objects = list_slots(detections.valid)
    pooled = self._pool(levels, detections.boxes, objects, _MASK_BINS)
    if self.masks:
      classes = objects.take(detections.classes)
      masks = self._in_chunks(self._mask_head(), pooled, classes, objects, chunk=_MASK_CHUNK)
      detections = dataclasses.replace(detections, masks=objects.put_back(nn.sigmoid(masks)))
    if self.keypoints:
      head = self.typed(KeypointHead)(
        self.keypoints,
        features=self.keypoint_channels,
        convs=self.keypoint_convs,
        name="keypoint_head",
      )
      points = self._in_chunks(head, pooled, None, objects, chunk=_MASK_CHUNK)
      detections = dataclasses.replace(detections, keypoints=objects.put_back(points))
    return detections

  def _train(
    self,
    levels: Sequence[Array],
    proposals: Proposals,
    size: Array,
    targets: Targets | None,
    *,
    anchors: np.ndarray,
    rpn_logits: Array,
    rpn_deltas: Array,
  ) -> InstanceOutputs:
    """Predictions for the anchors and regions to train on, beside what they should be."""
    if self.keypoints or not self.masks:
      raise InputError("only masks are trained here; leave masks=True and keypoints=0")
    if targets is None:
      raise InputError("targets are missing; give them to train a network of instances")
    b = len(size)
    keys = example_keys(self.make_rng("sample"), b)
    choose_anchors = functools.partial(anchor_targets, samples=self.anchor_samples)
    rpn = jax.vmap(choose_anchors, in_axes=(0, None, 0, 0))(keys, anchors, targets, size)
    choose_regions = functools.partial(
      region_targets,
      samples=self.samples,
      max_matches=int(self.samples * self.positives),
      mask_size=2 * _MASK_BINS,
    )
    regions = jax.vmap(choose_regions)(keys, proposals, targets)

    logits, deltas, masks = self.stage(_train_heads, levels, regions)
    truth = jax.nn.one_hot(regions.classes.reshape(-1), self.num_classes)
    deltas = jnp.einsum("rk,rkd->rd", truth, deltas)
    return InstanceOutputs(
      rpn_logits=rpn_logits,
      rpn_deltas=rpn_deltas,
      rpn_labels=rpn.labels,
      rpn_targets=rpn.deltas,
      rpn_sampled=rpn.sampled,
      class_logits=logits.reshape(b, -1, self.num_classes),
      deltas=deltas.reshape(b, -1, 4),
      classes=regions.classes,
      targets=regions.deltas,
      sampled=regions.sampled,
      mask_logits=masks,
      masks=regions.masks,
      mask_valid=regions.mask_valid,
    )

  def _train_masks(self, levels: Sequence[Array], regions: RegionTargets) -> Array:
    """Logits [b p m m] of the masks; 0 where they don't count, unless a batch norm saw them."""
    head, valid = self._mask_head(), regions.mask_valid
    together = self.head_norm in ("batch", "local_batch")
    matches = list_slots(jnp.ones_like(valid) if together else valid)
    pooled = self._pool(levels, regions.mask_boxes, matches, _MASK_BINS)
    classes = matches.take(regions.mask_classes)
    if together:
      masks = head(pooled, classes, train=True)
    else:
      masks = self._in_chunks(head, pooled, classes, matches, chunk=_MASK_CHUNK)
    return matches.put_back(masks)

  def _pyramid(self, x: Array, *, train: bool) -> list[Array]:
    backbone = self.typed(backbones.create)(
      self.backbone, norm=self.norm, width=self.width, remat=self.remat, name="backbone"
    )

    def fpn(net: MaskRCNN, maps: dict[int, Array]) -> list[Array]:
      return net.typed(FPN)(net.channels, net.head_norm, name="fpn")(maps, train=train)

    return self.stage(fpn, backbone(x, train=train).stages)

  def _rpn(self, levels: Sequence[Array]) -> tuple[Array, Array]:
    """Logits [b a] and deltas [b a 4] of the anchors of all levels."""
    rpn = self.typed(RPNHead)(
      self.channels,
      anchors=len(self.anchor_ratios),
      convs=self.rpn_convs,
      name="rpn",
    )
    return rpn(levels)

  def _box_head(self) -> BoxHead:
    return self.typed(BoxHead)(
      self.num_classes,
      features=self.channels,
      dense=self.dense,
      convs=self.box_convs,
      layers=self.box_dense,
      norm=self.head_norm,
      name="box_head",
    )

  def _mask_head(self) -> MaskHead:
    return self.typed(MaskHead)(
      self.num_classes,
      features=self.channels,
      convs=self.mask_convs,
      norm=self.head_norm,
      name="mask_head",
    )

  def _pool(self, levels: Sequence[Array], boxes: Array, slots: Slots, bins: int) -> Array:
    """Features of the used slots' regions [b n 4], as a list [p bins bins c]."""
    return pool_regions(
      levels[: len(_STRIDES)],
      slots.take(boxes),
      slots.image,
      size=bins,
      strides=_STRIDES,
      count=slots.count,
      rounded=self.roi == "pool",
      aligned=self.aligned,
    )

  def _in_chunks(
    self, head: nn.Module, x: Array, classes: Array | None, slots: Slots, *, chunk: int
  ) -> Tree:
    """What a head without batch statistics finds in the used slots, listed as they are."""

    def call(head: nn.Module, x: Array, classes: Array | None) -> Tree:
      return head(x) if classes is None else head(x, classes)

    if self.is_initializing() or len(x) <= chunk:
      return call(head, x, classes)
    apply = nn.apply(call, head.clone(parent=None))
    known = head.variables
    variables = {kind: known[kind] for kind in ("params", "batch_stats") if kind in known}
    return in_chunks(apply, variables, x, classes, count=slots.count, chunk=chunk)


def _train_heads(
  net: MaskRCNN, levels: Sequence[Array], regions: RegionTargets
) -> tuple[Array, Array, Array]:
  """Logits and deltas [b p ...] of all classes in the regions to train on, and logits of masks."""
  samples = list_slots(jnp.ones_like(regions.sampled))
  pooled = net._pool(levels, regions.boxes, samples, _BOX_BINS)
  logits, deltas = net._box_head()(pooled, train=True)
  return logits, deltas, net._train_masks(levels, regions)
