"""A small U-Net on generated shapes: nothing to download, minutes on two CPU cores.

jseg train --config=quickstart --workdir=runs/quickstart
"""

import jseg.config

ABOUT = jseg.config.About(minutes=2, reaches="validation mIoU .909 on generated shapes")


def get_config():
  """The configuration."""
  config = jseg.config.default("unet", widths=(12, 24, 48, 96))
  config.steps = 560
  config.data.name = "shapes"
  config.data.options = {"size": 96, "train": 1000, "val": 100, "test": 100, "hints": 0.98}
  config.data.size = (96, 96)
  config.data.batch_size = 8
  config.data.eval_batch_size = 20
  config.augment.scale = (0.8, 1.25)
  config.augment.brightness = 0.1
  config.augment.contrast = 0.1
  config.optim.optimizer = "adamw"
  config.optim.lr = 5e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 50
  config.eval_every = 280
  config.checkpoint_every = 140
  return config
