"""``python -m headedit`` is the command ``headedit``."""

from headedit.cli.main import main

main()
