"""A CRF as the last layer of a PSPNet on CamVid at half resolution: trained on with and without it.

  jseg train --config=crf_layer_camvid:network --config.data.root=camvid --workdir=runs/network
  jseg train --config=crf_layer_camvid:stride --config.data.root=camvid \
      --config.init_from=runs/network --workdir=runs/stride

`:without` trains on as long without a CRF, `:stride` with one at an eighth of the resolution,
`:whole` with one at the whole.
"""

import dataclasses
from typing import Any

import jseg.config

VARIANTS: dict[str, dict[str, Any]] = {
  "network": {"steps": 100, "lr": 2e-3},
  "without": {"steps": 40},
  "stride": {"steps": 40, "train": True, "stride": 8},
  "whole": {"steps": 40, "train": True, "stride": 1},
}
_ABOUT = jseg.config.About(data="CamVid at 180 x 240 as `jseg get-data camvid` makes it")
_LATER = dataclasses.replace(_ABOUT, weights="the run of `crf_layer_camvid:network`")
_REACHES = {"without": (1, ".182"), "stride": (1, ".196"), "whole": (2, ".210")}
ABOUT = {
  "network": _ABOUT,
  **{
    name: dataclasses.replace(
      _LATER, minutes=minutes, reaches=f"validation mIoU {miou}, the mean of three seeds"
    )
    for name, (minutes, miou) in _REACHES.items()
  },
}


def get_config(variant="network"):
  """The configuration of one of the runs."""
  recipe = jseg.config.variant(VARIANTS, variant)
  config = jseg.config.default("pspnet", backbone="resnet18", width=0.5)
  config.steps = recipe["steps"]
  config.data.name = "folder"
  config.data.size = (180, 240)
  config.data.batch_size = 4
  config.augment.crop = (97, 129)
  config.augment.scale = (0.75, 1.5)
  config.optim.optimizer = "adamw"
  config.optim.lr = recipe.get("lr", 5e-4)
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 10
  config.crf.train = recipe.get("train", False)
  config.crf.stride = recipe.get("stride", 1)
  config.eval_every = recipe["steps"]
  return config
