"""The verbs of the command, a module each: ``add_parser`` lists the options, ``run`` does the work.

Whatever takes time to import (torch, transformers, the library) is imported when a verb runs.
"""
