"""``python -m hnkernels``, and the ``hnkernels`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line, or says what it needs."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        sys.exit(f"the command line needs {error.name}: pip install 'hnkernels[cli]'")
    from hnkernels.cli import main as run

    run()


if __name__ == "__main__":
    main()
