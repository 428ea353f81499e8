"""The reliability scorecard: `python -m tests.reliability --quick` (minutes) or `--full` (up to an hour); raw counts go to
reports/, of the full run to reliability.json, which the README tells.

In: nothing but a seed. Out: a table of lines, each so many right of so many asked. What a line does is in the module of its group; LINES in lines.py
says which. Lines share the tests' models and media, and most of them a page in a process of its own (site.py).
"""

import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", HYPOTHESIS_STORAGE_DIRECTORY=os.devnull)  # which keeps nothing
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests")) if path not in sys.path]
