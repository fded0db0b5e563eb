"""A U-Net on CamVid (11 classes, SegNet's split) at half resolution, on crops: minutes on a laptop.

  jseg train --config=camvid --config.data.root=camvid --workdir=runs/camvid
  jseg evaluate runs/camvid --split test

`camvid` is a folder data set: classes.json and {train,val,test}/{images,masks}.
"""

import jseg.config

ABOUT = jseg.config.About(
  data="CamVid at 180 x 240 as `jseg get-data camvid` makes it",
  minutes=11,
  reaches="validation mIoU .381, pixel accuracy .830; rare classes are not learned in that time",
)


def get_config():
  """The configuration."""
  config = jseg.config.default("unet", widths=(16, 32, 64, 128))
  config.steps = 600
  config.data.name = "folder"
  config.data.size = (180, 240)
  config.data.batch_size = 8
  config.augment.crop = (128, 160)
  config.augment.scale = (0.75, 1.5)
  config.augment.brightness = 0.2
  config.augment.contrast = 0.2
  config.augment.saturation = 0.2
  config.optim.optimizer = "adamw"
  config.optim.lr = 4e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 50
  config.eval_every = 300
  return config
