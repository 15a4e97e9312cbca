"""Is all in the sdist that its own test needs? `python .ci/sdist.py` unpacks it and runs `start.py test --quick` there.

The environment is that of the Python that runs this, so nothing is installed. More arguments go to `start.py test`
in place of `--quick`, such as names of notebooks.
"""
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main():
    with tempfile.TemporaryDirectory() as tmp:
        build = [sys.executable, '-m', 'build', '--sdist', '--no-isolation', '--outdir', tmp, str(ROOT)]
        made = subprocess.run(build, capture_output=True, text=True)
        if made.returncode:
            sys.exit('sdist.py: the sdist cannot be built\n' + made.stdout[-2000:] + made.stderr[-2000:])
        with tarfile.open(next(Path(tmp).glob('*.tar.gz'))) as tar:
            tar.extractall(tmp, filter='data')
        folder = next(p for p in Path(tmp).iterdir() if p.is_dir())
        env = {**os.environ, 'CH5CLF_PYTHON': sys.executable, 'PYTHONPATH': str(folder)}
        collect = [sys.executable, '-m', 'pytest', '-q', '--collect-only', 'tests']
        found = subprocess.run(collect, cwd=folder, env=env, capture_output=True, text=True)
        if found.returncode:
            sys.exit('sdist.py: the tests cannot be read there\n' + found.stdout[-2000:])
        test = [sys.executable, 'start.py', 'test', *(sys.argv[1:] or ['--quick'])]
        return subprocess.run(test, cwd=folder, env=env).returncode


if __name__ == '__main__':
    sys.exit(main())
