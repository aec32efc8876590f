"""Where and when something was measured. No figure stands without it."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path


def python() -> str:
    """This Python: version, compiler, whether its build was guided by a profile."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    guided = "--enable-optimizations" in arguments
    linked = ", LTO" if "--with-lto" in arguments else ""
    return f"CPython {platform.python_version()}, {platform.python_compiler()}, {'' if guided else 'no '}PGO{linked}"


def short() -> str:
    """Its minor version."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def processor() -> str:
    """The processor's name, as far as the kernel says."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.machine() or "unknown"


def caches() -> str:
    """The sizes of the first processor's caches for data, as far as the kernel says."""
    found = [
        f"L{(one / 'level').read_text().strip()} {(one / 'size').read_text().strip()}"
        for one in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
        if (one / "type").read_text().strip() != "Instruction"
    ]
    return "caches here: " + (", ".join(found) or "unknown")


def here() -> str:
    """The machine, in a line."""
    return f"{os.cpu_count()} x {processor()}, {platform.system()} {platform.release().partition('-')[0]}"


def now() -> str:
    """The date and the hour, UTC."""
    return f"{datetime.now(tz=UTC):%Y-%m-%d %H:%M} UTC"


def load() -> str:
    """How busy the machine has been for a minute; our own work counts, too."""
    return f"{os.getloadavg()[0]:.1f}"
