"""The command line: one file for each command, ``main`` that lists them."""
