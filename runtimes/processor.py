"""The name of this machine's processor, for the fingerprints of back-ends that run on it."""

import platform
from pathlib import Path

__all__ = ["processor_name"]


def processor_name() -> str:
    """Model name and, where the system lists them, the vector extensions that kernels are chosen by."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in fields.items()}
    flags = [flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx"))]
    return " ".join([facts.get("model name", platform.machine()), *sorted(flags)])
