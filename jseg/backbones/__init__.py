"""Classifiers whose features networks build on."""

from jseg.backbones.alexnet import AlexNet
from jseg.backbones.googlenet import GoogLeNet
from jseg.backbones.resnet import ResNet
from jseg.backbones.vgg import VGG16

__all__ = ["VGG16", "AlexNet", "GoogLeNet", "ResNet"]
