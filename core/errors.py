"""The one exception whose message is meant for the user as it stands."""


class UserError(Exception):
    """Bad input or a bad state of the world, in one clear sentence.

    The sentence names the file, key or flag, the value found and what would be accepted. The
    command line prints it without a traceback and exits with 2.
    """
