"""The one kind of error that is meant for a person: a sentence, shown without a traceback in notebooks."""


class InputError(ValueError):
    """Something the caller gave is wrong. The message names the thing and says what to do."""

    def _render_traceback_(self) -> list[str]:
        # IPython calls this instead of formatting a traceback.
        return [f"{type(self).__name__}: {self}"]
