"""Start here: `python3 start.py course` opens the course, `python3 start.py test` proves it.

Standard library only; Linux, macOS and Windows. `python3 start.py --help` tells the rest.
"""
import argparse
import configparser
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST = (3, 11)
TORCH_INDEX = os.environ.get('CH5CLF_TORCH_INDEX', '').strip()
LANES = {
    # extra of setup.py: folder, constraints, what it is
    'course': ('.venv', 'constraints.txt', "the learner's environment"),
    'dev': ('.venv-dev', 'constraints-dev.txt', "the makers' environment"),
}


def stop(message):
    sys.exit('start.py: ' + message)


def settings():
    parser = configparser.ConfigParser(delimiters=['='])
    parser.read(ROOT / 'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


def run(*command, **kwargs):
    try:
        return subprocess.run([str(c) for c in command], **{'cwd': ROOT, **kwargs}).returncode
    except OSError as e:
        stop('%s cannot be started (%s); delete %s and run this again' % (command[0], e.strerror, ', '.join(lane[0] for lane in LANES.values())))


# ---------------------------------------------------------------- environments

def program(venv, name):
    windows = os.name == 'nt'
    return venv / ('Scripts' if windows else 'bin') / (name + ('.exe' if windows else ''))


def wanted(extra, newest):
    "A digest of what decides which packages are installed; another digest means another install."
    cfg, constraints = settings(), ROOT / LANES[extra][1]
    parts = [str(newest)] + [cfg[k] for k in ('version', 'requirements', 'course_requirements', 'dev_requirements', 'console_scripts')]
    parts += [(ROOT / 'setup.py').read_text(encoding='utf-8'), '' if newest else constraints.read_text(encoding='utf-8')]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def home():
    "Which Python made the environment, and where: a venv survives neither another Python nor a move."
    return '%s\n%s' % (sys.version.split()[0], ROOT)


def announce(extra, venv):
    small = TORCH_INDEX or sys.platform != 'linux'
    size = 'less than 1 GB to download' if small else 'about 3 GB to download and 6.5 GB on disk, because torch from PyPI brings CUDA'
    print('Making %s in %s: %s.' % (LANES[extra][2], venv.name, size))
    if not small:
        print('Without an NVIDIA card, stop with Ctrl-C and set CH5CLF_TORCH_INDEX=https://download.pytorch.org/whl/cpu first.')
    print('This happens once; later runs need no network.', flush=True)


def make(venv):
    try:
        import ensurepip, venv as _  # noqa: F401 (Debian ships Python without them)
    except ImportError:
        stop('this Python has no venv; install it (Debian and Ubuntu: apt install python3-venv), then run this again')
    if run(sys.executable, '-m', 'venv', '--clear', venv):
        stop('%s could not be made; is the disk full, or is the folder read-only?' % venv.name)
    (venv / 'ch5clf-home').write_text(home(), encoding='utf-8')


def environment(extra, newest=False):
    "The environment's Python; made or brought up to date where needed."
    venv = ROOT / LANES[extra][0]
    python, stamp, place = program(venv, 'python'), venv / 'ch5clf-stamp', venv / 'ch5clf-home'
    digest, whole = wanted(extra, newest), place.exists() and place.read_text(encoding='utf-8') == home()
    if whole and stamp.exists() and stamp.read_text() == digest:
        return python
    if whole:
        print('Bringing %s up to date; only what changed is downloaded.' % venv.name, flush=True)
    else:
        announce(extra, venv)
        make(venv)
    stamp.unlink(missing_ok=True)
    limits = [] if newest else ['-c', ROOT / LANES[extra][1]]
    pip = [python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--upgrade'] + limits
    if TORCH_INDEX and run(*pip, 'torch', 'torchvision', '--index-url', TORCH_INDEX):
        stop('torch could not be installed from CH5CLF_TORCH_INDEX=%s; check the address and the network' % TORCH_INDEX)
    if run(*pip, '-e', '.[%s]' % extra):
        stop('the packages could not be installed; check the network and the disk (what pip said stands above), then run the same command again')
    stamp.write_text(digest)
    return python


# -------------------------------------------------------------------- commands

def course(args):
    python = environment('course', args.newest)
    flags = [flag for flag, on in (('--copy-only', args.copy_only), ('--no-browser', args.no_browser)) if on]
    server = subprocess.Popen([str(c) for c in (program(python.parent.parent, 'ch5clf'), 'course', Path(args.folder).expanduser().absolute(), *flags)])
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:
            pass  # JupyterLab got it too, asks, and shuts down in order


def notebooks_of(names=()):
    found = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if not any(part.startswith(('.', '_')) for part in p.relative_to(ROOT).parts))
    unknown = [n for n in names if not any(p.stem == Path(n).stem for p in found)]
    if unknown:
        stop('%s: no such notebook; there are %s' % (unknown[0], ', '.join(p.stem for p in found)))
    return [p for p in found if not names or p.stem in {Path(n).stem for n in names}]


def test_env(tmp):
    "Tests see neither the reader's progress nor their choice of data."
    env = {k: v for k, v in os.environ.items() if k not in ('CH5CLF_DATA', 'CH5CLF_LANG')}
    return {**env, 'CH5CLF_PROGRESS': str(Path(tmp) / 'progress'), 'IN_TEST': '1', 'PYTHONUTF8': '1'}


def stale(python, tmp):
    "What is not as the notebooks make it: exported modules, cleaned notebooks."
    copy = Path(tmp) / 'copy'
    copy.mkdir()
    for name in ('nbs', 'ch5clf'):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    for name in ('settings.ini', 'pyproject.toml', 'setup.py'):
        shutil.copy(ROOT / name, copy / name)
    for job in ('nbdev_export', 'nbdev_clean'):
        if run(program(python.parent.parent, job), cwd=copy):
            return [job + ' failed']
    files = [p.relative_to(copy) for part, kind in (('nbs', '*.ipynb'), ('ch5clf', '*.py')) for p in (copy / part).rglob(kind)]
    return [str(f) for f in files if not (ROOT / f).exists() or (ROOT / f).read_text(encoding='utf-8') != (copy / f).read_text(encoding='utf-8')]


def test(args):
    chosen = notebooks_of(args.notebooks)
    python = environment('dev', args.newest)
    failed = []
    with tempfile.TemporaryDirectory() as tmp:
        env = test_env(tmp)
        out_of_date = stale(python, tmp)
        if out_of_date:
            print('Not as the notebooks make it: %s. Run nbdev_export and nbdev_clean, then commit.' % ', '.join(out_of_date))
            failed.append('export and clean')
        if run(python, ROOT / '.ci' / 'readme.py', '--check'):
            failed.append('README.md')
        slow = settings()['slow_notebooks'].split()
        for nb in chosen:
            if args.quick and nb.name in slow:
                continue
            start = time.time()
            code = run(program(python.parent.parent, 'nbdev_test'), '--path', nb, '--n_workers', '0', env=env)
            print('%s %s (%.0f s)' % ('FAILED' if code else 'passed', nb.relative_to(ROOT).as_posix(), time.time() - start), flush=True)
            if code:
                failed.append(nb.name)
        if not args.notebooks and run(python, '-m', 'pytest', '-q', 'tests', *(['-m', 'not slow'] if args.quick else []), env=env):
            failed.append('tests/')
    print('start.py test: everything passed' if not failed else 'start.py test: FAILED: ' + ', '.join(failed))
    return bool(failed)


def tidy(nb):
    "Finished progress bars leave empty frames behind, and unanswered questions a notice each; drop both from the outputs."
    book = json.loads(nb.read_text(encoding='utf-8'))

    def is_bar(output):
        html = ''.join(output.get('data', {}).get('text/html', 'x')).strip()
        return not html or (html.startswith('<style>') and 'progress' in html and '<table' not in html)
    for cell in book['cells']:
        if 'outputs' in cell:
            asked = ''.join(cell['source']).startswith('%%answer')
            cell['outputs'] = [] if asked else [o for o in cell['outputs'] if not is_bar(o)]
    nb.write_text(json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8', newline='\n')


def notebooks(args):
    chosen = notebooks_of(args.notebooks)
    python = environment('dev')
    with tempfile.TemporaryDirectory() as tmp:
        for nb in chosen:
            print(nb.relative_to(ROOT).as_posix(), flush=True)
            if run(program(python.parent.parent, 'jupyter'), 'execute', '--inplace', nb, env=test_env(tmp)):
                stop('%s did not run; its outputs were left as they were' % nb.name)
            tidy(nb)
            run(program(python.parent.parent, 'nbdev_clean'), '--fname', nb)
    return run(python, ROOT / '.ci' / 'readme.py')


def bench(args):
    script = ROOT / 'bench' / (args.name + '.py')
    if not script.exists():
        stop('%s: no such measurement; there are %s' % (args.name, ', '.join(sorted(p.stem for p in (ROOT / 'bench').glob('*.py')))))
    return run(environment('dev'), script, *args.arguments)


def parse():
    parser = argparse.ArgumentParser(prog='start.py', description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(title='commands', required=True, metavar='COMMAND')
    c = commands.add_parser('course', help='make the environment, copy the notebooks, open JupyterLab')
    c.add_argument('folder', nargs='?', default='my-course', help='your copy of the notebooks (default: my-course)')
    c.add_argument('--copy-only', action='store_true', help='write the copy and stop')
    c.add_argument('--no-browser', action='store_true', help='start JupyterLab and print its address, but open no browser')
    c.set_defaults(run=course)
    t = commands.add_parser('test', help='check exports and README, run every notebook, then tests/')
    t.add_argument('notebooks', nargs='*', help='only these notebooks, such as 00_data')
    t.add_argument('--quick', action='store_true', help='leave out what trains for minutes')
    t.set_defaults(run=test)
    for p in (c, t):
        p.add_argument('--newest', action='store_true', help='install the newest versions instead of those in the constraints file')
    n = commands.add_parser('notebooks', help='run notebooks and keep their outputs; make README.md')
    n.add_argument('notebooks', nargs='*', help='only these, such as 00_data')
    n.set_defaults(run=notebooks)
    b = commands.add_parser('bench', help='run a measurement of bench/')
    b.add_argument('name', help='such as baseline')
    b.add_argument('arguments', nargs=argparse.REMAINDER)
    b.set_defaults(run=bench)
    return parser.parse_args()


if __name__ == '__main__':
    if sys.version_info < OLDEST:
        stop('Python %d.%d is too old; %d.%d or newer is needed (python.org/downloads)' % (sys.version_info[:2] + OLDEST))
    arguments = parse()
    try:
        sys.exit(arguments.run(arguments))
    except KeyboardInterrupt:
        stop('stopped; run the same command again to go on')
