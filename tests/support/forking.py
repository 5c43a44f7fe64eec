"""Where tests find tools/forked.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'tools'))

from forked import start  # noqa: E402

__all__ = ['start']
