"""The one kind of error that is meant for a person: a sentence, shown without a traceback in notebooks.

What went wrong inside the program is an ordinary exception, and keeps its traceback.
"""


def printable(text: object) -> str:
    """`text` with what a terminal acts on, or no file can hold, as an escape: "\\x1b", "\\n", "\\ud800"."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class InputError(ValueError):
    """Something the caller gave is wrong. The message names the thing and says what to do; it is one `printable` line.

    Texts of adapters may be in it, whatever is in these.
    """

    def __init__(self, message: object):
        super().__init__(printable(message))

    def _render_traceback_(self) -> list[str]:
        # IPython calls this instead of formatting a traceback.
        return [f"{type(self).__name__}: {self}"]


def first_sentence(error: Exception) -> str:
    """The first line of an error's message, `printable`, ended with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return printable(lines[0][:300].rstrip(".:")) + "."
