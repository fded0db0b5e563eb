"""SegNet-Basic on CamVid (Badrinarayanan et al. 2017, section 3.1 and table 1).

  python train.py --config=configs/paper/segnet_basic.py --config.data.root=camvid \
      --workdir=runs/segnet_basic

The paper's number: 47.7 mean IoU with the 367 public images and median frequency balancing. Not run
here.
"""

import jseg.config


def get_config():
  """The configuration."""
  config = jseg.config.default("segnet_basic")
  config.steps = 40_000
  config.data.name = "folder"
  config.data.size = (360, 480)
  config.data.batch_size = 12
  config.data.eval_batch_size = 4
  config.augment.scale = (1.0, 1.0)
  config.augment.flip = 0.0
  config.loss.balance = "median"
  config.precise_bn_batches = 31  # the training set once
  config.optim.optimizer = "sgd"
  config.optim.lr = 0.1
  config.optim.momentum = 0.9
  config.optim.weight_decay = 5e-4
  config.optim.schedule = "constant"
  config.eval_every = 1000
  config.checkpoint_every = 1000
  return config
