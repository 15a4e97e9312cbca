import os
import signal
import tempfile

import pytest
from hypothesis import settings

from ch5clf.places import share_cores

share_cores() # before any test imports torch
# Tests never touch the real progress file, however pytest is started.
os.environ['CH5CLF_PROGRESS'] = tempfile.mkdtemp(prefix='ch5clf-tests-')
for name in ('CH5CLF_DATA', 'CH5CLF_LANG'): os.environ.pop(name, None)
SLOW = 30 # seconds

# The same examples at every run, so that a red test is the change's own; `pytest --hypothesis-profile=wide` looks further.
settings.register_profile('same', derandomize=True)
settings.register_profile('wide', max_examples=1000)
settings.load_profile('same')


@pytest.fixture
def ctrl_c():
    "Ctrl-C raises KeyboardInterrupt, also where the tests run in the background of a shell, which ignores it."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes more than half a minute, or wants Linux, a browser or the network')


def pytest_terminal_summary(terminalreporter):
    "Say which tests took long without the mark. No test fails for it: machines differ."
    reports = [r for rs in terminalreporter.stats.values() for r in rs if hasattr(r, 'duration') and hasattr(r, 'keywords')]
    for r in reports:
        if r.when == 'call' and r.duration > SLOW and 'slow' not in r.keywords:
            terminalreporter.write_line(f'{r.nodeid} took {r.duration:.0f} s: mark it with @pytest.mark.slow')
