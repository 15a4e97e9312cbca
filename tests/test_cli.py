"The command line and the learner's edition: other processes, closed streams, full disks, interrupted copies."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ch5clf.cli import copy_course
from ch5clf.edition import UserError, course_source

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, '-c', 'from ch5clf.cli import main; raise SystemExit(main())']
posix = pytest.mark.skipif(os.name != 'posix', reason='wants a POSIX shell')


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('PYTHONUTF8', '1')
    monkeypatch.setenv('CH5CLF_PROGRESS', str(tmp_path/'progress'))
    for name in ('IN_TEST', 'PYTHONUNBUFFERED'): monkeypatch.delenv(name, raising=False)


def ch5clf(*args, **kwargs):
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, encoding='utf-8', stdin=subprocess.DEVNULL, **kwargs)


def shell(line):
    command = ' '.join("'" + part.replace("'", "'\\''") + "'" for part in COMMAND)
    return subprocess.run(['bash', '-c', line.replace('ch5clf', command)], capture_output=True, text=True, stdin=subprocess.DEVNULL)


# ------------------------------------------------------------------ the edition as it is

@pytest.fixture(scope='module')
def edition(tmp_path_factory):
    folder = tmp_path_factory.mktemp('edition')/'내 강의'
    copy_course(folder)
    return folder


def cells(file):
    return json.loads(file.read_text(encoding='utf-8'))['cells']


def source(cell): return ''.join(cell['source'])


def test_lessons_only(edition):
    names = {p.relative_to(edition).as_posix() for p in edition.rglob('*.ipynb')}
    lessons = {p.relative_to(ROOT/'nbs').as_posix() for p in (ROOT/'nbs').rglob('*.ipynb') if 'checkpoints' not in str(p)}
    assert names == {n for n in lessons if not n.startswith('workshop/')} and 'index.ipynb' in names


def test_no_directive_no_nbdev_no_answer(edition):
    import nbformat
    for file in edition.rglob('*.ipynb'):
        nbformat.validate(nbformat.read(file, 4))
        for cell in cells(file):
            text = source(cell)
            assert not re.search(r'^\s*#\|', text, flags=re.M), (file.name, text)
            assert 'import nbdev' not in text and 'from nbdev' not in text and 'makers -->' not in text, (file.name, text)
            assert not re.search(r'^(__doc__|_all_) = ', text, flags=re.M), (file.name, text)
    for nb in (ROOT/'nbs').glob('0*.ipynb'):
        marked = [re.sub(r'^#\|.*\n', '', source(c), flags=re.M).strip() for c in cells(nb) if source(c).startswith('#| settles')]
        shown = [source(c) for c in cells(edition/nb.name) if c.get('outputs')]
        assert not set(marked) & set(shown)


def test_prose_speaks_of_no_directive(edition):
    found = [f'{f.name}: {line[:90]}' for f in edition.rglob('*.ipynb') for c in cells(f) if c['cell_type'] == 'markdown'
             for line in source(c).splitlines() if '#|' in line or 'nbdev' in line.lower()]
    assert not found, '\n'.join(found) + '\nRemedy: learners see no directives; begin the cell with <!-- makers -->, or say it otherwise'


def test_links_lead_to_a_file_or_to_the_web(edition):
    for file in edition.rglob('*.ipynb'):
        for cell in cells(file):
            if cell['cell_type'] != 'markdown': continue
            for target in re.findall(r'\]\(([^)\s]+)\)', source(cell)):
                if not re.match(r'[a-z]+:|#', target): assert (file.parent/target.split('#')[0]).exists(), (file.name, target)
    assert '/blob/main/nbs/workshop/' in (edition/'index.ipynb').read_text(encoding='utf-8')


def test_what_was_left_out_is_not_missed(edition):
    "No cell that stays uses a name that only a cell left out has bound."
    def bound(tree):
        for n in ast.walk(tree):
            if isinstance(n, (ast.Import, ast.ImportFrom)): yield from ((a.asname or a.name).split('.')[0] for a in n.names)
            elif isinstance(n, (ast.FunctionDef, ast.ClassDef)): yield n.name
            elif isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store): yield n.id
    def trees(file):
        for c in cells(file):
            if c['cell_type'] == 'code' and not source(c).lstrip().startswith('%%'):
                yield ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', source(c), flags=re.M))
    for file in edition.rglob('*.ipynb'):
        here = {n for t in trees(file) for n in bound(t)}
        whole = {n for t in trees(ROOT/'nbs'/file.relative_to(edition)) for n in bound(t)}
        used = {n.id for t in trees(file) for n in ast.walk(t) if isinstance(n, ast.Name)}
        assert not used & (whole - here), file.name


