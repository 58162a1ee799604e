"""Activation codecs: what comes back, what it costs, what is refused."""
