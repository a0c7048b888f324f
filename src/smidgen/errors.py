"""The two errors a user can cause; the command line turns them into one or two lines and an exit code."""


class SmidgenError(Exception):
    """Something given by the user cannot be used; the message says what, what was expected, what to do."""

    exit_code = 1


class UsageError(SmidgenError):
    """A request that makes no sense as written: an unknown name, a bad value, a wrong combination."""

    exit_code = 2