def test_imports_from_the_workshop_are_folded(edition):
    folded = [c for f in edition.rglob('0*.ipynb') for c in cells(f) if c['metadata'].get('jupyter', {}).get('source_hidden')]
    assert any('ch5clf.lesson' in source(c) for c in folded)
    assert all(re.search(r'\b(ch5clf|import)\b', source(c)) for c in folded)


@pytest.mark.slow
def test_the_first_cell_of_every_lesson_runs(edition):
    code = '''
import json, sys
from IPython.core.interactiveshell import InteractiveShell
for file in sys.argv[1:]:
    first = next(''.join(c['source']) for c in json.load(open(file, encoding='utf-8'))['cells'] if c['cell_type'] == 'code')
    InteractiveShell.clear_instance()
    InteractiveShell.instance().run_cell(first).raise_error()
    print('ran', file)
'''
    files = [str(f) for f in sorted(edition.rglob('*.ipynb')) if any(c['cell_type'] == 'code' for c in cells(f))]
    r = subprocess.run([sys.executable, '-c', code, *files], capture_output=True, text=True, cwd=edition)
    assert r.returncode == 0 and r.stdout.count('ran ') == len(files) > 7, r.stdout + r.stderr


@pytest.mark.slow
def test_a_lesson_of_the_edition_runs_from_end_to_end(edition, tmp_path):
    r = subprocess.run([sys.executable, '-m', 'jupyter', 'execute', '01_loss.ipynb'], cwd=edition, capture_output=True, text=True,
                       env={**os.environ, 'IN_TEST': '1'})
    assert r.returncode == 0, r.stderr[-3000:]


def test_with_the_workshop(tmp_path):
    done = copy_course(tmp_path/'all', workshop=True)
    assert 'workshop/45_cli.ipynb' in done['written'] and 'workshop/36_questions.ipynb' not in done['written']
    assert '](workshop/45_cli.ipynb)' in (tmp_path/'all'/'index.ipynb').read_text(encoding='utf-8')
    (tmp_path/'all'/'workshop'/'10_places.ipynb').unlink()
    assert copy_course(tmp_path/'all') == dict(written=['workshop/10_places.ipynb'], updated=[], kept=[], beside=[]), 'a copy keeps its workshop'


# ------------------------------------------------------------------ nobody's work is lost

def small_course(folder, word):
    "A course of three notebooks and a picture."
    (folder/'asides').mkdir(parents=True, exist_ok=True)
    for name in ('index', '00_data', 'asides/two_processes'):
        text = dict(cell_type='markdown', id='a', metadata={}, source=f'{name}, {word} edition')
        code = dict(cell_type='code', id='b', metadata={}, source='#| export\n1 + 1', execution_count=None, outputs=[])
        book = dict(cells=[text, code], metadata={}, nbformat=4, nbformat_minor=5)
        (folder/f'{name}.ipynb').write_text(json.dumps(book), encoding='utf-8')
    (folder/'cat.png').write_bytes(word.encode())
    return folder


def work_in(file, note='mine'):
    book = json.loads(file.read_text(encoding='utf-8'))
    book['cells'].append(dict(cell_type='markdown', id='m', metadata={}, source=note))
    file.write_text(json.dumps(book), encoding='utf-8')
    return file.read_bytes()


NOTHING = dict(written=[], updated=[], kept=[], beside=[])


@pytest.fixture
def course(tmp_path):
    "(folder of the course, the learner's copy of its first edition)"
    small_course(tmp_path/'course', 'first')
    copy_course(tmp_path/'mine', tmp_path/'course')
    return tmp_path/'course', tmp_path/'mine'


def test_the_learners_own_new_edition_is_not_overwritten(course):
    src, mine = course
    work = work_in(mine/'00_data.ipynb')
    for name in ('00_data.new-edition.ipynb', '00_data.new-edition-2.ipynb', '00_data.ipynb.new'): (mine/name).write_text('my own file')
    done = copy_course(mine, small_course(src, 'second'))
    assert done['beside'] == ['00_data.new-edition-3.ipynb'] and (mine/'00_data.ipynb').read_bytes() == work
    for name in ('00_data.new-edition.ipynb', '00_data.new-edition-2.ipynb', '00_data.ipynb.new'): assert (mine/name).read_text() == 'my own file'
    assert copy_course(mine, src) == NOTHING
    done = copy_course(mine, small_course(src, 'third'))
    assert done['beside'] == ['00_data.new-edition-3.ipynb'], 'an untouched new edition is replaced by a newer one'
    work = work_in(mine/'00_data.new-edition-3.ipynb')
    assert copy_course(mine, small_course(src, 'fourth'))['beside'] == ['00_data.new-edition-4.ipynb']
    assert (mine/'00_data.new-edition-3.ipynb').read_bytes() == work


