"""`python -m civman`."""

import sys

from civman.cli.app import main

sys.exit(main())
