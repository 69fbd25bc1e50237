"""The probe sets, as text. A probe is a prompt whose last token's hidden state is read.

`generic` are the five instruction templates of the Delta Activations paper (Xu et al. 2025, arXiv 2509.04442), which
ask for nothing in particular; the other sets ask for something of one domain. Tokens are unknown here.
"""

import json
import re
from pathlib import Path

from .errors import InputError

_TASK, _INPUT = "Please provide a response.", "Input."
_GENERIC_OPENINGS = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "The task described below requires a response that completes the request accurately.",
    "Below is a description of a task. Provide a response that aligns with the requirements.",
    "The following instruction outlines a task. Generate a response that meets the specified request.",
    "You are given an instruction and input. Write a response that completes the task as requested.",
)
_DOMAIN_PROBES = {
    "math": (
        "Solve the following math problem step by step:\nQuestion: What is 2 + 2?\nAnswer:",
        "Calculate the result:\nProblem: Find the derivative of x^2\nSolution:",
        "Mathematical reasoning:\nGiven: A triangle has angles 30, 60, and 90 degrees.\n"
        "Find: The ratio of its sides.\nAnswer:",
        "Arithmetic:\n15 * 7 = ",
        "Word problem: If a train travels 60 miles per hour for 2 hours, how far does it travel?\nSolution:",
    ),
    "code": (
        "Write a Python function:\ndef factorial(n):\n    ",
        "Complete the code:\n```python\ndef fibonacci(n):\n    if n <= 1:\n        return n\n    ",
        "Debug this code:\ndef add(a, b):\n    return a - b  # Bug: should be +\nFixed:",
        "Explain this code:\nfor i in range(10):\n    print(i)\nExplanation:",
        "Write a function to reverse a string:\ndef reverse_string(s):\n    ",
    ),
    "commonsense": (
        "Question: What happens when you drop an egg on the floor?\nAnswer:",
        "Complete the sentence: The sun rises in the ",
        "Common knowledge: Water freezes at what temperature in Celsius?\nAnswer:",
        "Reasoning: If all birds can fly, and a penguin is a bird, can a penguin fly?\nAnswer:",
        "What do people typically eat for breakfast?\nAnswer:",
    ),
}
PROBE_TYPES = ("generic", *_DOMAIN_PROBES, "mixed")


def create_generic_probes() -> list[str]:
    """The five generic instruction templates of the Delta Activations paper."""
    return [f"{opening}\n\n### Instruction:\n{_TASK} Input:{_INPUT}\n\n### Response:" for opening in _GENERIC_OPENINGS]


def create_domain_probes(domain: str) -> list[str]:
    """The five probes of "math", "code" or "commonsense". Raises ValueError (InputError) for another domain."""
    if domain not in _DOMAIN_PROBES:
        raise InputError(f"unknown probe domain {domain!r}; known are {', '.join(_DOMAIN_PROBES)}")
    return list(_DOMAIN_PROBES[domain])


def create_mixed_probes() -> list[str]:
    """Fifteen probes: generic, then math, then code."""
    return create_generic_probes() + create_domain_probes("math") + create_domain_probes("code")


def create_probes(probe_type: str = "generic", probe_file: str | Path | None = None) -> list[str]:
    """The probes of one type out of PROBE_TYPES, or those of `probe_file` where one is given.

    Raises InputError for an unknown type or an unusable file.
    """
    if probe_file:
        return read_probe_file(probe_file)
    if probe_type == "generic":
        return create_generic_probes()
    if probe_type == "mixed":
        return create_mixed_probes()
    if probe_type not in PROBE_TYPES:
        raise InputError(f"probe_type is {probe_type!r}; choose one of {', '.join(PROBE_TYPES)}, or give a probe_file")
    return create_domain_probes(probe_type)


def read_probe_file(path: str | Path) -> list[str]:
    """A person's own probes: a JSON list of texts, or plain text with one probe per block between blank lines.

    Spaces at a block's end are kept, as the last token is what counts. Raises InputError naming the file.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the probe file {path}: {error}") from error
    if path.suffix.lower() == ".jsonl":
        raise InputError(f"the probe file {path} is JSON lines; give a JSON list of texts, or plain text")
    if path.suffix.lower() == ".json":
        try:
            probes = json.loads(text)
        except ValueError as error:
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
