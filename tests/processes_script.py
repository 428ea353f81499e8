"""What test_processes.py lets torchrun start: every argument is a command line of its own, run one after the other by all processes."""

import sys

from videolcm.__main__ import main
from videolcm.processes import together

with together():
    for line in sys.argv[1:]:
        code = main(line.split())
        if code:
            sys.exit(code)
