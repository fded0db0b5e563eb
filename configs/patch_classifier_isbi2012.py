"""A narrow patch classifier on ISBI 2012, on CPU; see paper/patch_classifier.

  jseg train --config=patch_classifier_isbi2012 --config.data.root=isbi2012 \
      --workdir=runs/patches

Crops are larger than a patch: each holds those of 42 x 42 middles, at little more work than one.
"""

import jseg.config

ABOUT = jseg.config.About(data="ISBI 2012 as `jseg get-data isbi2012` makes it")


def get_config():
  """The configuration."""
  config = jseg.config.default("patch_classifier", width=24, fc=100)
  config.steps = 300
  config.data.name = "folder"
  config.data.size = (512, 512)
  config.data.channels = 1
  config.data.batch_size = 4
  config.data.eval_batch_size = 1
  config.augment.crop = (136, 136)
  config.augment.scale = (1.0, 1.0)
  config.augment.flip_vertical = 0.5
  config.augment.rotation = 180.0
  config.optim.optimizer = "adamw"
  config.optim.lr = 1e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 20
  config.eval_every = 300
  config.samples = 4
  return config
