"""`python -m briton`: the same as the `briton` command."""

from briton.cli import main

if __name__ == "__main__":
    main()
