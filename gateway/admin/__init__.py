"""Watch a gateway, and tune it while it runs."""
