"""A U-Net on the ISBI 2012 membranes (gray, two classes, 512 x 512) with elastic deformation.

  jseg train --config=isbi2012 --config.data.root=isbi2012 --workdir=runs/isbi2012

`isbi2012` is a folder data set: classes.json and {train,val}/{images,masks}. It trains on crops
and evaluates whole slices. This is the padded, batch-normed U-Net; the paper's recipe is another.
"""

import jseg.config

ABOUT = jseg.config.About(
  data="ISBI 2012 as `jseg get-data isbi2012` makes it",
  minutes=6,
  reaches="mIoU .778, pixel accuracy .919 on slices 24-29 of the training stack",
)


def get_config():
  """The configuration."""
  config = jseg.config.default("unet", widths=(16, 32, 64, 128))
  config.steps = 400
  config.data.name = "folder"
  config.data.size = (512, 512)
  config.data.channels = 1
  config.data.batch_size = 4
  config.data.eval_batch_size = 2
  config.augment.crop = (192, 192)
  config.augment.scale = (0.9, 1.1)
  config.augment.flip_vertical = 0.5
  config.augment.rotation = 180.0
  config.augment.elastic = 10.0
  config.augment.brightness = 0.1
  config.augment.contrast = 0.2
  config.optim.optimizer = "adamw"
  config.optim.lr = 3e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 50
  config.samples = 4
  return config
