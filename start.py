"""Start here: `python3 start.py course` opens the course, `python3 start.py test` proves it.

Standard library only; Linux, macOS and Windows. `python3 start.py --help` tells the rest.
"""
import argparse
import ast
import configparser
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST = (3, 11)
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
LANES = {
    # extra of setup.py: what its folder's name ends with, constraints, what it is
    'course': ('', 'constraints.txt', "the learner's environment"),
    'dev': ('-dev', 'constraints-dev.txt', "the makers' environment"),
}
# Lines of settings.ini that decide what is installed.
INSTALLED_BY = ('version', 'requirements', 'course_requirements', 'dev_requirements', 'console_scripts')
HOME, STAMP = 'ch5clf-home', 'ch5clf-stamp'  # files in an environment: it is ours, and what was installed in it


def stop(message):
    sys.exit('start.py: ' + message)


def settings():
    parser = configparser.ConfigParser(delimiters=['='])
    try:
        with open(ROOT / 'settings.ini', encoding='utf-8') as f:
            parser.read_file(f)
        cfg = dict(parser['DEFAULT'])
        missing = [key for key in INSTALLED_BY + ('slow_notebooks',) if key not in cfg]
    except (OSError, ValueError, configparser.Error) as e:
        why = getattr(e, 'strerror', None) or str(e).splitlines()[0]
        stop('settings.ini cannot be read (%s); take the project as a whole: git restore settings.ini' % why)
    if missing:
        stop('settings.ini has no %s; take the project as a whole: git restore settings.ini' % ', '.join(missing))
    return cfg


def run(*command, **kwargs):
    try:
        return subprocess.run([str(c) for c in command], **{'cwd': ROOT, **kwargs}).returncode
    except OSError as e:
        remedy = 'delete .venv or .venv-dev and run this again, or install ch5clf[dev] in your own environment'
        stop('%s cannot be started (%s); %s' % (command[0], e.strerror, remedy))


# ---------------------------------------------------------------- environments

def program(python, name):
    return python.with_name(name + ('.exe' if os.name == 'nt' else ''))


def folder_of(extra):
    "Where a lane's environment is: `.venv` and `.venv-dev`, or as CH5CLF_VENV says."
    base = os.environ.get('CH5CLF_VENV', '').strip()
    base = Path(base).expanduser().absolute() if base else ROOT / '.venv'
    return base.with_name(base.name + LANES[extra][0])


def read(path):
    "A small text of ours; None where there is none, or none that can be read."
    try:
        return path.read_text(encoding='utf-8')
    except (OSError, ValueError):
        return None


def wanted(extra, newest):
    "A digest of what decides which packages are installed; another digest means another install."
    cfg, files = settings(), ['setup.py'] + ([] if newest else [LANES[extra][1]])
    parts = [str(newest)] + [cfg[k] for k in INSTALLED_BY]
    for name in files:
        text = read(ROOT / name)
        if text is None:
            stop('%s cannot be read; take the project as a whole: git restore %s' % (name, name))
        parts.append(text)
    return hashlib.sha256('\0'.join(parts + [''] * newest).encode()).hexdigest()


def home():
    "Which Python made the environment, and for which folder: a venv survives neither another Python nor a move."
    return '%s\n%s' % (sys.version.split()[0], ROOT)


def may_be_made_anew(venv):
    "Only a folder that we made, or an empty one, is ever emptied; all else is somebody's."
    remedy = 'name another folder by CH5CLF_VENV, or move it away'
    if venv.is_symlink():
        stop('%s is a link, and what lies behind it is not ours to empty; %s' % (venv, remedy))
    if venv.exists() and not venv.is_dir():
        stop('%s is a file, where an environment should be; %s' % (venv, remedy))
    if venv.exists() and any(venv.iterdir()) and not (venv / HOME).is_file():
        stop('%s was not made by start.py, so it is left alone; %s' % (venv, remedy))


def make(venv):
    try:
        import ensurepip, venv as _  # noqa: F401 (Debian ships Python without them)
    except ImportError:
        stop('this Python has no venv; install it (Debian and Ubuntu: apt install python3-venv), then run this again')
    may_be_made_anew(venv)
    try:
        venv.mkdir(parents=True, exist_ok=True)
        (venv / HOME).write_text('unfinished', encoding='utf-8')
        for old in venv.iterdir():  # the mark stays, so that an interrupted start can go on
            if old.name != HOME:
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    except OSError as e:
        stop('%s cannot be written (%s); name another folder by CH5CLF_VENV' % (venv, e.strerror))
    if run(sys.executable, '-m', 'venv', venv):
        stop('%s could not be made; is the disk full, or is the folder read-only?' % venv)
    (venv / HOME).write_text(home(), encoding='utf-8')


