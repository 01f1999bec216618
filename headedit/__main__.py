"""``python -m headedit`` is the command ``headedit``."""

from headedit.cli import main

main()
