"""``python -m hfcompress_cli``: the command ``hfcompress``."""

import sys

from hfcompress_cli.application import main

sys.exit(main())
