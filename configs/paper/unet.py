"""U-Net on ISBI 2012 (Ronneberger et al. 2015, sections 3 and 4).

  jseg train --config=paper/unet --config.data.root=isbi2012 --workdir=runs/unet

Unpadded, one large tile a step, elastic deformation, weight map, momentum .99. The paper gives no
learning rate and no number of steps (10 hours on its GPU); those here are ours. The paper's
numbers, on the challenge's test volume: warping error .000353, Rand error .0382, pixel error .0611.
Not run here.
"""

import jseg.config

ABOUT = jseg.config.About(
  data="ISBI 2012 as `jseg get-data isbi2012` makes it",
  published="warping error .000353, Rand error .0382, pixel error .0611 in the challenge",
  protocol="tile",
)


def get_config():
  """The configuration."""
  config = jseg.config.default("unet", padding="VALID", norm="none", dropout=0.5)
  config.steps = 30_000
  config.data.name = "folder"
  config.data.size = (512, 512)
  config.data.channels = 1
  config.data.batch_size = 1
  config.data.eval_batch_size = 1
  config.augment.crop = (508, 508)  # its middle 324 x 324 are compared
  config.augment.scale = (1.0, 1.0)
  config.augment.flip_vertical = 0.5
  config.augment.rotation = 180.0
  config.augment.elastic = 10.0
  config.augment.brightness = 0.1
  config.augment.contrast = 0.1
  config.loss.balance = "median"
  config.loss.border_weight = 10.0
  config.loss.border_sigma = 5.0
  config.optim.optimizer = "sgd"
  config.optim.lr = 1e-3
  config.optim.momentum = 0.99
  config.optim.weight_decay = 0.0
  config.optim.schedule = "constant"
  config.eval_every = 1000
  config.checkpoint_every = 1000
  return config
