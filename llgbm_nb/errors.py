"""The one kind of error that is meant for a person: a sentence, shown without a traceback in notebooks.

What went wrong inside the program is an ordinary exception, and keeps its traceback.
"""


class InputError(ValueError):
    """Something the caller gave is wrong. The message names the thing and says what to do."""

    def _render_traceback_(self) -> list[str]:
        # IPython calls this instead of formatting a traceback.
        return [f"{type(self).__name__}: {self}"]


def first_sentence(error: Exception) -> str:
    """The first line of an error's message, ended with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:300].rstrip(".:") + "."
