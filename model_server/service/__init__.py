"""The backend as a server process: wire format, sessions, limits, app."""
