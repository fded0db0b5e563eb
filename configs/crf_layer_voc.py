"""A CRF as the last layer of `deeplab_v1_voc`: that run is trained on with and without it.

  jseg train --config=crf_layer_voc:whole --config.data.root=voc2012_subset \
      --config.init_from=runs/deeplab_v1 --workdir=runs/whole

`:without` trains on as long without a CRF, `:stride` with one at an eighth of the resolution,
`:whole` with one at the whole.
"""

from typing import Any

import jseg.config

VARIANTS: dict[str, dict[str, Any]] = {
  "without": {},
  "stride": {"train": True, "stride": 8},
  "whole": {"train": True, "stride": 1},
}
ABOUT = dict.fromkeys(
  VARIANTS,
  jseg.config.About(
    data="250 small Pascal VOC images, `jseg get-data voc2012_subset`",
    weights="the run of `deeplab_v1_voc`",
  ),
)


def get_config(variant="whole"):
  """The configuration of one of the runs."""
  recipe = jseg.config.variant(VARIANTS, variant)
  config = jseg.config.default("deeplab_v1", fc=512, dropout=0.0)
  config.steps = 40
  config.data.name = "folder"
  config.data.size = (129, 129)
  config.data.batch_size = 8
  config.augment.crop = (97, 97)
  config.augment.scale = (0.8, 1.25)
  config.optim.optimizer = "adamw"
  config.optim.lr = 1e-4
  config.optim.head_lr = 10.0  # the CRF is new
  config.optim.schedule = "poly"
  config.optim.warmup_steps = 10
  config.crf.train = recipe.get("train", False)
  config.crf.stride = recipe.get("stride", 1)
  config.eval_every = 40
  return config