@contextlib.contextmanager
def one_at_a_time(venv):
    "Two starts at once wait for each other. On a disk without locks they do not."
    try:
        venv.parent.mkdir(parents=True, exist_ok=True)
        file = open(venv.with_name(venv.name + '.lock'), 'a')
    except OSError:
        yield
        return
    with file:
        try:
            take_lock(file, lambda: print('Another start.py is at work on %s; waiting for it.' % venv.name, flush=True))
        except OSError:
            pass
        yield  # closing the file releases the lock


def take_lock(file, tell):
    if os.name == 'nt':
        import msvcrt
        told = False
        while True:
            try:
                file.seek(0)
                return msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            except OSError:
                if not told:
                    tell()
                told = True
                time.sleep(1)
    import fcntl
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell()
        fcntl.flock(file, fcntl.LOCK_EX)


# ------------------------------------------------------------ where torch comes from

def has_nvidia():
    "Is there an NVIDIA driver, also in a container or in Windows' Linux?"
    places = ('/proc/driver/nvidia/version', '/dev/nvidiactl', '/usr/lib/wsl/lib/libcuda.so.1')
    return any(map(os.path.exists, places)) or shutil.which('nvidia-smi') is not None


def answers(address, seconds=3):
    "Does a web server answer there, within a few seconds? A name server that is silent takes no longer."
    found = []

    def ask():
        try:
            with urllib.request.urlopen(address, timeout=seconds):
                found.append(True)
        except Exception:  # whatever went wrong, pip would not get further
            pass
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return bool(found)


def torch_index():
    "(index for torch, was it chosen for the user?); None for pip's own."
    if 'CH5CLF_TORCH_INDEX' in os.environ:
        return os.environ['CH5CLF_TORCH_INDEX'].strip() or None, False
    if sys.platform != 'linux' or has_nvidia():
        return None, False
    if not answers(CPU_INDEX + '/torch/'):
        print('No NVIDIA driver is here, but %s cannot be reached: torch comes from PyPI.' % CPU_INDEX)
        return None, False
    print("No NVIDIA driver is here: torch's CPU build comes from %s." % CPU_INDEX)
    print('(CH5CLF_TORCH_INDEX=https://... chooses another index; empty, PyPI.)')
    return CPU_INDEX, True


def announce(extra, venv, index):
    small = index or sys.platform != 'linux'
    size = 'less than 1 GB to download' if small else \
        'about 3 GB to download and 6.5 GB on disk, because torch from PyPI brings CUDA'
    print('Making %s in %s: %s.' % (LANES[extra][2], venv.name, size))
    print('This happens once; later runs need no network.', flush=True)


# ---------------------------------------------------------------- packages

def pip_env():
    "pip's settings of this user count, but for one: packages go into the environment, not into the user's own folder."
    env = {k: v for k, v in os.environ.items() if k not in ('PIP_TARGET', 'PIP_PREFIX', 'PIP_ROOT', 'PYTHONHOME')}
    return {**env, 'PIP_USER': '0'}


