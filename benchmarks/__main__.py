"""``python -m benchmarks``; scripts/bench installs what it needs first."""

import sys

from benchmarks.cli import main

sys.exit(main(sys.argv[1:]))
