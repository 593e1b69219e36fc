"""Lets the tests of this folder import `toy_training`, which also runs as a script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
