"""Image readers: networks that tell one organ's surface, and their doubt, from an image."""
