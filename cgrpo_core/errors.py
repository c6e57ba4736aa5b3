"""Errors that a user can mend: a message that names what is wrong, and a hint that names the way out."""

from typing import ClassVar


class UserError(Exception):
    """A mistake in the input or a limit that was reached; shown as message and hint, never as a traceback."""

    exit_code: ClassVar[int] = 2  # of the command that it ends before anything has run

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str], dict[str, object]]:
        return type(self), (self.message, self.hint), self.__dict__  # it rises out of remote tasks unchanged
