"""The part ``tests``: pytest on one file, with the outcome of each test written as soon as it is known."""

import os
from typing import Any

from headedit.bench.gpu.record import Data, Recorder
from headedit.errors import HeadEditError
from headedit.io.optional import import_optional

_OUTCOMES = (0, 1)  # of pytest.main: all passed, some failed
_NONE_LEFT = 5
_LONGEST = 4000


def run_tests(recorder: Recorder, settings: Data) -> None:
    """Runs the tests that have neither passed nor been skipped before; those that failed come last.

    Args:
        recorder: takes a test per item: ``outcome``, passed, failed, skipped or error; ``seconds``; ``message``.
        settings: ``tests``, the file, and ``device``, which tests find in the environment as ``HEADEDIT_TEST_DEVICE``.

    Raises:
        HeadEditError: pytest could not run.
    """
    pytest = import_optional("pytest", "the tests on a GPU")
    os.environ["HEADEDIT_TEST_DEVICE"] = settings["device"]
    code = pytest.main(["-q", "-p", "no:cacheprovider", settings["tests"]], plugins=[_Outcomes(recorder)])
    if code not in (*_OUTCOMES, _NONE_LEFT):
        raise HeadEditError(f"pytest ended with code {int(code)} on {settings['tests']}.")
    if not recorder.data["items"]:
        raise HeadEditError(f"There is no test in {settings['tests']}.")


class _Outcomes:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        done = [item for item in items if self._recorder.has(_name(item.nodeid))]
        left = [item for item in items if item not in done]
        items[:] = sorted(left, key=lambda item: _name(item.nodeid) in self._recorder.failed)
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._recorder.begin(_name(nodeid))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            failed_outside = report.when != "call" and report.outcome == "failed"
            outcome = "error" if failed_outside else report.outcome
            message = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
            item = {"outcome": outcome, "seconds": report.duration, "message": message[-_LONGEST:]}
            self._recorder.add(_name(report.nodeid), item)


def _name(nodeid: str) -> str:
    return nodeid.partition("::")[2]
