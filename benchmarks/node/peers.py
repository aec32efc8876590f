"""opossum and cockatiel, where node and npm are installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def speed(*, quick: bool) -> dict[str, Any]:
    """The figures of the workloads; without Node, why there are none."""
    return run("speed.mjs", "15" if quick else "60")


def faults() -> dict[str, Any]:
    """What they do when things go wrong; without Node, why that is not known."""
    return run("faults.mjs")


def run(script: str, *arguments: str) -> dict[str, Any]:
    """What a script of ours prints."""
    node = shutil.which("node")
    if node is None:
        return {"why": "node is not installed here"}
    try:
        modules = installed()
        order = [node, HERE / script, modules, *arguments]
        done = subprocess.run(order, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        return {"why": f"it could not be run ({type(error).__name__})"}
    return json.loads(done.stdout)


def installed() -> Path:
    """A folder with the pinned packages, in the benchmarks' own environment. Raises CalledProcessError."""
    folder = Path(sys.prefix) / "node"
    wanted = (HERE / "package.json").read_text()
    if not (folder / "node_modules").exists() or (folder / "package.json").read_text() != wanted:
        folder.mkdir(exist_ok=True)
        (folder / "package.json").write_text(wanted)
        npm = shutil.which("npm") or "npm"
        order = [npm, "install", "--silent", "--no-package-lock", "--no-audit", "--no-fund"]
        subprocess.run(order, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return folder
