"""``python -m hfcompress``: the command ``hfcompress``."""

from hfcompress_cli.application import program

program()
