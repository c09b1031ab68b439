"""Pictures of results and of shape spaces, drawn without OpenGL."""
