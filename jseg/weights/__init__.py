"""Weights that were trained elsewhere: read, renamed, reshaped, and put into a network."""

from jseg.weights.convert import LayerTarget, convert
from jseg.weights.files import read_tensors
from jseg.weights.load import Loaded, load, recognize, source_variables
from jseg.weights.source_model import Preprocessing, SourceModel, fold_preprocessing
from jseg.weights.transfer import Transfer, transfer

__all__ = [
  "LayerTarget",
  "Loaded",
  "Preprocessing",
  "SourceModel",
  "Transfer",
  "convert",
  "fold_preprocessing",
  "load",
  "read_tensors",
  "recognize",
  "source_variables",
  "transfer",
]
