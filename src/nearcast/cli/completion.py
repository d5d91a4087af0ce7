"""`nearcast completion`: print a script that completes commands, options, files and generators in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

PROGRAM = "nearcast"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands, options, files and generators in SHELL.

    For bash, add to ~/.bashrc: eval "$(nearcast completion bash)". For zsh, add to ~/.zshrc, after compinit:
    eval "$(nearcast completion zsh)". For fish: nearcast completion fish > ~/.config/fish/completions/nearcast.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click has all three"
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())
