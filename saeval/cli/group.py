"""The group of all commands, which turns errors into messages and exit codes."""

from __future__ import annotations

from typing import Any

import click

from saeval.cli.shared import say
from saeval.cli.signals import STOPPED, ignore_signals_at_exit, leave_at_once, stop_as_on_ctrl_c
from saeval.cli.streams import steady_streams


class _Cli(click.Group):
    """Turns saeval's errors into one message and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line, even if its output cannot be written."""
        steady_streams()
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the options before the command."""
        try:
            return super().make_context(*args, **kwargs)
        except click.ClickException as error:
            raise _without_keys(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        from saeval._util import (
            BudgetExceeded,
            InputError,
            InternalError,
            PluginError,
            SaevalError,
            SpecError,
            StoreError,
            counted,
            internal_error,
        )

        try:
            return super().invoke(ctx)
        except SpecError as error:
            for problem in error.problems:
                say(problem, err=True)
            click.echo(f"{counted(len(error.problems), 'mistake')}; nothing was run", err=True)
            ctx.exit(2)
        except (InputError, PluginError, StoreError) as error:
            say(f"error: {error}", err=True)
            ctx.exit(2)
        except BudgetExceeded as error:
            say(f"stopped: {error}", err=True)
            ctx.exit(3)
        except InternalError as error:
            say(f"error: {error}", err=True)
            ctx.exit(70)
        except SaevalError as error:
            say(f"error: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            leave_at_once()
            click.echo("interrupted; rerun the same command to resume", err=True)
            ctx.exit(STOPPED)
        except click.ClickException as error:
            raise _without_keys(error) from None
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - the user gets a message, the log gets the traceback
            say(f"error: {internal_error(error)}", err=True)
            ctx.exit(70)
        finally:
            ignore_signals_at_exit()


def _without_keys(error: click.ClickException) -> click.ClickException:
    """Return a usage error, which quotes the command line, without anything that looks like a key."""
    from saeval._util import without_keys

    text = without_keys(error.format_message())
    if isinstance(error, click.UsageError):
        plain: click.ClickException = click.UsageError(text, error.ctx)
    else:
        plain = click.ClickException(text)
    return plain


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="saeval")
def main() -> None:
    """Explain the latents of sparse autoencoders in words, score the explanations, and compare SAEs.

    Start with: saeval run quickstart
    """
    stop_as_on_ctrl_c()
