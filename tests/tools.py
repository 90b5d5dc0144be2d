"""Programs that some tests drive, and that no package of Python's brings."""

import os
import shutil

import pytest


def program(*names: str) -> str:
    """The path of the first of these programs that is installed.

    Without any, the test is skipped; where CI is set it fails, since nobody reads what is skipped there.
    """
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    missing = pytest.fail if os.environ.get("CI") else pytest.skip
    missing(f"needs {' or '.join(names)}, and none is installed here")
