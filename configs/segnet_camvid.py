"""A SegNet of a quarter of the width on CamVid at half resolution, on CPU; see paper/segnet.py.

python train.py --config=configs/segnet_camvid.py --config.data.root=camvid --workdir=runs/segnet
"""

import jseg.config


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
