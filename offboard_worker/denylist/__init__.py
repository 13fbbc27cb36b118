"""The denylist: the facts that the proxy refuses by, their projection in Redis, and a proxy's replica of them."""
