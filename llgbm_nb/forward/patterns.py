"""Regular expressions of an adapter's config: tried out in a process of their own before PEFT runs them here.

One that backtracks for ever would stop the run, and neither Python's `re` nor PEFT has a limit of time.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache

from ..errors import InputError

SECONDS = 5  # for all patterns of a config on all modules of a base; a usual one takes milliseconds
_TRY_OUT = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for form in ("({})$", r"(.*\\.)?({})$", r"(?:^|.*?\\.){}\\.(?P<idx>\\d+)\\."):
        for name in names:
            re.match(form.format(pattern), name)
"""


def check_patterns(config, names: Iterable[str]) -> None:
    """Raises InputError if one of a PEFT config's patterns takes longer than SECONDS on modules with these names."""
    texts = [getattr(config, key, None) for key in ("target_modules", "exclude_modules", "layers_pattern")]
    found = [text for text in texts if isinstance(text, str)]
    for several in (texts[2], *(getattr(config, key, None) for key in ("rank_pattern", "alpha_pattern"))):
        found += [text for text in several if isinstance(text, str)] if isinstance(several, list | dict) else []
    repeating = tuple(text for text in found if re.search(r"[*+?{]", text))  # any other is quick
    if repeating and not _ends(repeating, tuple(names)):
        raise InputError(
            f"a regular expression in its config takes for ever, such as {repeating[0][:60]!r}; simplify it"
        )


@cache
def _ends(patterns: tuple[str, ...], names: tuple[str, ...]) -> bool:
    command = [sys.executable, "-I", "-S", "-c", _TRY_OUT]
    try:  # what is wrong with a pattern, PEFT says
        subprocess.run(command, input=json.dumps([patterns, names]).encode(), capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True
