"""Prometheus' text format 0.0.4, read as its specification has it, strictly."""

import re

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (\S+)")
_PLAIN = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

Labels = tuple[tuple[str, str], ...]


def samples(text: str) -> dict[tuple[str, Labels], float]:
    """Value by metric and labels.

    Every line but comments must be a sample, every metric have its type once before its samples, which stand together,
    and no sample come twice.
    """
    assert text.endswith("\n")
    found: dict[tuple[str, Labels], float] = {}
    typed: list[str] = []
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert kind == "gauge" and name not in typed
            typed.append(name)
        elif not line.startswith("# HELP "):
            matched = _SAMPLE.fullmatch(line)
            assert matched is not None, line
            name, labels, value = matched.groups()
            assert name == typed[-1], line
            each = (name, tuple(_label(label) for label in re.findall(_LABEL, labels or "")))
            assert each not in found, line
            found[each] = float(value)
    return found


def _label(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, re.sub(r'\\["\\n]', lambda escape: _PLAIN[escape[0]], value[1:-1])
