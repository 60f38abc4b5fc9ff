"""Check the facts in a message: the value, what was expected, the remedy. The wording is free."""

from __future__ import annotations

import pytest


def assert_says(found: pytest.ExceptionInfo[BaseException] | str, *facts: object) -> None:
    """Check that a message contains each fact."""
    message = found if isinstance(found, str) else str(found.value)
    missing = [str(fact) for fact in facts if str(fact) not in message]
    assert not missing, f"{missing} not in: {message}"
