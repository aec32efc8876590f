"""HTTP upstreams."""
