"""DeepLab V2 on VGG16, narrower and at two scales, on small Pascal VOC images, on CPU.

jseg train --config=deeplab_v2_voc --config.data.root=voc2012_subset \
      --config.init_from=torchvision:vgg16 --workdir=runs/deeplab_v2
"""

import jseg.config

ABOUT = jseg.config.About(
  data="250 small Pascal VOC images, `jseg get-data voc2012_subset`",
  weights="torchvision:vgg16, or another file of ImageNet's",
  minutes=8,
  reaches="mIoU .117; .035 is background alone",
)


def get_config():
  """The configuration."""
  config = jseg.config.default(
    "deeplab_v2", backbone="vgg16", rates=(2, 4, 8, 12), scales=(1.0, 0.5), fc=256, dropout=0.0
  )
  config.steps = 160
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
  config.eval_every = 80
  return config
