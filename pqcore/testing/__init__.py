"""The conformance kit: what a backend must do, as tests that anybody can run.

    pytest --pyargs pqcore.testing.suite --pqcore-backend mydriver

See docs/conformance.md.
"""

import pytest

pytest.register_assert_rewrite("pqcore.testing.harness", "pqcore.testing.processes")
