import os
import tempfile

# Tests never touch the real progress file, however pytest is started.
os.environ['CH5CLF_PROGRESS'] = tempfile.mkdtemp(prefix='ch5clf-tests-')
for name in ('CH5CLF_DATA', 'CH5CLF_LANG'): os.environ.pop(name, None)


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes more than half a minute, or wants Linux, a browser or the network')
