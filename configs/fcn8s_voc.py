"""FCN-8s with narrower fc layers on small Pascal VOC images, from an ImageNet VGG16, on CPU.

jseg train --config=fcn8s_voc --config.data.root=voc2012_subset \
      --config.init_from=torchvision:vgg16 --workdir=runs/fcn8s
"""

import jseg.config

ABOUT = jseg.config.About(
  data="250 small Pascal VOC images, `jseg get-data voc2012_subset`",
  weights="torchvision:vgg16, or another file of ImageNet's",
  minutes=15,
  reaches="mIoU .214; .035, background alone, from random values",
)


def get_config():
  """The configuration."""
  config = jseg.config.default("fcn8s", padding="same", at_once=True, fc=512)
  config.steps = 120
  config.data.name = "folder"
  config.data.size = (128, 128)
  config.data.batch_size = 8
  config.augment.crop = (96, 96)
  config.augment.scale = (0.8, 1.25)
  config.optim.optimizer = "adamw"
  config.optim.lr = 2e-5
  config.optim.schedule = "poly"
  config.optim.warmup_steps = 10
  config.optim.head_lr = 50.0  # of all but VGG16
  config.eval_every = 60
  return config
