"""Watch a gateway, and tune it while it runs.

from gateway import admin

server = await admin.serve(gate, port=8080)
"""

from gateway.admin.server import Admin, serve

__all__ = ["Admin", "serve"]
