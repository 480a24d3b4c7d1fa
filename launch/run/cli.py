"""How entry points start and end: a person's mistake is one line on stderr and exit code 2, never a traceback."""

import os
import select
import sys
import traceback

from absl import app, flags, logging

from paradigm.errors import UserError


def run(main):
    """Parses the absl flags, calls main(argv) with what is left of the command line, and exits.

    --help prints the module's docstring and its own flags (exit 0). A flag that does not exist or a UserError is one
    line (exit 2), and so is Ctrl-C (exit 130). Where nobody reads on (`| head`), it ends quietly (141).
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # no letter of a sample that the locale lacks ends a run
    app.run(lambda argv: _call(main, argv), flags_parser=lambda argv: _call(_parse, argv))


def _parse(argv):
    logging.set_verbosity(logging.WARNING)  # absl's own default says what jax tried and did not find
    if {"--help", "-help", "-h", "-?"} & set(argv):
        print(f"{sys.modules['__main__'].__doc__.strip()}\n\nflags:\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    return flags.FLAGS(argv)


def _call(function, argv):
    try:
        try:
            return function(argv)
        finally:
            sys.stdout.flush()  # here, and not when the interpreter ends, which would complain
    except BrokenPipeError:
        if _is_read(sys.stdout):
            raise  # another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a shell counts SIGPIPE
    except (UserError, flags.Error) as error:
        message, code = f"error: {' '.join(str(error).split())}", 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except Exception:
        if not _one_of_several():
            raise
        message, code = traceback.format_exc().rstrip(), 1
    print(message, file=sys.stderr)
    if _one_of_several():
        from launch.run import distributed

        distributed.leave(code)
    sys.exit(code)


def _is_read(stream):
    """Whether somebody still reads what is written to this stream; a pipe that nobody reads is in error."""
    asked = select.poll()
    asked.register(stream.fileno(), select.POLLOUT)
    return not any(event & select.POLLERR for _, event in asked.poll(0))


def _one_of_several():
    """Whether this process has joined others; one that only shows its help needs no jax to know."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
