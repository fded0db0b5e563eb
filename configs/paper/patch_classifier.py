"""The patch classifier on ISBI 2012 (Ciresan et al. 2012, section 3; network N4).

  jseg train --config=paper/patch_classifier --config.data.root=isbi2012 \
      --workdir=runs/patches

One patch of 95 x 95 an example, turned and mirrored at random. The paper trains on 3 million
patches a epoch with as many of either class; here classes weigh instead. Batch, rate and steps are
ours. Not run here.
"""

import jseg.config

ABOUT = jseg.config.About(
  data="ISBI 2012 as `jseg get-data isbi2012` makes it",
  protocol="shrink",
)


def get_config():
  """The configuration."""
  config = jseg.config.default("patch_classifier")
  config.steps = 50_000
  config.data.name = "folder"
  config.data.size = (512, 512)
  config.data.channels = 1
  config.data.batch_size = 128
  config.data.eval_batch_size = 1
  config.augment.crop = (95, 95)
  config.augment.scale = (1.0, 1.0)
  config.augment.flip_vertical = 0.5
  config.augment.rotation = 180.0
  config.loss.balance = "median"
  config.optim.optimizer = "sgd"
  config.optim.lr = 0.01
  config.optim.momentum = 0.9
  config.optim.schedule = "poly"
  config.eval_every = 5000
  config.checkpoint_every = 1000
  return config
