"""Files in and out: markups, surfaces, volumes."""