def pip_install(python, limits, *what):
    pip = (python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--upgrade')
    return run(*pip, *limits, *what, env=pip_env())


def install_torch(python, limits, index, chosen_for_user):
    if index is None or not pip_install(python, limits, 'torch', 'torchvision', '--index-url', index):
        return
    if not chosen_for_user:
        stop('torch could not be installed from CH5CLF_TORCH_INDEX=%s; check the address and the network' % index)
    print('torch could not be installed from %s: it comes from PyPI, with CUDA (about 3 GB).' % index, flush=True)


def environment(extra, newest=False):
    "The environment's Python; made or brought up to date where needed."
    own = os.environ.get('CH5CLF_PYTHON', '').strip()
    if own:  # somebody's own environment: nothing is installed in it
        python = Path(own).expanduser().absolute()
        return python if python.is_file() else stop('CH5CLF_PYTHON=%s is no file; give the path of a Python' % own)
    venv = folder_of(extra)
    python = venv / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
    digest = wanted(extra, newest)

    def is_ready():
        return read(venv / HOME) == home() and read(venv / STAMP) == digest
    if is_ready() and not venv.is_symlink():
        return python
    with one_at_a_time(venv):
        if not is_ready() or venv.is_symlink():
            prepare(extra, venv, python, newest, digest)
    return python


def prepare(extra, venv, python, newest, digest):
    whole = read(venv / HOME) == home()
    may_be_made_anew(venv)
    index, chosen_for_user = torch_index()
    if whole:
        print('Bringing %s up to date; only what changed is downloaded.' % venv.name, flush=True)
    else:
        announce(extra, venv, index)
        make(venv)
    limits = [] if newest else ['-c', ROOT / LANES[extra][1]]
    try:
        (venv / STAMP).unlink(missing_ok=True)
        install_torch(python, limits, index, chosen_for_user)
        if pip_install(python, limits, '-e', '.[%s]' % extra):
            stop('the packages could not be installed; check the network and the disk (what pip said stands above), '
                 'then run the same command again')
        (venv / STAMP).write_text(digest, encoding='utf-8')
    except OSError as e:
        stop('%s cannot be written (%s); delete it, or the folder %s' % (venv / STAMP, e.strerror, venv))


# -------------------------------------------------------------------- commands

def course(args):
    python = environment('course', args.newest)
    chosen = (('--all', args.all), ('--copy-only', args.copy_only), ('--no-browser', args.no_browser))
    if not args.folder.strip():
        stop('the folder for your copy needs a name, such as my-course')
    command = [program(python, 'ch5clf'), 'course', args.folder]
    try:
        server = subprocess.Popen([str(c) for c in command + [flag for flag, on in chosen if on]])
    except OSError as e:
        remedy = 'delete %s and run this again' % python.parent.parent
        if os.environ.get('CH5CLF_PYTHON', '').strip():  # an environment of their own is not ours to throw away
            remedy = 'install the course there: %s -m pip install "ch5clf[course]"' % python
        stop('%s cannot be started (%s); %s' % (command[0], e.strerror, remedy))
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:
            pass  # JupyterLab got it too, asks, and shuts down in order


def notebooks_of(names=()):
    def is_hidden(path):
        return any(part.startswith(('.', '_')) for part in path.relative_to(ROOT).parts)
    found = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if not is_hidden(p))
    unknown = [n for n in names if not any(p.stem == Path(n).stem for p in found)]
    if unknown:
        stop('%s: no such notebook; there are %s' % (unknown[0], ', '.join(p.stem for p in found)))
    return [p for p in found if not names or p.stem in {Path(n).stem for n in names}]


def test_env(tmp):
    "Tests see neither the reader's progress nor their choice of data; and they import the package that stands here."
    env = {k: v for k, v in os.environ.items() if k not in ('CH5CLF_DATA', 'CH5CLF_LANG')}
    env.update(CH5CLF_PROGRESS=str(Path(tmp) / 'progress'), IN_TEST='1', PYTHONUTF8='1', PYTHONPATH=str(ROOT))
    if 'GOMP_SPINCOUNT' not in env:
        env.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # `share_cores` of ch5clf.places says why
    return env


def stale(python, tmp):
    "What is not as the notebooks make it: exported modules, cleaned notebooks."
    copy = Path(tmp) / 'copy'
    for part in ('nbs', 'ch5clf'):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    for part in ('settings.ini', 'pyproject.toml', 'setup.py'):
        shutil.copy(ROOT / part, copy / part)
    env = {**os.environ, 'PYTHONUTF8': '1', 'PYTHONPATH': str(copy)}
    env.pop('IN_TEST', None)  # in a test, nbdev exports nothing
    for job in ('nbdev_export', 'nbdev_clean'):
        if run(program(python, job), cwd=copy, env=env):
            return [job + ' failed']

    def files(root):
        found = [*(root / 'nbs').rglob('*.ipynb'), *(root / 'ch5clf').glob('*.py')]
        found = [p for p in found if '.ipynb_checkpoints' not in p.parts]
        return {p.relative_to(root): p.read_text(encoding='utf-8') for p in found}
    ours, theirs = files(ROOT), files(copy)
    return sorted(str(f) for f in ours.keys() | theirs.keys() if ours.get(f) != theirs.get(f))


def test(args):
    chosen = notebooks_of(args.notebooks)
    python = environment('dev', args.newest)
    failed = []
    with tempfile.TemporaryDirectory() as tmp:
        env = test_env(tmp)
        out_of_date = stale(python, tmp)
        if out_of_date:
            print('Not as the notebooks make it: %s.' % ', '.join(out_of_date))
            print('Run nbdev_export and nbdev_clean, then commit.')
            failed.append('export and clean')
        if run(python, ROOT / '.ci' / 'readme.py', '--check'):
            failed.append('README.md')
        if not args.notebooks:
            docs = (python, ROOT / '.ci' / 'docs.py')
            failed += timed('docs site', lambda: ['docs site'] if run(*docs, env=env) else [])
        slow = settings()['slow_notebooks'].split()
        for nb in chosen:
            if not (args.quick and nb.name in slow):
                command = (program(python, 'nbdev_test'), '--path', nb, '--n_workers', '0')
                failed += timed(nb.relative_to(ROOT).as_posix(), lambda: [nb.name] if run(*command, env=env) else [])
        quick = ['-m', 'not slow'] if args.quick else []
        if not args.notebooks and run(python, '-m', 'pytest', '-q', 'tests', *quick, env=env):
            failed.append('tests/')
    print('start.py test: everything passed' if not failed else 'start.py test: FAILED: ' + ', '.join(failed))
    return bool(failed)


