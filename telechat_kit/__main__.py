"""`python -m telechat_kit`: the command line of this interpreter's kit."""

from telechat_kit.cli import main

main()
