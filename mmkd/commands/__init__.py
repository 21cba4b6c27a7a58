"""What the subcommands of ``mmkd`` do: a module for each, with a function ``main`` that takes its arguments.

The arguments themselves are in the package ``mmkd_cli``, which needs no other package for ``--help``.
"""
