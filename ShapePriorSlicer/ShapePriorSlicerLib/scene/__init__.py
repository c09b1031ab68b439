"""What touches MRML nodes: choices, annotations, structures, models, segments."""
