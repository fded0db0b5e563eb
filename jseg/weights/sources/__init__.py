"""The sources of weights. To add one: a file here, named as people call it, and a line below.

A source's `recognize` tells its networks by the names and shapes of their tensors.
"""

from collections.abc import Callable

from jseg.weights.source_model import SourceModel
from jseg.weights.sources import (
  drsleep,
  kazuto1011,
  semseg,
  smp,
  torchvision_classifiers,
  torchvision_detection,
  torchvision_segmentation,
  wkentaro,
)
from jseg.weights.sources.names import Tensors

# In the order in which they are asked, and what they know, for messages. Classifiers come last:
# RefineNet has all that a ResNet has, and more.
SOURCES: dict[str, Callable[[Tensors], SourceModel | None]] = {
  "torchvision's fcn_resnet and deeplabv3_resnet": torchvision_segmentation.recognize,
  "torchvision's maskrcnn_resnet_fpn and keypointrcnn_resnet_fpn": torchvision_detection.recognize,
  "segmentation_models.pytorch's Unet on ResNet": smp.recognize,
  "wkentaro/pytorch-fcn": wkentaro.recognize,
  "kazuto1011/deeplab-pytorch (V2, V3)": kazuto1011.recognize,
  "hszhao/semseg's PSPNet": semseg.recognize,
  "DrSleep/refinenet-pytorch": drsleep.recognize,
  "ImageNet classifiers of torchvision and timm (alexnet, vgg16, vgg16_bn, googlenet, resnet18 to "
  "152)": torchvision_classifiers.recognize,
}
