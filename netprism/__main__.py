"""`python -m netprism`."""

from netprism.cli.main import main

if __name__ == "__main__":
    main()
