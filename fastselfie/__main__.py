"""``python -m fastselfie`` is ``fastselfie``."""

from fastselfie.cli import main

if __name__ == "__main__":
    main()
