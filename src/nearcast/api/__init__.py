"""The verbs of the command line, from Python. Each module has some of them, and imports what these need alone.

Those that make a snapshot take a spec: a path to a TOML file, a mapping, or a parsed one. Those that publish it take
the name of a generator as well. `nearcast` itself has all of them by name.
"""
