"""Policies as a file: TOML, read all or nothing, read again while the process runs.

    [upstreams.ratings.bulkhead]
    limit = 40

`Gateway.from_file(path)` makes a gateway of one. These are its parts: `load` and `loads` give the policies in a file or
a text, `dumps` writes them, `schema` is the JSON Schema for editors.
"""

from gateway.config.policies import dumps, load, loads
from gateway.config.schema import schema

__all__ = ["dumps", "load", "loads", "schema"]
