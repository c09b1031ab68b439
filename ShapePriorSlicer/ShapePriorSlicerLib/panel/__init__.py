"""What the module's panel shows and does, on Slicer's application."""
