"""`python -m lightning_vos`: the command line; unlike a script it can be started anew by name for further processes."""

from lightning_vos.cli import main

if __name__ == "__main__":
    main()
