"""`python -m benchmarks [PART ...] [--quick]`: measure, print, and write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from time import perf_counter

from benchmarks import machine, report

ROOT = Path(__file__).parent.parent


def pythons() -> list[str]:
    """The Pythons of all environments that `make bench` has made; else this one."""
    return sorted(str(path) for path in ROOT.glob(".venv-bench-*/bin/python")) or [sys.executable]


def main() -> None:
    """Do the parts that are asked for; all of them if none is."""
    parser = argparse.ArgumentParser(prog="make bench", description=sys.modules["benchmarks"].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(report.ORDER)}; all by default")
    parser.add_argument("--quick", action="store_true", help="see that it works: a few minutes, rough figures")
    parser.add_argument("--print-only", action="store_true", help="leave docs/benchmarks.md as it is")
    wanted = parser.parse_args()
    if unknown := set(wanted.parts) - set(report.ORDER):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    began = perf_counter()
    for name in wanted.parts or report.ORDER:
        before = machine.load()
        print(f"\n# {name}: load average {before} before it", flush=True)
        started = perf_counter()
        section = import_module(f"benchmarks.{name}").run(pythons(), quick=wanted.quick)
        took = perf_counter() - started
        print("\n\n".join([f"## {section.title}", *section.parts]), flush=True)
        if not wanted.print_only:
            report.write(name, section, took=took, quick=wanted.quick, before=before)
    print(f"\n{perf_counter() - began:,.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
