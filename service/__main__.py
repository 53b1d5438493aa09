"""``python -m service`` is the command ``attribution-service``."""

from service.cli import main

if __name__ == "__main__":
    main()
