"""DeepLab V3 on Pascal VOC (Chen et al. 2017, arXiv:1706.05587, sections 4 and 4.2).

Two phases: at output stride 16 with live batch norm, then at 8 with its statistics frozen. The
second one, on train and val, is for the test server; weights don't depend on the stride.

  jseg train --config=paper/deeplab_v3:phase1 --config.data.root=VOCdevkit \
      --config.init_from=torchvision:resnet101 --workdir=runs/deeplab_v3
  jseg train --config=paper/deeplab_v3:phase2 --config.data.root=VOCdevkit \
      --config.init_from=runs/deeplab_v3 --workdir=runs/deeplab_v3_phase2

The paper's numbers: 77.21 mean IoU on VOC 2012 val after phase 1 at stride 16, 78.51 evaluated at
stride 8, and 79.77 at several scales and mirrored (`jseg evaluate --protocol deeplab`). Its second
phase trains on the official trainval set; here it is train_aug again, so that val still measures.
The paper's batch norm keeps .9997 of its statistics at a step, ours .9. Not run here.
"""

import jseg.config

VARIANTS = {
  "phase1": {"output_stride": 16, "norm": "batch"},
  "phase2": {"output_stride": 8, "norm": "frozen_batch"},
}
ABOUT = {
  "phase1": jseg.config.About(
    data="Pascal VOC's VOCdevkit, with SegmentationClassAug",
    weights="torchvision:resnet101, or another file of ImageNet's",
    published="77.21 mean IoU on VOC 2012 val at stride 16, 78.51 at stride 8",
    protocol="shrink",
  ),
  "phase2": jseg.config.About(
    data="Pascal VOC's VOCdevkit, with SegmentationClassAug",
    weights="the run of phase1",
    protocol="shrink",
  ),
}


def get_config(variant="phase1"):
  """The configuration of a phase."""
  config = jseg.config.default("deeplab_v3", **jseg.config.variant(VARIANTS, variant))
  config.steps = 30_000
  config.data.name = "voc"
  config.data.train_split = "train_aug"
  config.data.size = (513, 513)
  config.data.batch_size = 16
  config.data.eval_batch_size = 4
  config.augment.crop = (513, 513)
  config.augment.scale = (0.5, 2.0)
  config.optim.optimizer = "sgd"
  config.optim.lr = 0.007 if variant == "phase1" else 0.001
  config.optim.momentum = 0.9
  config.optim.weight_decay = 1e-4
  config.optim.schedule = "poly"
  config.optim.power = 0.9
  config.eval_every = 3000
  config.checkpoint_every = 1000
  return config
