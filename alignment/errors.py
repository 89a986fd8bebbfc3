"""The exceptions that speak to a person."""


class InputError(ValueError):
    """Something a person can put right: a config value, a file, a checkpoint, a mesh.

    The message names the value, the need and a way out. The launcher prints it without a traceback and exits with
    code 2; any other exception is a crash (exit code 1).
    """


class Stopped(Exception):
    """Work that ended early with all it had done saved: the same command goes on from there (exit code 75)."""
