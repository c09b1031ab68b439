"""The backend of ShapePriorSlicer: learned shape priors, fitted to sparse annotations.

Importing this package pulls in neither torch nor the network; it knows nothing of Slicer.
"""

__version__ = "0.1.0"
