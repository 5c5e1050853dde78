"""The implementations of the page cipher, which must not differ."""

from __future__ import annotations

import pytest

from tdefs.format._compiled import CompiledPageCipher
from tdefs.format.suite1.pages import PythonPageCipher

MAKERS = [
    pytest.param(PythonPageCipher, id="python"),
    pytest.param(CompiledPageCipher, id="compiled"),
]
