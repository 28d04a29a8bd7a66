"""`python -m tamis` is the command `tamis`, of the Python that runs it."""

import sys

from tamis.cli import main

sys.exit(main())