@pytest.mark.parametrize('note', [None, '', '{', '[]', '{"files": 3}', '{"files": {"index.ipynb": 3}}', '\udcff', '[' * 5000, '{"version": 2, "files": {}}'])
def test_a_lost_or_damaged_note_does_no_harm(course, note):
    src, mine = course
    if note is None: (mine/'.ch5clf.json').unlink()
    else: (mine/'.ch5clf.json').write_bytes(note.encode('utf-8', 'surrogateescape'))
    assert copy_course(mine, src) == NOTHING
    work = work_in(mine/'00_data.ipynb')
    if note is not None: (mine/'.ch5clf.json').write_bytes(note.encode('utf-8', 'surrogateescape'))
    done = copy_course(mine, small_course(src, 'second'))
    assert set(done['updated']) >= {'index.ipynb', 'asides/two_processes.ipynb'} and '00_data.ipynb' in done['kept']
    assert (mine/'00_data.ipynb').read_bytes() == work


def test_notes_of_the_first_version_are_read(course):
    "They held one digest for each name, of a notebook copied as it was."
    import hashlib
    src, mine = course
    raw = (src/'index.ipynb').read_bytes()
    (mine/'index.ipynb').write_bytes(raw)
    (mine/'.ch5clf.json').write_text(json.dumps({'index.ipynb': hashlib.sha256(raw).hexdigest()}))
    assert copy_course(mine, small_course(src, 'second'))['updated'][-1] == 'index.ipynb'


def test_saving_in_jupyter_is_no_change(course):
    "JupyterLab splits text into lines, numbers the runs and adds to the metadata of what it saves."
    import nbformat
    src, mine = course
    book = nbformat.read(mine/'index.ipynb', 4)
    book.metadata.language_info = dict(name='python', version='3.11.7')
    for c in book.cells:
        if c.cell_type == 'code': c.execution_count = 7
    nbformat.write(book, mine/'index.ipynb')
    (mine/'.ch5clf.json').unlink()
    assert 'index.ipynb' in copy_course(mine, small_course(src, 'second'))['updated']


def test_an_interrupted_copy_goes_on(tmp_path, monkeypatch):
    "Stopped after each number of files, with the second edition coming before the copy is finished."
    import ch5clf.edition as edition
    src, real = small_course(tmp_path/'course', 'first'), edition.write_atomic
    for stop in range(1, 9):
        mine, count = tmp_path/f'mine{stop}', iter(range(stop))
        def write(path, data):
            if next(count, None) is None: raise KeyboardInterrupt
            real(path, data)
        monkeypatch.setattr(edition, 'write_atomic', write)
        try: copy_course(mine, src)
        except KeyboardInterrupt: pass
        monkeypatch.setattr(edition, 'write_atomic', real)
        done = copy_course(mine, small_course(tmp_path/'course2', 'second'))
        assert not done['kept'] and not done['beside'], stop
        assert all(f.read_bytes().find(b'second edition') > 0 for f in mine.rglob('*.ipynb'))


def test_kill_in_the_middle(tmp_path):
    "kill -9 at many moments; then the copy is finished, and nothing counts as changed."
    code = 'import sys; from ch5clf.edition import copy_course; copy_course(sys.argv[1])'
    for i in range(4):
        job = subprocess.Popen([sys.executable, '-c', code, str(tmp_path/f'c{i}')])
        time.sleep(.25 + .15*i)
        job.kill(); job.wait()
        done = copy_course(tmp_path/f'c{i}')
        assert not done['kept'] and not done['beside'] and (tmp_path/f'c{i}'/'index.ipynb').exists()
        assert copy_course(tmp_path/f'c{i}') == NOTHING


