"""A CRF as the last layer of `fcn8s_voc`: that run is trained on with and without it.

  jseg train --config=crf_layer_voc:whole --config.data.root=voc2012_subset \
      --config.init_from=runs/fcn8s --workdir=runs/whole

`:without` trains on as long without a CRF, `:stride` with one at an eighth of the resolution,
`:whole` with one at the whole. Rates are those of `fcn8s_voc`, with the CRF as the new part.
"""

import dataclasses
from typing import Any

import jseg.config
import jseg.recipes

VARIANTS: dict[str, dict[str, Any]] = {
  "without": {},
  "stride": {"train": True, "stride": 8},
  "whole": {"train": True, "stride": 1},
}
_ABOUT = jseg.config.About(
  data="250 small Pascal VOC images, `jseg get-data voc2012_subset`",
  weights="the run of `fcn8s_voc`",
)
_REACHES = {"without": (4, ".232"), "stride": (4, ".228"), "whole": (5, ".235")}
ABOUT = {
  name: dataclasses.replace(
    _ABOUT, minutes=minutes, reaches=f"mIoU {miou}, the mean of three seeds"
  )
  for name, (minutes, miou) in _REACHES.items()
}


def get_config(variant="whole"):
  """The configuration of one of the runs."""
  recipe = jseg.config.variant(VARIANTS, variant)
  config = jseg.recipes.read("fcn8s_voc")  # the same network, data and augmentation
  config.steps = config.eval_every = 40
  config.crf.train = recipe.get("train", False)
  config.crf.stride = recipe.get("stride", 1)
  return config
