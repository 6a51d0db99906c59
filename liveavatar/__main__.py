"""`python -m liveavatar`."""

from .cli import entry

if __name__ == "__main__":
    entry()