def test_simultaneous_runs(tmp_path):
    jobs = [subprocess.Popen([*COMMAND, 'course', str(tmp_path/'c'), '--copy-only'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [job.communicate() for job in jobs]
    assert [job.returncode for job in jobs] == [0]*4, said
    assert sum('written' in out for out, _ in said) == 1 and not any('stays as it is' in out for out, _ in said)
    assert copy_course(tmp_path/'c') == NOTHING and not list((tmp_path/'c').rglob('*.tmp'))


@pytest.mark.parametrize('error', [OSError(38, 'Function not implemented'), OSError(37, 'No locks available'), NotImplementedError()])
def test_a_disk_without_locks(tmp_path, monkeypatch, error):
    import filelock
    def fail(*_, **__): raise error
    monkeypatch.setattr(filelock.FileLock, 'acquire', fail)
    start = time.time()
    assert copy_course(tmp_path/'c', small_course(tmp_path/'course', 'first'))['written'] and time.time() - start < 5


def test_odd_things_in_the_copy(course):
    "A folder or a dangling link under the name of a notebook is the learner's."
    src, mine = course
    (mine/'index.ipynb').unlink(); (mine/'index.ipynb').mkdir()
    (mine/'00_data.ipynb').unlink()
    try: (mine/'00_data.ipynb').symlink_to(mine/'nowhere')
    except OSError: pytest.skip('no links here')
    done = copy_course(mine, small_course(src, 'second'))
    assert set(done['kept']) == {'index.ipynb', '00_data.ipynb'} and (mine/'index.ipynb').is_dir() and (mine/'00_data.ipynb').is_symlink()


# ------------------------------------------------------------------ the user's mistakes, in one line

@pytest.mark.parametrize('name', ['', ' ', ' x', 'a\nb', 'a\tb', '~', '/', '~nosuchuser/x', 'x'*300, 'a file', 'a file/below'])
def test_odd_names_are_refused(tmp_path, name):
    (tmp_path/'a file').write_text('x')
    r = ch5clf('course', '--copy-only', '--', name, cwd=tmp_path)
    assert r.returncode == 2 and r.stderr.startswith('ch5clf: ') and r.stderr.count('\n') == 1 and not r.stdout
    assert {p.name for p in tmp_path.iterdir()} <= {'a file', 'progress'}


@posix
@pytest.mark.skipif(hasattr(os, 'geteuid') and os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_can_only_be_read(course):
    src, mine = course
    mine.chmod(0o555)
    try:
        assert copy_course(mine, src) == NOTHING, 'nothing to do, nothing to complain about'
        with pytest.raises(UserError, match='may write'): copy_course(mine, small_course(src, 'second'))
    finally: mine.chmod(0o755)


@posix
@pytest.mark.parametrize('line, codes', [
    ('ch5clf quiz | head -1; exit ${PIPESTATUS[0]}', {0}), ('ch5clf --help | true', {0}), ('ch5clf quiz >&- 2>&- <&-', {0}), ('ch5clf --help >&-', {0}),
    ('ch5clf quiz > /dev/full', {1}), ('ch5clf --help > /dev/full', {1}), ('ch5clf nonsense 2> /dev/full', {2}), ('ch5clf quiz q99 2>&-', {2})])
def test_output_that_nobody_takes(line, codes):
    if '/dev/full' in line and not os.path.exists('/dev/full'): pytest.skip('no /dev/full')
    r = shell(line)
    assert r.returncode in codes and 'Traceback' not in r.stderr and 'Exception ignored' not in r.stderr, r.stderr
    if codes == {1}: assert r.stderr == 'ch5clf: the output: No space left on device\n'


def test_streams_closed_at_the_start_are_not_taken_by_files(tmp_path):
    if os.name != 'posix': pytest.skip('wants a POSIX shell')
    r = shell(f"ch5clf course '{tmp_path/'c'}' --copy-only >&- 2>&- <&-")
    assert r.returncode == 0 and copy_course(tmp_path/'c') == NOTHING


@pytest.mark.parametrize('command', [[], ['check'], ['train'], ['predict'], ['quiz'], ['sample'], ['course']], ids=' '.join)
def test_help_comes_at_once(command):
    r = subprocess.run([sys.executable, '-X', 'importtime', *COMMAND[1:], *command, '--help'], capture_output=True, text=True)
    assert r.returncode == 0 and 'usage: ch5clf' in r.stdout
    slow = {'torch', 'fastai', 'numpy', 'pandas', 'matplotlib', 'PIL', 'IPython', 'jupyterlab'}
    assert not slow & {line.rpartition('|')[2].strip() for line in r.stderr.splitlines()}


