"""What the commands do, from files to files; nothing here knows of a terminal."""
