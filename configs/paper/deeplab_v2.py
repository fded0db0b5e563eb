"""DeepLab V2 on Pascal VOC (Chen et al. 2017, section 4.1.2 and table 4): ResNet-101, ASPP-L.

  jseg train --config=paper/deeplab_v2 --config.data.root=VOCdevkit \
      --config.init_from=torchvision:resnet101 --workdir=runs/deeplab_v2

The paper's numbers: 76.35 mean IoU on VOC 2012 val before the CRF, 77.69 after it, from a ResNet
that had been trained on MS COCO too, not on ImageNet alone. The CRF's parameters are searched
(`jseg tune-crf runs/deeplab_v2`). Not run here.
"""

import jseg.config

ABOUT = jseg.config.About(
  data="Pascal VOC's VOCdevkit, with SegmentationClassAug",
  weights="torchvision:resnet101, or another file of ImageNet's",
  published="76.35 mean IoU on VOC 2012 val before the CRF, 77.69 after it, from a ResNet trained "
  "on MS COCO too",
  protocol="deeplab_crf",
)


def get_config():
  """The configuration."""
  config = jseg.config.default("deeplab_v2")
  config.steps = 20_000
  config.data.name = "voc"
  config.data.train_split = "train_aug"
  config.data.size = (513, 513)
  config.data.batch_size = 10
  config.data.eval_batch_size = 4
  config.augment.crop = (321, 321)
  config.augment.scale = (0.5, 1.5)
  config.optim.optimizer = "sgd"
  config.optim.lr = 2.5e-4
  config.optim.momentum = 0.9
  config.optim.weight_decay = 5e-4
  config.optim.schedule = "poly"
  config.optim.power = 0.9
  config.optim.head_lr = 10.0
  config.optim.bias_lr = 2.0
  config.eval_every = 2000
  config.checkpoint_every = 1000
  return config
