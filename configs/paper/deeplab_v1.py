"""DeepLab-LargeFOV on Pascal VOC (Chen et al. 2015, section 4.1 and table 1).

  jseg train --config=paper/deeplab_v1 --config.data.root=VOCdevkit \
      --config.init_from=torchvision:vgg16 --workdir=runs/deeplab_v1

The paper's numbers: 62.25 mean IoU on VOC 2012 val before the CRF, 67.64 after it; its parameters
are searched (`jseg tune-crf runs/deeplab_v1 --ranges v1`). `--config.model.msc=True` is the
multi-scale form. Not run here.
"""

import jseg.config

ABOUT = jseg.config.About(
  data="Pascal VOC's VOCdevkit, with SegmentationClassAug",
  weights="torchvision:vgg16, or another file of ImageNet's",
  published="62.25 mean IoU on VOC 2012 val before the CRF, 67.64 after it",
  protocol="deeplab_crf",
)


def get_config():
  """The configuration."""
  config = jseg.config.default("deeplab_v1")
  config.steps = 6000
  config.data.name = "voc"
  config.data.train_split = "train_aug"
  config.data.size = (513, 513)
  config.data.batch_size = 20
  config.data.eval_batch_size = 4
  config.augment.crop = (321, 321)
  config.augment.scale = (1.0, 1.0)
  config.optim.optimizer = "sgd"
  config.optim.lr = 1e-3
  config.optim.momentum = 0.9
  config.optim.weight_decay = 5e-4
  config.optim.schedule = "step"
  config.optim.milestones = (1 / 3, 2 / 3)  # every 2,000 steps
  config.optim.decay = 0.1
  config.optim.head_lr = 10.0
  config.optim.bias_lr = 2.0
  config.eval_every = 1000
  config.checkpoint_every = 500
  return config