def timed(name, job):
    start = time.time()
    faults = job()
    print('%s %s (%.0f s)' % ('FAILED' if faults else 'passed', name, time.time() - start), flush=True)
    return faults


def tidy(nb):
    "Drop the empty frames that finished progress bars leave in outputs, and the notices of unanswered questions."
    book = json.loads(nb.read_text(encoding='utf-8'))

    def is_bar(output):
        html = ''.join(output.get('data', {}).get('text/html', 'x')).strip()
        return not html or (html.startswith('<style>') and 'progress' in html and '<table' not in html)
    for cell in book['cells']:
        if 'outputs' in cell:
            asked = ''.join(cell['source']).startswith('%%answer')
            cell['outputs'] = [] if asked else [o for o in cell['outputs'] if not is_bar(o)]
    text = json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + '\n'
    nb.write_text(text, encoding='utf-8', newline='\n')


def notebooks(args):
    chosen = notebooks_of(args.notebooks)
    python = environment('dev')
    with tempfile.TemporaryDirectory() as tmp:
        for nb in chosen:
            print(nb.relative_to(ROOT).as_posix(), flush=True)
            if run(program(python, 'jupyter'), 'execute', '--inplace', nb, env=test_env(tmp)):
                stop('%s did not run; its outputs were left as they were' % nb.name)
            tidy(nb)
            run(program(python, 'nbdev_clean'), '--fname', nb)
    return run(python, ROOT / '.ci' / 'readme.py')


def bench(args):
    known = {p.stem: p for p in sorted((ROOT / 'bench').glob('*.py'))}
    if args.list:
        for name, script in known.items():
            about = ast.get_docstring(ast.parse(script.read_text(encoding='utf-8'))).splitlines()[0]
            print('%-14s %s' % (name, about))
        return 0
    if args.name not in known:
        stop('%s: no such measurement; there are %s' % (args.name, ', '.join(known)))
    more = ['--full'] * args.full + (['--photos', args.photos] if args.photos else [])
    return run(environment('dev'), known[args.name], *more, *args.arguments)


def parse():
    parser = argparse.ArgumentParser(prog='start.py', description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(title='commands', required=True, metavar='COMMAND')
    c = commands.add_parser('course', help='make the environment, copy the notebooks, open JupyterLab')
    c.add_argument('folder', nargs='?', default='my-course', help='your copy of the notebooks (default: my-course)')
    c.add_argument('--all', action='store_true', help='with the workshop, the machinery behind the lessons')
    c.add_argument('--copy-only', action='store_true', help='write the copy and stop')
    c.add_argument('--no-browser', action='store_true', help='start JupyterLab, print its address, open no browser')
    c.set_defaults(run=course)
    t = commands.add_parser('test', help='check exports, README and docs, run every notebook, then tests/')
    t.add_argument('notebooks', nargs='*', help='only these notebooks, such as 00_data')
    t.add_argument('--quick', action='store_true', help='leave out what trains for minutes')
    t.set_defaults(run=test)
    for p in (c, t):
        p.add_argument('--newest', action='store_true', help='install the newest versions, without the constraints')
    n = commands.add_parser('notebooks', help='run notebooks and keep their outputs; make README.md')
    n.add_argument('notebooks', nargs='*', help='only these, such as 00_data')
    n.set_defaults(run=notebooks)
    b = commands.add_parser('bench', help='measure anew: the short way through all, or one script of bench/')
    b.add_argument('name', nargs='?', default='again', help='one measurement, such as baseline')
    b.add_argument('--list', action='store_true', help='say which there are')
    b.add_argument('--full', action='store_true', help='with all recorded runs: days')
    b.add_argument('--photos', help='folder with pets_dev/ and clothing_dev/, for what wants real photos')
    b.add_argument('arguments', nargs=argparse.REMAINDER)
    b.set_defaults(run=bench)
    return parser.parse_args()


if __name__ == '__main__':
    if sys.version_info < OLDEST:
        versions = sys.version_info[:2] + OLDEST
        stop('Python %d.%d is too old; %d.%d or newer is needed (python.org/downloads)' % versions)
    arguments = parse()
    try:
        sys.exit(arguments.run(arguments))
    except KeyboardInterrupt:
        stop('stopped; run the same command again to go on')
