"""The published, unpadded U-Net at a quarter of the width on ISBI 2012, on CPU; see paper/unet.

jseg train --config=unet_isbi2012 --config.data.root=isbi2012 \
      --workdir=runs/unet_isbi2012
"""

import jseg.config

ABOUT = jseg.config.About(
  data="ISBI 2012 as `jseg get-data isbi2012` makes it",
  minutes=8,
  reaches="mIoU .703, boundary IoU .618, Rand score .571",
)


def get_config():
  """The configuration."""
  config = jseg.config.default(
    "unet", widths=(16, 32, 64, 128, 256), padding="VALID", norm="none", dropout=0.5
  )
  config.steps = 500
  config.data.name = "folder"
  config.data.size = (512, 512)
  config.data.channels = 1
  config.data.batch_size = 2
  config.data.eval_batch_size = 2
  config.augment.crop = (316, 316)  # its middle 132 x 132 are compared
  config.augment.scale = (0.9, 1.1)
  config.augment.flip_vertical = 0.5
  config.augment.rotation = 180.0
  config.augment.elastic = 10.0
  config.loss.border_weight = 10.0
  config.optim.optimizer = "adamw"
  config.optim.lr = 5e-4
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 50
  config.eval_every = 250
  config.samples = 4
  return config
