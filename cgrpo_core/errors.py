"""Errors that a user can mend: a message that names what is wrong, and a hint that names the way out."""


class UserError(Exception):
    """A mistake in the input or a limit that was reached; shown as message and hint, never as a traceback."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str], dict[str, object]]:
        return type(self), (self.message, self.hint), self.__dict__  # it rises out of remote tasks unchanged
