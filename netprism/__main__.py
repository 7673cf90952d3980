"""`python -m netprism`."""

from netprism.cli import main

if __name__ == "__main__":
    main()
