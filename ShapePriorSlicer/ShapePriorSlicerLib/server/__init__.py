"""The server that fits: starting it, talking to it, what it needs, what it offers."""
