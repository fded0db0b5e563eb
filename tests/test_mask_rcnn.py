"""Mask R-CNN's network in training and inference."""

import pytest

from jseg import models
from jseg.models.mask_rcnn import MaskRCNN
from jseg.types import InputError


@pytest.mark.parametrize(
  ("knobs", "reference", "frozen"),
  # torchvision doesn't count what frozen batch norm holds.
  [({}, 44_401_393, 53_120), (MaskRCNN.V2, 46_359_409, 0)],
  ids=["v1", "v2"],
)
def test_parameters_are_torchvisions(knobs, reference, frozen):
  assert models.count_parameters("mask_rcnn", 91, **knobs) == reference + frozen


@pytest.mark.parametrize(
  ("knobs", "message"),
  [
    ({"roi": "crop"}, "roi: 'crop' is unknown; choose from align, pool"),
    ({"anchor_sizes": (8, 16)}, r"anchor_sizes: \(8, 16\) must be 5 edges"),
    ({"proposals": (0, 5)}, r"proposals: \(0, 5\) must be two numbers"),
    ({"positives": 1.5}, "positives: 1.5 must be 0 to 1"),
    ({"samples": 2}, "positives: 0.25 of 2 samples is less than one"),
    ({"detections": 0}, "detections: 0 must be at least 1"),
    ({"norm": "layer"}, "norm: 'layer' is unknown"),
  ],
)
def test_settings_that_cannot_be(knobs, message):
  with pytest.raises(InputError, match=message):
    models.create("mask_rcnn", 3, **knobs)
