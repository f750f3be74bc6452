"""The one exception of the library."""


class CompressionError(ValueError):
    """Raised for input that cannot be compressed, trained or measured as asked.

    The message names the value, the place and the remedy, and nothing has been changed when it is raised.
    """
