"""Measurements that anybody can repeat: `make bench`, or one part of it, `make bench ARGS="speed --quick"`.

What is measured is the public interface (but in `profile`), from outside, beside what users would pick instead. Nothing
here is installed with the library. The results stand in docs/benchmarks.md, which `make bench` writes.

    speed      what a call costs, of each contender, in each workload, on each loop and Python
    profile    where the time of a call of ours goes
    faults     what the contenders do when things go wrong
    blast      one of three upstreams falls ill, under load: who notices
    http       a GET through the gateway, and through a session of aiohttp
    catalog    the demo's catalog and a bare aiohttp one, under wrk
    growth     what a call costs when there is more of everything
    guard      fails when a call has become dearer; `.ci/run` runs it
"""
