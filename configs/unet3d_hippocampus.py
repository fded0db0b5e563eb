"""A narrow 3D U-Net on the hippocampus of the Medical Segmentation Decathlon, on CPU.

jseg train --config=unet3d_hippocampus --config.data.root=hippocampus3d \
      --workdir=runs/hippocampus
"""

import jseg.config

ABOUT = jseg.config.About(
  data="the Decathlon's hippocampus, `jseg get-data hippocampus3d`",
  extras=("volumes",),
  minutes=28,
  reaches="Dice .860 anterior, .852 posterior",
)


def get_config():
  """The configuration."""
  config = jseg.config.default("unet3d", widths=(16, 32, 64))
  config.steps = 300
  config.data.name = "volumes"
  config.data.size = (48, 64, 48)
  config.data.channels = 1
  config.data.batch_size = 2
  config.data.eval_batch_size = 2
  config.augment.crop = (40, 48, 40)
  config.augment.scale = (0.9, 1.1)
  config.augment.rotation = 15.0
  config.augment.brightness = 0.2
  config.augment.contrast = 0.2
  config.loss.name = "cross_entropy+dice"
  config.optim.optimizer = "adamw"
  config.optim.lr = 3e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 30
  config.eval_every = 150
  return config
