"""SegNet and SegNet-Basic on CamVid (Badrinarayanan et al. 2017, section 4.1 and table 1).

  jseg train --config=paper/segnet:segnet --config.data.root=camvid \
      --config.init_from=torchvision:vgg16_bn --workdir=runs/segnet
  jseg train --config=paper/segnet:segnet_basic --config.data.root=camvid \
      --workdir=runs/segnet_basic

SegNet's encoder starts from VGG16. The paper's numbers: 60.1 mean IoU (global accuracy 90.4, class
average 71.2) after training SegNet on 3,433 images; the public 367 have no such number for it, but
47.7 for SegNet-Basic with median frequency balancing. Not run here.
"""

from typing import Any

import jseg.config

VARIANTS: dict[str, dict[str, Any]] = {"segnet": {}, "segnet_basic": {}}
ABOUT = {
  "segnet": jseg.config.About(
    data="CamVid as `jseg get-data camvid` makes it",
    weights="torchvision:vgg16_bn, or another file of ImageNet's",
    published="60.1 mean IoU, global accuracy 90.4, on 3,433 training images",
    protocol="shrink",
  ),
  "segnet_basic": jseg.config.About(
    data="CamVid as `jseg get-data camvid` makes it",
    published="47.7 mean IoU with median frequency balancing",
    protocol="shrink",
  ),
}


def get_config(variant="segnet"):
  """The configuration of either network."""
  config = jseg.config.default(variant, **jseg.config.variant(VARIANTS, variant))
  config.steps = 40_000
  config.data.name = "folder"
  config.data.size = (360, 480)
  config.data.batch_size = 12
  config.data.eval_batch_size = 4
  config.augment.scale = (1.0, 1.0)
  config.augment.flip = 0.0
  config.loss.balance = "median"
  config.precise_bn_batches = 31  # the training set once
  config.optim.optimizer = "sgd"
  config.optim.lr = 0.1
  config.optim.momentum = 0.9
  config.optim.weight_decay = 5e-4
  config.optim.schedule = "constant"
  config.eval_every = 1000
  config.checkpoint_every = 1000
  return config
