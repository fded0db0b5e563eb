"""A SegNet of a quarter of the width on CamVid at half resolution, on CPU; see paper/segnet.

jseg train --config=segnet_camvid --config.data.root=camvid --workdir=runs/segnet
"""

import jseg.config

ABOUT = jseg.config.About(
  data="CamVid at 180 x 240 as `jseg get-data camvid` makes it",
  minutes=10,
  reaches="validation mIoU .221, class accuracy .460; the weights favor rare classes early on",
)


def get_config():
  """The configuration."""
  config = jseg.config.default("segnet", widths=(16, 32, 64, 128, 128))
  config.steps = 600
  config.data.name = "folder"
  config.data.size = (180, 240)
  config.data.batch_size = 8
  config.augment.crop = (128, 160)
  config.augment.scale = (0.75, 1.5)
  config.loss.balance = "median"
  config.precise_bn_batches = 40
  config.optim.optimizer = "adamw"
  config.optim.lr = 4e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 50
  config.eval_every = 300
  return config
