"""``python -m hfcompress_cli``: the command ``hfcompress``."""

from hfcompress_cli.application import program

program()
