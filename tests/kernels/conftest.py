"""Makes the helpers beside this file importable: `kernel_rig` and `kernel_golden`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
