"""``python -m avocado_magic.cli``."""

from . import main

main()
