"""`python -m llgbm_nb.report`: see `run`."""

import sys

from .run import main

sys.exit(main())
