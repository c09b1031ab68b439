"""The browser front-end: the same library as the desktop module, on trame-slicer."""
