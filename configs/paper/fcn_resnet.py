"""torchvision's FCN on ResNet (pytorch/vision references/segmentation), on Pascal VOC.

  jseg train --config=paper/fcn_resnet:fcn_resnet50 --config.data.root=VOCdevkit \
      --config.init_from=torchvision:resnet50 --workdir=runs/fcn_resnet50

Also `:fcn_resnet101`. torchvision trains on COCO's images with VOC's 20 categories for 30 epochs,
and reports 60.5 and 63.7 mean IoU on COCO val 2017; this is the same on VOC's images, which has no
such number. Its auxiliary head has ten times the rate; here all have the same. Not run here.
"""

import jseg.config

VARIANTS = {"fcn_resnet50": "resnet50", "fcn_resnet101": "resnet101"}  # the backbones
ABOUT = {
  "fcn_resnet50": jseg.config.About(
    data="Pascal VOC's VOCdevkit, with SegmentationClassAug",
    weights="torchvision:resnet50, or another file of ImageNet's",
    published="60.5 mean IoU on COCO val 2017, trained on COCO's images",
    protocol="shrink",
  ),
  "fcn_resnet101": jseg.config.About(
    data="Pascal VOC's VOCdevkit, with SegmentationClassAug",
    weights="torchvision:resnet101, or another file of ImageNet's",
    published="63.7 mean IoU on COCO val 2017, trained on COCO's images",
    protocol="shrink",
  ),
}


def get_config(variant="fcn_resnet50"):
  """The configuration with either backbone."""
  backbone = jseg.config.variant(VARIANTS, variant)
  config = jseg.config.default("fcn_resnet", backbone=backbone, aux=True)
  config.steps = 9900  # 30 epochs of train_aug
  config.data.name = "voc"
  config.data.train_split = "train_aug"
  config.data.size = (520, 520)
  config.data.batch_size = 32
  config.data.eval_batch_size = 4
  config.augment.crop = (480, 480)
  config.augment.scale = (0.5, 2.0)
  config.optim.optimizer = "sgd"
  config.optim.lr = 0.02
  config.optim.momentum = 0.9
  config.optim.weight_decay = 1e-4
  config.optim.schedule = "poly"
  config.optim.power = 0.9
  config.eval_every = 1000
  config.checkpoint_every = 500
  return config
