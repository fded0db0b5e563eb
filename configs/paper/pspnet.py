"""PSPNet on Pascal VOC, Cityscapes and ADE20K (Zhao et al. 2017), as in the authors' hszhao/semseg.

  jseg train --config=paper/pspnet:voc --config.data.root=VOCdevkit \
      --config.init_from=torchvision:resnet101 --workdir=runs/pspnet_voc
  jseg train --config=paper/pspnet:cityscapes --config.data.root=cityscapes \
      --config.init_from=torchvision:resnet101 --workdir=runs/pspnet_cityscapes
  jseg train --config=paper/pspnet:ade20k --config.data.root=ade20k \
      --config.init_from=torchvision:resnet50 --workdir=runs/pspnet_ade20k

The authors' numbers at one scale: .7907 mean IoU on VOC 2012 val (PSPNet-101), .7863 on Cityscapes
val (PSPNet-101), .4189 on ADE20K val (PSPNet-50); theirs slide a window of the crop's size over the
image and its mirror image, as `jseg evaluate --protocol pspnet --set inference.scales=(1.0,)` does
with data.size at the crop's. Their ResNets begin with three 3x3 convolutions, torchvision's with
one 7x7: the stem and what follows it begin anew. Not run here.

ADE20K is a folder (`train/images`, `train/masks`, ...) of ADEChallengeData2016's images and masks,
where `classes.json` has the 150 names, `"mask_values": [1, 2, ..., 150]` and `"ignore_label": 0`.
"""

from typing import Any

import jseg.config

VARIANTS: dict[str, dict[str, Any]] = {
  # Epochs of the authors, in steps.
  "voc": {"backbone": "resnet101", "steps": 33_000, "crop": 473, "size": (513, 513)},
  "cityscapes": {"backbone": "resnet101", "steps": 37_200, "crop": 713, "size": (1024, 2048)},
  "ade20k": {"backbone": "resnet50", "steps": 126_000, "crop": 473, "size": (683, 683)},
}
ABOUT = {
  "voc": jseg.config.About(
    data="Pascal VOC's VOCdevkit, with SegmentationClassAug",
    weights="torchvision:resnet101, or another file of ImageNet's",
    published=".7907 mean IoU on VOC 2012 val, at one scale",
    protocol="pspnet",
  ),
  "cityscapes": jseg.config.About(
    data="Cityscapes' leftImg8bit and gtFine",
    weights="torchvision:resnet101, or another file of ImageNet's",
    published=".7863 mean IoU on Cityscapes val, at one scale",
    protocol="pspnet",
  ),
  "ade20k": jseg.config.About(
    data="ADE20K as a folder data set, `ade20k`",
    weights="torchvision:resnet50, or another file of ImageNet's",
    published=".4189 mean IoU on ADE20K val, at one scale",
    protocol="pspnet",
  ),
}


def get_config(variant="voc"):
  """The configuration for one of the data sets."""
  recipe = jseg.config.variant(VARIANTS, variant)
  config = jseg.config.default("pspnet", backbone=recipe["backbone"])
  config.steps = recipe["steps"]
  config.data.name = "folder" if variant == "ade20k" else variant
  config.data.train_split = "train_aug" if variant == "voc" else "train"
  config.data.size = recipe["size"]
  config.data.batch_size = 16
  config.data.eval_batch_size = 4
  config.augment.crop = (recipe["crop"], recipe["crop"])
  config.augment.scale = (0.5, 2.0)
  config.augment.rotation = 10.0
  config.augment.blur = 1.0
  config.aux_weights.aux = 0.4
  config.optim.optimizer = "sgd"
  config.optim.lr = 0.01
  config.optim.momentum = 0.9
  config.optim.weight_decay = 1e-4
  config.optim.schedule = "poly"
  config.optim.power = 0.9
  config.optim.head_lr = 10.0
  config.eval_every = 3000
  config.checkpoint_every = 1000
  return config
