"""Tests mirror the packages. What several of them share lies here, and asserts with the same detail as they do."""

import pytest

pytest.register_assert_rewrite("tests.conformance", "tests.request_runner")
