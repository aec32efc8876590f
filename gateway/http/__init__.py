"""HTTP upstreams: `gate.http(name, url)`. Only here and at the edges aiohttp is imported, by the first `gate.http`."""
