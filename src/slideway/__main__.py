"""`python -m slideway`."""

from slideway.cli.main import main

if __name__ == "__main__":
    main()
