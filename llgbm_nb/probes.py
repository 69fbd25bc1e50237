"""The probe sets, as text: `probes.json` has them. A probe is a prompt whose last token's hidden state is read.

`generic` are the five instruction templates of the Delta Activations paper (Xu et al. 2025, arXiv 2509.04442), which
ask for nothing in particular; `math`, `code` and `commonsense` ask for something of one domain. `answers` are the demo
base's own answers to all of these as they grow (`uses.write_answers`), for training targets. Tokens are unknown here.
"""

import json
import re
from pathlib import Path

from .errors import InputError

_SETS: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_DOMAINS = ("math", "code", "commonsense")
SHORT_TYPES = ("generic", *_DOMAINS, "mixed")  # of few probes: what 05_evidence compares
PROBE_TYPES = (*SHORT_TYPES, "answers")


def create_generic_probes() -> list[str]:
    """The five generic instruction templates of the Delta Activations paper."""
    return list(_SETS["generic"])


def create_domain_probes(domain: str) -> list[str]:
    """The five probes of "math", "code" or "commonsense". Raises ValueError (InputError) for another domain."""
    if domain not in _DOMAINS:
        raise InputError(f"unknown probe domain {domain!r}; known are {', '.join(_DOMAINS)}")
    return list(_SETS[domain])


def create_mixed_probes() -> list[str]:
    """Fifteen probes: generic, then math, then code."""
    return [probe for name in ("generic", "math", "code") for probe in _SETS[name]]


def create_probes(probe_type: str = "generic", probe_file: str | Path | None = None) -> list[str]:
    """The probes of one type out of PROBE_TYPES, or those of `probe_file` where one is given.

    Raises InputError for an unknown type or an unusable file.
    """
    if probe_file:
        return read_probe_file(probe_file)
    if probe_type not in PROBE_TYPES:
        raise InputError(f"probe_type is {probe_type!r}; choose one of {', '.join(PROBE_TYPES)}, or give a probe_file")
    return create_mixed_probes() if probe_type == "mixed" else list(_SETS[probe_type])


def read_probe_file(path: str | Path) -> list[str]:
    """A person's own probes: a JSON list of texts, or plain text with one probe per block between blank lines.

    Spaces at a block's end are kept, as the last token is what counts. Raises InputError naming the file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError(f"the probe file {path} is no file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the probe file {path}: {error}") from error
    if path.suffix.lower() == ".jsonl":
        raise InputError(f"the probe file {path} is JSON lines; give a JSON list of texts, or plain text")
    if path.suffix.lower() == ".json":
        try:
            probes = json.loads(text)
            json.dumps(probes, ensure_ascii=False).encode()  # refuses half of a surrogate pair
        except (ValueError, RecursionError) as error:
            raise InputError(f"the probe file {path} is not valid JSON: {error}") from error
        if not isinstance(probes, list) or not all(isinstance(probe, str) for probe in probes):
            raise InputError(f"the probe file {path} must hold a JSON list of texts")
    else:
        probes = [block.strip("\r\n") for block in re.split(r"\r?\n[ \t]*(?:\r?\n[ \t]*)*\r?\n", text)]
        probes = [probe for probe in probes if probe.strip()]
    if not probes or not all(probe.strip() for probe in probes):
        raise InputError(f"the probe file {path} holds no probes, or an empty one")
    if len(set(probes)) < len(probes):
        raise InputError(f"the probe file {path} holds the same probe twice; each one counts once in the mean")
    return probes
