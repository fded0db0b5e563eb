"""RefineNet on Pascal VOC and Cityscapes (Lin et al. 2017; the authors' guosheng/refinenet).

  jseg train --config=paper/refinenet:voc --config.data.root=VOCdevkit \
      --config.init_from=torchvision:resnet50 --workdir=runs/refinenet_voc
  jseg train --config=paper/refinenet:cityscapes --config.data.root=cityscapes \
      --config.init_from=torchvision:resnet101 --workdir=runs/refinenet_cityscapes

The released recipe has ResNet-50 and VOC 2012's own 1,464 training images, and reaches about .691
mean IoU on val; the paper has 73.6 on Cityscapes' test set with ResNet-101, at several scales
(`jseg evaluate --set inference.scales=...`). There the rate falls to a tenth when val stands still;
here after two thirds of a fixed number of steps. The released code also enlarges each image 1.2
times before the network. Not run here.
"""

from typing import Any

import jseg.config

VARIANTS: dict[str, dict[str, Any]] = {
  "voc": {"backbone": "resnet50", "crop": 400, "size": (500, 500)},
  "cityscapes": {"backbone": "resnet101", "crop": 600, "size": (1024, 2048)},
}
ABOUT = {
  "voc": jseg.config.About(
    data="Pascal VOC, `jseg get-data voc2012`",
    weights="torchvision:resnet50, or another file of ImageNet's",
    published="about .691 mean IoU on VOC 2012 val",
    protocol="shrink",
  ),
  "cityscapes": jseg.config.About(
    data="Cityscapes' leftImg8bit and gtFine",
    weights="torchvision:resnet101, or another file of ImageNet's",
    published="73.6 mean IoU on Cityscapes' test set, at several scales",
    protocol="shrink",
  ),
}


def get_config(variant="voc"):
  """The configuration for one of the data sets."""
  recipe = jseg.config.variant(VARIANTS, variant)
  config = jseg.config.default("refinenet", backbone=recipe["backbone"], chain=2, order="conv_pool")
  config.steps = 150_000
  config.data.name = variant
  config.data.size = recipe["size"]
  config.data.batch_size = 1
  config.data.eval_batch_size = 1
  config.augment.crop = (recipe["crop"], recipe["crop"])
  config.augment.scale = (0.7, 1.3)
  config.optim.optimizer = "sgd"
  config.optim.lr = 5e-5  # of the ResNet; 5e-4 in the decoder
  config.optim.head_lr = 10.0
  config.optim.momentum = 0.9
  config.optim.weight_decay = 5e-4
  config.optim.schedule = "step"
  config.optim.milestones = (2 / 3,)
  config.optim.decay = 0.1
  config.eval_every = 5000
  config.checkpoint_every = 1000
  return config
