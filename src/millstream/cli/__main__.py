"""``python -m millstream.cli``."""

from millstream.cli import main

main()
