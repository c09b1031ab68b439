"""``python -m model_server``."""

from model_server.commands.main import main

if __name__ == "__main__":
    main()
