"""Mask R-CNN on COCO 2017 (He et al. 2017, section 3.1), and as Detectron's 1x baseline.

  jseg train --config=paper/mask_rcnn:paper --config.data.root=coco \
      --config.init_from=torchvision:resnet50 --workdir=runs/mask_rcnn_paper
  jseg train --config=paper/mask_rcnn:detectron --config.data.root=coco \
      --config.init_from=torchvision:resnet50 --workdir=runs/mask_rcnn_detectron

`coco` holds annotations/instances_{train,val}2017.json, train2017 and val2017. Published for
ResNet-50-FPN: mask AP .336 (paper, table 2a, 160,000 steps), .339 (Detectron, 90,000 steps), both
on the 2014 minival, which is the 2017 validation set. Not run here.

Images are brought to a shorter side of 800 pixels. Detectron's warm-up begins at a third of the
rate, ours near 0.
"""

from typing import Any

import jseg.config

VARIANTS: dict[str, dict[str, Any]] = {
  "paper": {"steps": 160_000, "lower_at": (120_000,)},
  "detectron": {"steps": 90_000, "lower_at": (60_000, 80_000)},
}
WARMUP = 500
ABOUT = {
  "paper": jseg.config.About(
    data="COCO 2017 as `coco`",
    weights="torchvision:resnet50, or another file of ImageNet's",
    extras=("instance",),
    published="mask AP .336 on minival",
  ),
  "detectron": jseg.config.About(
    data="COCO 2017 as `coco`",
    weights="torchvision:resnet50, or another file of ImageNet's",
    extras=("instance",),
    published="mask AP .339 on minival",
  ),
}


def get_config(variant="paper"):
  """The configuration of one of the two schedules."""
  recipe = jseg.config.variant(VARIANTS, variant)
  config = jseg.config.default("mask_rcnn")
  config.steps = recipe["steps"]
  config.data.name = "coco"
  config.data.size = (1088, 1088)  # images of 3:4 fit whole, upright too
  config.data.short_side = 800
  config.data.batch_size = 16
  config.data.eval_batch_size = 8
  config.augment.scale = (1.0, 1.0)
  config.optim.optimizer = "sgd"
  config.optim.lr = 0.02
  config.optim.momentum = 0.9
  config.optim.weight_decay = 1e-4
  config.optim.schedule = "step"
  config.optim.warmup_steps = WARMUP
  span = recipe["steps"] - WARMUP
  config.optim.milestones = tuple((step - WARMUP) / span for step in recipe["lower_at"])
  # As in Detectron: the stem and the first stage stay as ImageNet left them.
  config.optim.freeze = ("backbone/conv1", *(f"backbone/layer1_{i}" for i in range(3)))
  config.eval_every = 10_000
  config.checkpoint_every = 2500
  return config
