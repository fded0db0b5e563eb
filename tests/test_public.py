"""What importing the library, or a block of it, brings along."""

import subprocess
import sys

import pytest

HEAVY = ("jseg.data", "tensorflow_datasets", "tensorflow", "grain", "cv2", "orbax.checkpoint")


@pytest.mark.parametrize(
  "statement", ["import jseg", "from jseg.nn import Conv", "from jseg.nn.detection import nms"]
)
def test_importing_a_block_does_not_import_the_data_and_checkpoint_stack(statement):
  script = f"import sys\n{statement}\nprint([m for m in {HEAVY} if m in sys.modules])"
  command = [sys.executable, "-c", script]
  result = subprocess.run(command, capture_output=True, text=True, check=True)
  assert result.stdout.strip() == "[]"
