"""A U-Net on classes that may overlap, each with a mask of its own: a sigmoid and a threshold each.

  jseg check-data my_data
  jseg train --config=multilabel --config.data.root=my_data --workdir=runs/mine
  jseg predict runs/mine photos/ --out out --set "multilabel.threshold=(0.4,)"

`my_data` holds classes.json with "task": "multilabel", {train,val}/images/NAME.png, and
{train,val}/masks/CLASS/NAME.png, or masks/NAME.npy with a channel for each class.
"""

import jseg.config

ABOUT = jseg.config.About(data="your own folder of images with a mask for each class")


def get_config():
  """The configuration."""
  config = jseg.config.default("unet", widths=(32, 64, 128, 256))
  config.steps = 2000
  config.data.name = "multilabel"
  config.data.size = (256, 256)
  config.data.batch_size = 8
  # Rare classes are a few pixels among many, where the cross-entropy alone finds nothing at first.
  config.loss.name = "cross_entropy+dice"
  config.augment.scale = (0.75, 1.5)
  config.augment.brightness = 0.2
  config.augment.contrast = 0.2
  config.augment.saturation = 0.2
  config.optim.optimizer = "adamw"
  config.optim.lr = 1e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 100
  return config
