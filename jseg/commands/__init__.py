"""The commands of `jseg`, a file each.

A command has `HELP` (one line), `EXAMPLES`, `add_arguments(parser)` and `run(arguments)`. To add
one: a file here, and a name in the list of `jseg/cli.py`.
"""
