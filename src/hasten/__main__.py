"""``hasten``, which is ``python -m hasten``: the command line behind the one thing that has to come before its imports.

Imports nothing at the top, as ``hasten`` itself does not: a Ctrl-C during the imports must end in a line as any other does, and not
in a trace. Only the interpreter's own start is left.
"""


def main() -> None:
    """Run the command line and exit with its status; 130 after a Ctrl-C, whenever it comes."""
    try:
        from hasten.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        import sys

        if sys.stderr is not None:  # print would take standard output for one that was closed
            print("hasten: stopped.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
