"""Trains a network: the same as `jseg train`, from a clone (python train.py --help)."""

import sys

from jseg.cli import main

if __name__ == "__main__":
  main(["train", *sys.argv[1:]])
