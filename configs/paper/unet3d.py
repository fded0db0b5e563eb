"""3D U-Net (Cicek et al. 2016, section 3).

  jseg train --config=paper/unet3d --config.data.root=volumes --workdir=runs/unet3d

Unpadded on tiles of 132 x 132 x 116 voxels, from slices of which only some are annotated: mask
values of `ignore_label` are not trained on. 70,000 steps as in the paper, which gives no learning
rate; that one is ours. The paper's number: IoU .863 in its semi-automated setting, on data that are
not public. Not run here.
"""

import jseg.config

ABOUT = jseg.config.About(
  data="your own volumes, of which some slices are annotated",
  extras=("volumes",),
  published="IoU .863 in the semi-automated setting, on data that are not public",
  protocol="tile",
)


def get_config():
  """The configuration."""
  config = jseg.config.default("unet3d", padding="VALID")
  config.steps = 70_000
  config.data.name = "volumes"
  config.data.size = (128, 256, 256)
  config.data.channels = 3
  config.data.batch_size = 1
  config.data.eval_batch_size = 1
  config.augment.crop = (116, 132, 132)
  config.augment.scale = (1.0, 1.0)
  config.augment.flip = 0.0
  config.augment.rotation = 180.0
  config.augment.elastic = 4.0
  config.augment.brightness = 0.1
  config.augment.contrast = 0.1
  config.loss.balance = "median"
  config.optim.optimizer = "sgd"
  config.optim.lr = 0.01
  config.optim.momentum = 0.9
  config.optim.weight_decay = 0.0
  config.optim.schedule = "constant"
  config.eval_every = 5000
  config.checkpoint_every = 1000
  return config
