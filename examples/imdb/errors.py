"""What the user can put right: one sentence, exit status 2."""


class UsageError(Exception):
    """Raised for an argument, a file or a package that the user has to change; the message says how."""
