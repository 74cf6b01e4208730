"""The exception whose message is meant for the user as it is."""


class UserError(Exception):
    """Bad input or a bad situation, in one clear sentence.

    The sentence names the file, key or flag, the actual value and what would be accepted. The command line
    prints it without a traceback and exits with 2.
    """
