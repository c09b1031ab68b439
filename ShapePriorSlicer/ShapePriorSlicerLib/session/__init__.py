"""One structure being reconstructed: edits become requests, answers the live model."""
