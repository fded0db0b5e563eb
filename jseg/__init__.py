"""jseg: the classic segmentation networks on JAX."""

__version__ = "0.1.0"
