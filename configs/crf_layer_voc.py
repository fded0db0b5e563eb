"""A CRF as the last layer of a DeepLab V1 on small Pascal VOC images: trained on with and without.

  jseg train --config=crf_layer_voc:network --config.data.root=voc2012_subset \
      --config.init_from=torchvision:vgg16 --workdir=runs/network
  jseg train --config=crf_layer_voc:stride --config.data.root=voc2012_subset \
      --config.init_from=runs/network --workdir=runs/stride

`:without` trains on as long without a CRF, `:stride` with one at an eighth of the resolution,
`:whole` with one at the whole.
"""

import dataclasses
from typing import Any

import jseg.config

# New are fc6, fc7 and fc8, and later the CRF.
VARIANTS: dict[str, dict[str, Any]] = {
  "network": {"steps": 120, "lr": 2e-5, "head_lr": 50.0},
  "without": {"steps": 40},
  "stride": {"steps": 40, "train": True, "stride": 8},
  "whole": {"steps": 40, "train": True, "stride": 1},
}
_ABOUT = jseg.config.About(
  data="250 small Pascal VOC images, `jseg get-data voc2012_subset`",
  weights="torchvision:vgg16, or another file of ImageNet's",
)
_LATER = dataclasses.replace(_ABOUT, weights="the run of `crf_layer_voc:network`")
ABOUT = {"network": _ABOUT, "without": _LATER, "stride": _LATER, "whole": _LATER}


def get_config(variant="network"):
  """The configuration of one of the runs."""
  recipe = jseg.config.variant(VARIANTS, variant)
  config = jseg.config.default("deeplab_v1", fc=512, dropout=0.0)
  config.steps = recipe["steps"]
  config.data.name = "folder"
  config.data.size = (97, 97)
  config.data.batch_size = 4
  config.augment.crop = (81, 81)
  config.augment.scale = (0.8, 1.25)
  config.optim.optimizer = "adamw"
  config.optim.lr = recipe.get("lr", 1e-4)
  config.optim.head_lr = recipe.get("head_lr", 10.0)
  config.optim.schedule = "poly"
  config.optim.warmup_steps = 10
  config.crf.train = recipe.get("train", False)
  config.crf.stride = recipe.get("stride", 1)
  config.eval_every = recipe["steps"]
  return config
