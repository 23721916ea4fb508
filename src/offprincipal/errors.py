"""One family of errors. Each says what was asked, what was found and what to do next."""


class OffprincipalError(Exception):
    """Any failure that a user can mend. The command line prints it without a traceback.

    Args:
        asked: what the user wanted, e.g. ``"open checkpoint 'runs/a'"``.
        found: what stood in the way, e.g. ``"the folder is empty"``.
        do_next: what to do about it, e.g. ``"give a folder with .safetensors files"``.

    >>> str(InputError("open 'a'", "the folder is empty", "give a folder with .safetensors files"))
    "cannot open 'a': the folder is empty; give a folder with .safetensors files"
    """

    exit_code = 3

    def __init__(self, asked: str, found: str, do_next: str):
        self.asked, self.found, self.do_next = asked, found, do_next
        super().__init__(asked, found, do_next)  # all three, so that the error survives pickling between processes

    def __str__(self) -> str:
        return f"cannot {self.asked}: {self.found}; {self.do_next}"


class InputError(OffprincipalError, ValueError):
    """The input cannot be read or does not fit: exit code 3."""


class UsageError(OffprincipalError, ValueError):
    """The request itself makes no sense: exit code 2."""

    exit_code = 2


class CheckFailed(OffprincipalError, RuntimeError):
    """Everything was read, and a check that was asked for did not hold: exit code 1."""

    exit_code = 1
