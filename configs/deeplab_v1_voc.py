"""DeepLab V1 with narrower fc layers on small Pascal VOC images, from an ImageNet VGG16, on CPU.

jseg train --config=deeplab_v1_voc --config.data.root=voc2012_subset \
      --config.init_from=torchvision:vgg16 --workdir=runs/deeplab_v1
"""

import jseg.config

ABOUT = jseg.config.About(
  data="250 small Pascal VOC images, `jseg get-data voc2012_subset`",
  weights="torchvision:vgg16, or another file of ImageNet's",
  minutes=5,
  reaches="mIoU .130; .035, background alone, from random values",
)


def get_config():
  """The configuration."""
  config = jseg.config.default("deeplab_v1", fc=512, dropout=0.0)
  config.steps = 120
  config.data.name = "folder"
  config.data.size = (129, 129)
  config.data.batch_size = 8
  config.augment.crop = (97, 97)
  config.augment.scale = (0.8, 1.25)
  config.optim.optimizer = "adamw"
  config.optim.lr = 2e-5
  config.optim.head_lr = 50.0  # fc6, fc7 and fc8 are new
  config.optim.schedule = "poly"
  config.optim.warmup_steps = 10
  config.eval_every = 60
  return config
