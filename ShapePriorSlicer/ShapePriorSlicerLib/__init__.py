"""What the module does, without Qt widgets and without torch."""
