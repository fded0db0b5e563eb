"""A U-Net on your own folder of images and masks.

  jseg check-data my_data
  jseg train --config=folder --config.data.root=my_data --workdir=runs/mine

`my_data` holds classes.json and {train,val}/{images,masks}/NAME.png, or {images,masks}/NAME.png,
which is split at random.
"""

import jseg.config

ABOUT = jseg.config.About(data="your own folder of images and masks")


def get_config():
  """The configuration."""
  config = jseg.config.default("unet", widths=(32, 64, 128, 256))
  config.steps = 2000
  config.data.name = "folder"
  config.data.size = (256, 256)
  config.data.batch_size = 8
  config.augment.scale = (0.75, 1.5)
  config.augment.brightness = 0.2
  config.augment.contrast = 0.2
  config.augment.saturation = 0.2
  config.optim.optimizer = "adamw"
  config.optim.lr = 1e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 100
  return config
