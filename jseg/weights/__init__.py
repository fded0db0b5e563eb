"""Weights that were trained elsewhere: read, renamed, reshaped, and put into a network."""

from jseg.weights.channels import adapt_kernel, image_kernels
from jseg.weights.convert import LayerTarget, convert
from jseg.weights.find import Found, find_network, read_tensors, recognize
from jseg.weights.load import Loaded, load, source_variables
from jseg.weights.published import TORCHVISION_FILES, get_published
from jseg.weights.source_model import Preprocessing, SourceModel, fold_preprocessing
from jseg.weights.transfer import Transfer, transfer

__all__ = [
  "TORCHVISION_FILES",
  "Found",
  "LayerTarget",
  "Loaded",
  "Preprocessing",
  "SourceModel",
  "Transfer",
  "adapt_kernel",
  "convert",
  "find_network",
  "fold_preprocessing",
  "get_published",
  "image_kernels",
  "load",
  "read_tensors",
  "recognize",
  "source_variables",
  "transfer",
]
