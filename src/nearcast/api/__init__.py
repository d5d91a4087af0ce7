"""The commands as Python functions, one module per topic. `nearcast` exports all of them.

Functions that make a snapshot take a spec: a path to a TOML file, a mapping, or a GeneratorSpec. Functions that
publish also take the name of a generator.
"""
