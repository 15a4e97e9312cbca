"start.py: nobody's files are lost, mistakes are one line, torch comes from where it should. Projects and indexes are small fakes."
import functools
import http.server
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
linux = pytest.mark.skipif(sys.platform != 'linux', reason='wants Linux')


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(('CH5CLF_VENV', 'CH5CLF_TORCH', 'CH5CLF_PYTHON')): monkeypatch.delenv(name)


def load(path):
    "A start.py as a module of its own."
    spec = importlib.util.spec_from_file_location('start_' + path.parent.name.replace('-', '_'), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The least that pip wants of a project: it is built by itself, so that nothing has to be downloaded.
BACKEND = '''
import base64, hashlib, pathlib, zipfile
HERE = pathlib.Path(__file__).resolve().parent
def wheel(folder, name, files):
    info = f'{name}-1.0.dist-info'
    files = {**files, f'{info}/WHEEL': 'Wheel-Version: 1.0\\nGenerator: fake\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'}
    record = ''
    for n, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()
        record += f'{n},sha256={digest},{len(text)}\\n'
    files[f'{info}/RECORD'] = record + f'{info}/RECORD,,\\n'
    file = f'{name}-1.0-py3-none-any.whl'
    with zipfile.ZipFile(pathlib.Path(folder)/file, 'w') as z:
        for n, text in files.items(): z.writestr(n, text)
    return file
META = 'Metadata-Version: 2.1\\nName: ch5clf\\nVersion: 1.0\\nProvides-Extra: course\\nProvides-Extra: dev\\nRequires-Dist: torch\\n'
POINTS = '[console_scripts]\\nch5clf = fake_ch5clf:main\\n'
def build_editable(folder, config_settings=None, metadata_directory=None):
    return wheel(folder, 'ch5clf', {'fake.pth': str(HERE), 'ch5clf-1.0.dist-info/METADATA': META, 'ch5clf-1.0.dist-info/entry_points.txt': POINTS})
'''
COMMAND = 'import sys, pathlib\ndef main():\n    import torch\n    pathlib.Path(sys.argv[2]).mkdir(); print("copied", torch.__version__, sys.argv[3:])\n'
SETTINGS = '''
[DEFAULT]
version = 1.0
requirements = torch
course_requirements =
dev_requirements =
console_scripts = ch5clf=fake_ch5clf:main
slow_notebooks =
'''


@pytest.fixture
def project(tmp_path):
    "A small project with our start.py, on a machine without an NVIDIA driver."
    root = tmp_path/'a project'
    root.mkdir()
    start = (ROOT/'start.py').read_text(encoding='utf-8')
    start = start.replace('def has_nvidia():', 'def has_nvidia():\n    return False\n\n\ndef really_has_nvidia():')
    for name, text in {'start.py': start, 'settings.ini': SETTINGS, 'setup.py': '', 'constraints.txt': 'torch==0.1.0\ntorchvision==0.1.0\n', 'constraints-dev.txt': '',
                       'fake_backend.py': BACKEND, 'fake_ch5clf.py': COMMAND,
                       'pyproject.toml': '[build-system]\nrequires = []\nbuild-backend = "fake_backend"\nbackend-path = ["."]\n'}.items():
        (root/name).write_text(text, encoding='utf-8')
    return root


def start(project, *args, **env):
    start = time.time()
    r = subprocess.run([sys.executable, str(project/'start.py'), *args], capture_output=True, text=True, cwd=project,
                       env={**os.environ, 'PYTHONUTF8': '1', **env}, timeout=300)
    return r, time.time() - start


def one_line(r):
    return r.returncode == 1 and r.stderr.startswith('start.py: ') and r.stderr.count('\n') == 1


# ------------------------------------------------------------------ nobody's files are lost

def test_somebodys_venv_is_left_alone(project):
    (project/'.venv').mkdir()
    (project/'.venv'/'mine.txt').write_text('x')
    r, _ = start(project, 'course')
    assert one_line(r) and 'CH5CLF_VENV' in r.stderr and 'left alone' in r.stderr
    assert (project/'.venv'/'mine.txt').read_text() == 'x'


def test_what_lies_behind_a_link_is_left_alone(project, tmp_path):
    other = tmp_path/'other'
    other.mkdir()
    try: (project/'.venv').symlink_to(other)
    except OSError: pytest.skip('no links here')
    for content in ({}, {'mine.txt': 'x'}, {'mine.txt': 'x', 'ch5clf-home': 'a link to an environment of ours'}):
        for name, text in content.items(): (other/name).write_text(text)
        r, _ = start(project, 'course')
        assert one_line(r) and 'is a link' in r.stderr and 'CH5CLF_VENV' in r.stderr
        assert {p.name for p in other.iterdir()} == set(content)


def test_a_file_and_a_read_only_folder(project):
    (project/'.venv').write_text('x')
    r, _ = start(project, 'course')
    assert one_line(r) and 'is a file' in r.stderr and (project/'.venv').read_text() == 'x'
    if hasattr(os, 'geteuid') and os.geteuid():
        (project/'closed').mkdir(0o555)
        r, _ = start(project, 'course', CH5CLF_VENV=str(project/'closed'/'env'), CH5CLF_TORCH_INDEX='')
        assert one_line(r) and 'cannot be written' in r.stderr


def test_another_folder_and_an_interrupted_start(project, monkeypatch):
    "CH5CLF_VENV names the folder; what an interrupted start left in it is ours to empty, and nothing else."
    module = load(project/'start.py')
    monkeypatch.setenv('CH5CLF_VENV', str(project/'elsewhere'))
    assert [module.folder_of(lane).name for lane in ('course', 'dev')] == ['elsewhere', 'elsewhere-dev']
    venv = module.folder_of('course')
    (venv/'lib').mkdir(parents=True)
    (venv/'ch5clf-home').write_text('unfinished')
    (venv/'lib'/'half').write_text('x')
    module.make(venv)
    assert not (venv/'lib'/'half').exists() and (venv/'ch5clf-home').read_text() == module.home()
    assert (venv/('Scripts' if os.name == 'nt' else 'bin')).exists()
    # A start that is stopped while it empties the folder leaves the mark.
    monkeypatch.setattr(module.shutil, 'rmtree', lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): module.make(venv)
    assert (venv/'ch5clf-home').exists()


def test_two_starts_wait_for_each_other(project):
    code = textwrap.dedent('''
        import importlib.util, pathlib, sys, time
        spec = importlib.util.spec_from_file_location('start', sys.argv[1]); start = importlib.util.module_from_spec(spec); spec.loader.exec_module(start)
        def prepare(extra, venv, python, newest, digest):
            print('prepared', flush=True); time.sleep(2); venv.mkdir(exist_ok=True)
            (venv/start.HOME).write_text(start.home()); (venv/start.STAMP).write_text(digest)
        start.prepare = prepare
        start.environment('course')
    ''')
    jobs = [subprocess.Popen([sys.executable, '-c', code, str(project/'start.py')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [job.communicate(timeout=60) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], said
    assert sum('prepared' in out for out, _ in said) == 1 and sum('waiting for it' in out for out, _ in said) == 2


# ------------------------------------------------------------------ mistakes are one line

@pytest.mark.parametrize('text', [None, '', 'no section', '[DEFAULT]\nversion = 1', '\udcff\udcfe', '[DEFAULT]\na = 1\na = 2'])
@pytest.mark.parametrize('command', ['course', 'test'])
def test_settings_that_cannot_be_read(project, text, command):
    if text is None: (project/'settings.ini').unlink()
    else: (project/'settings.ini').write_bytes(text.encode('utf-8', 'surrogateescape'))
    r, _ = start(project, command)
    assert one_line(r) and 'settings.ini' in r.stderr


@pytest.mark.parametrize('missing', ['setup.py', 'constraints.txt'])
def test_a_project_with_parts_missing(project, missing):
    (project/missing).unlink()
    r, _ = start(project, 'course')
    assert one_line(r) and missing in r.stderr


def test_an_unreadable_stamp(project, monkeypatch):
    "Bytes that are no text count as another stamp; a folder in its place is named."
    module = load(project/'start.py')
    venv = module.folder_of('course')
    module.make(venv)
    monkeypatch.setenv('CH5CLF_TORCH_INDEX', '')
    monkeypatch.setattr(module, 'pip_install', lambda *_: 0)
    (venv/'ch5clf-stamp').write_bytes(b'\xff\xfe')
    module.environment('course')
    assert (venv/'ch5clf-stamp').read_text() == module.wanted('course', False)
    (venv/'ch5clf-stamp').unlink()
    (venv/'ch5clf-stamp').mkdir()
    with pytest.raises(SystemExit, match='ch5clf-stamp cannot be written'): module.environment('course')


def test_bench_lists_its_measurements():
    r = subprocess.run([sys.executable, ROOT/'start.py', 'bench', '--list'], capture_output=True, text=True)
    assert r.returncode == 0 and {line.split()[0] for line in r.stdout.splitlines()} == {p.stem for p in (ROOT/'bench').glob('*.py')}
    assert all(len(line.split()) > 3 for line in r.stdout.splitlines()), 'a line on what each measures'


def test_odd_names(project):
    for args in (['course', ''], ['course', ' '], ['test', 'no_such_notebook'], ['bench', 'no_such_bench']):
        r, _ = start(project, *args, CH5CLF_PYTHON=sys.executable)
        assert one_line(r), r.stderr
    r, _ = start(project, 'course', CH5CLF_PYTHON=str(project/'nowhere'))
    assert one_line(r) and 'CH5CLF_PYTHON' in r.stderr


# ------------------------------------------------------------------ where torch comes from

def fake_index(folder, version):
    "A package index with a tiny torch and torchvision."
    for name in ('torch', 'torchvision'):
        file, info = f'{name}-{version}-py3-none-any.whl', f'{name}-{version}.dist-info'
        (folder/name).mkdir(parents=True)
        with zipfile.ZipFile(folder/name/file, 'w') as z:
            z.writestr(f'{name}.py', f'__version__ = {version!r}\n')
            z.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
            z.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nGenerator: fake\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
            z.writestr(f'{info}/RECORD', ''.join(f'{n},,\n' for n in (f'{name}.py', f'{info}/METADATA', f'{info}/WHEEL', f'{info}/RECORD')))
        (folder/name/'index.html').write_text(f'<a href="{file.replace("+", "%2B")}">{file}</a>')
    return folder


@pytest.fixture
def serve():
    "serve(folder) -> address on loopback."
    servers = []
    def serve(folder):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_): pass
        servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}'
    yield serve
    for s in servers: s.shutdown(); s.server_close()


@pytest.fixture
def silent():
    "The address of a server that takes calls and never answers."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen(8)
        yield f'http://127.0.0.1:{s.getsockname()[1]}'


def with_cpu_index(project, address):
    text = (project/'start.py').read_text(encoding='utf-8')
    assert text.count("CPU_INDEX = 'https://download.pytorch.org/whl/cpu'") == 1
    (project/'start.py').write_text(text.replace('https://download.pytorch.org/whl/cpu', address), encoding='utf-8')


@pytest.mark.slow
@linux
def test_cpu_wheels_without_a_driver(project, tmp_path, serve):
    "PyPI is there too, with the large build; PIP_USER=1 and `user = true` do not break it."
    with_cpu_index(project, serve(fake_index(tmp_path/'cpu', '0.1.0+cpu')))
    (tmp_path/'pip.conf').write_text('[global]\nuser = true\n')
    r, _ = start(project, 'course', 'mine', '--copy-only', PIP_INDEX_URL=serve(fake_index(tmp_path/'pypi', '0.1.0')),
                 PIP_CONFIG_FILE=str(tmp_path/'pip.conf'), PIP_USER='1')
    assert r.returncode == 0 and 'copied 0.1.0+cpu' in r.stdout, r.stdout + r.stderr
    assert "torch's CPU build comes from http://127.0.0.1" in r.stdout and 'CH5CLF_TORCH_INDEX' in r.stdout and 'less than 1 GB' in r.stdout
    (project/'mine').rmdir()
    r, seconds = start(project, 'course', 'mine', '--all', PIP_INDEX_URL='http://127.0.0.1:9')
    assert r.returncode == 0 and r.stdout == "copied 0.1.0+cpu ['--all']\n" and seconds < 10, 'later runs need no network'


@pytest.mark.slow
@linux
@pytest.mark.parametrize('road', ['closed', 'without torch'])
def test_pypi_where_the_cpu_index_cannot_be_reached(project, tmp_path, serve, road):
    (tmp_path/'empty').mkdir()
    (tmp_path/'empty'/'torch').mkdir()  # a captive portal: it answers, and has nothing
    with_cpu_index(project, 'http://127.0.0.1:9' if road == 'closed' else serve(tmp_path/'empty'))
    r, _ = start(project, 'course', 'mine', '--copy-only', PIP_INDEX_URL=serve(fake_index(tmp_path/'pypi', '0.1.0')))
    assert r.returncode == 0 and 'copied 0.1.0 ' in r.stdout, r.stdout + r.stderr
    assert 'comes from PyPI' in r.stdout


@pytest.mark.slow
@linux
def test_a_chosen_index_rules(project, tmp_path, serve):
    with_cpu_index(project, 'http://127.0.0.1:9')
    chosen = serve(fake_index(tmp_path/'chosen', '0.1.0+mine'))
    r, _ = start(project, 'course', 'mine', '--copy-only', CH5CLF_TORCH_INDEX=chosen)
    assert r.returncode == 0 and 'copied 0.1.0+mine' in r.stdout and 'PyPI' not in r.stdout, r.stdout + r.stderr
    shutil.rmtree(project/'.venv')
    r, _ = start(project, 'course', 'mine2', '--copy-only', CH5CLF_TORCH_INDEX='http://127.0.0.1:9', PIP_RETRIES='0')
    assert r.returncode == 1 and 'could not be installed from CH5CLF_TORCH_INDEX=http://127.0.0.1:9' in r.stderr


def test_falling_back_takes_seconds(project, silent, monkeypatch):
    module = load(project/'start.py')
    monkeypatch.setattr(sys, 'platform', 'linux')
    def slow(*_, **__): time.sleep(60)
    for address, lookup in ((silent, None), ('http://127.0.0.1:9', None), ('http://nowhere.invalid', slow)):
        monkeypatch.setattr(module, 'CPU_INDEX', address)
        if lookup: monkeypatch.setattr(socket, 'getaddrinfo', lookup)
        begin = time.time()
        assert module.torch_index() == (None, False) and time.time() - begin < 8


def test_who_chooses_the_index(monkeypatch):
    module = load(ROOT/'start.py')
    monkeypatch.setattr(module, 'answers', lambda address: address == 'https://download.pytorch.org/whl/cpu/torch/')
    for platform, nvidia, variable, wanted in (
            ('linux', False, None, ('https://download.pytorch.org/whl/cpu', True)), ('linux', True, None, (None, False)),
            ('linux', False, '', (None, False)), ('linux', False, ' https://x ', ('https://x', False)), ('linux', True, 'https://x', ('https://x', False)),
            ('darwin', False, None, (None, False)), ('win32', False, None, (None, False))):
        monkeypatch.setattr(sys, 'platform', platform)
        monkeypatch.setattr(module, 'has_nvidia', lambda: nvidia)
        if variable is None: monkeypatch.delenv('CH5CLF_TORCH_INDEX', raising=False)
        else: monkeypatch.setenv('CH5CLF_TORCH_INDEX', variable)
        assert module.torch_index() == wanted, (platform, nvidia, variable)


def test_standard_library_only():
    import ast
    names = [a.name for n in ast.walk(ast.parse((ROOT/'start.py').read_text(encoding='utf-8'))) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in ast.walk(ast.parse((ROOT/'start.py').read_text(encoding='utf-8'))) if isinstance(n, ast.ImportFrom)]
    assert not {n.split('.')[0] for n in names} - sys.stdlib_module_names
    assert max(map(len, (ROOT/'start.py').read_text(encoding='utf-8').splitlines())) <= 120


def test_tests_share_the_cores(tmp_path, monkeypatch):
    "What tests run with is what the library says, and what a user decided stays."
    from ch5clf.places import share_cores
    module, names = load(ROOT / 'start.py'), ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')
    for name in names: monkeypatch.delenv(name, raising=False)
    def chosen(env): return {k: v for k, v in env.items() if k in names}
    for mine in ({}, {'GOMP_SPINCOUNT': '7'}, {'OMP_WAIT_POLICY': 'ACTIVE'}):
        with monkeypatch.context() as patch:
            for k, v in mine.items(): patch.setenv(k, v)
            assert chosen(module.test_env(tmp_path)) == share_cores(dict(mine))
