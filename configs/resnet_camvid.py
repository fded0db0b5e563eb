"""The ResNet-era networks on CamVid at half resolution, on half a ResNet-18, from random values.

  jseg train --config=resnet_camvid:deeplab_v3 --config.data.root=camvid \
      --workdir=runs/deeplab_v3

Also `:pspnet`, `:refinenet` and `:fcn_resnet`: minutes on a laptop.
"""

from typing import Any

import jseg.config

VARIANTS: dict[str, dict[str, Any]] = {
  # Rates for maps of 12 x 15; the paper's are for 33 x 33.
  "deeplab_v3": {"rates": (2, 4, 6), "features": 128},
  "pspnet": {},
  "refinenet": {"features": (128, 64), "chain": 2, "dropout": 0.1, "norm": "batch"},
  "fcn_resnet": {"aux": True},
}
ABOUT = {
  "deeplab_v3": jseg.config.About(
    data="CamVid at 180 x 240 as `jseg get-data camvid` makes it",
    minutes=7,
    reaches="validation mIoU .339; .027 is road alone",
  ),
  "pspnet": jseg.config.About(
    data="CamVid at 180 x 240 as `jseg get-data camvid` makes it",
    minutes=6,
    reaches="validation mIoU .408",
  ),
  "refinenet": jseg.config.About(
    data="CamVid at 180 x 240 as `jseg get-data camvid` makes it",
    minutes=7,
    reaches="validation mIoU .269, still rising",
  ),
  "fcn_resnet": jseg.config.About(
    data="CamVid at 180 x 240 as `jseg get-data camvid` makes it",
    minutes=4,
    reaches="validation mIoU .392",
  ),
}


def get_config(variant="deeplab_v3"):
  """The configuration of one of the networks."""
  recipe = jseg.config.variant(VARIANTS, variant)
  config = jseg.config.default(variant, backbone="resnet18", width=0.5, **recipe)
  config.steps = 400
  config.data.name = "folder"
  config.data.size = (180, 240)
  config.data.batch_size = 8
  config.augment.crop = (129, 161)
  config.augment.scale = (0.75, 1.5)
  config.augment.brightness = 0.2
  config.augment.contrast = 0.2
  config.augment.saturation = 0.2
  config.optim.optimizer = "adamw"
  config.optim.lr = 2e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 40
  config.eval_every = 200
  return config
