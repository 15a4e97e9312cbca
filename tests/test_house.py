"""What only a second process, a built wheel or a look at the whole tree can show."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def python(code, **env):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, encoding='utf-8',
                          env={**os.environ, 'PYTHONUTF8': '1', **env})


def test_import_is_light():
    r = python("import sys, ch5clf; print([m for m in ('torch', 'fastai', 'numpy', 'matplotlib') if m in sys.modules])")
    assert r.stdout.strip() == '[]', r.stderr


def test_drawing_needs_no_torch():
    r = python("import sys, ch5clf.sample; print([m for m in ('torch', 'fastai', 'pandas', 'matplotlib') if m in sys.modules])")
    assert r.stdout.strip() == '[]', r.stderr


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_fit_for_the_web(nb):
    "Outputs are there, small, without an error that was not meant and without this machine's paths."
    assert nb.stat().st_size < 2_000_000
    cells = [c for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    outputs = [o for c in cells for o in c['outputs']]
    assert not [o for o in outputs if o['output_type'] == 'error']
    code = '\n'.join(''.join(c['source']) for c in cells)
    expected = nb.parent.name != 'workshop' or re.search(r'^print\(', code, flags=re.M)  # a room may be all asserts
    if len(cells) > 5 and expected: assert outputs, 'no outputs are committed: python3 start.py notebooks ' + nb.stem
    told = [{**o, 'data': {k: v for k, v in o.get('data', {}).items() if not k.startswith('image/')}} for o in outputs]
    text = re.sub(r';base64,[\w+/=]+', '', json.dumps(told, ensure_ascii=False))  # a picture's letters may form a path by chance
    found = re.search(r'(/root/|/home/\w|/work/|/tmp/|/Users/\w|[A-Z]:\\\\Users)[^"]{0,60}', text)
    assert not found, found.group(0)
    assert 'Warning' not in ''.join(json.dumps(o.get('text', '')) for o in outputs if o.get('name') == 'stderr')
    assert not any('nbdev' in ''.join(c['source']) and 'import nbdev' in ''.join(c['source']) for c in cells), 'learners have no nbdev'


def links():
    for nb in NOTEBOOKS:
        for c in json.loads(nb.read_text(encoding='utf-8'))['cells']:
            if c['cell_type'] == 'markdown':
                for target in re.findall(r'\]\(([^)\s]+)\)', ''.join(c['source'])):
                    if not re.match(r'[a-z]+:|#|attachment', target): yield nb, target


def test_links_between_notebooks_lead_somewhere():
    assert not [(nb.stem, t) for nb, t in links() if not (nb.parent/t.split('#')[0]).exists()]


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "A folder with the sdist, and with the wheel that was built from it."
    folder = tmp_path_factory.mktemp('built')
    command = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(folder), str(ROOT)]
    r = subprocess.run(command, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-2000:] + r.stderr[-2000:]
    return folder


@pytest.mark.slow
def test_wheel_from_sdist_carries_the_course(built, tmp_path):
    wheel = next(built.glob('*.whl'))
    names = zipfile.ZipFile(wheel).namelist()
    for p in NOTEBOOKS: assert f'ch5clf/course/{p.relative_to(ROOT/"nbs").as_posix()}' in names
    assert 'ch5clf/course/images/paper_pets.jpg' in names
    data = [p.relative_to(ROOT).as_posix() for p in (ROOT/'ch5clf').rglob('*') if p.is_file() and p.suffix not in ('.pyc', '.ipynb')]
    assert not [p for p in data if p not in names and not p.startswith('ch5clf/course/')], 'name it in package_data of setup.py'
    site, dest = installed(wheel, tmp_path), tmp_path/'내 강의'
    code = ("import sys; from ch5clf import cli; assert cli.__file__.startswith(sys.argv[1]), cli.__file__\n"
            "raise SystemExit(cli.main(['course', sys.argv[2], '--copy-only']))")
    r = subprocess.run([sys.executable, '-c', code, str(site), str(dest)], cwd=tmp_path, capture_output=True, text=True,
                       env={**os.environ, 'PYTHONPATH': str(site), 'PYTHONUTF8': '1'})
    assert r.returncode == 0, r.stderr
    assert (dest/'index.ipynb').exists() and not (dest/'workshop').exists()


def installed(wheel, folder):
    "A folder with the wheel's packages, for PYTHONPATH; what it depends on comes from this environment."
    install = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(folder/'site'), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return folder/'site'


@pytest.mark.slow
def test_readme_lines_train_a_classifier(built, tmp_path):
    "The lines of README.md, as they stand there, with the wheel."
    site = installed(next(built.glob('*.whl')), tmp_path)
    lines = re.search(r'```python\n(.*?)```', (ROOT/'README.md').read_text(encoding='utf-8'), flags=re.S)[1]
    lines += "\nimport ch5clf\nprint(ch5clf.__file__, len(learn.recorder.values), learn.recorder.values[-1])\n"
    r = subprocess.run([sys.executable, '-c', lines], cwd=tmp_path, capture_output=True, text=True, encoding='utf-8',
                       env={**os.environ, 'PYTHONPATH': str(site), 'PYTHONUTF8': '1'})
    assert r.returncode == 0, r.stderr[-3000:]
    where, epochs, *_ = r.stdout.splitlines()[-1].split()
    assert where.startswith(str(site)) and epochs == '4' and 'Warning' not in r.stderr, r.stdout + r.stderr


@pytest.mark.slow
def test_sdist_holds_the_whole_project(built):
    "All that git keeps; so its own `start.py test` finds what it needs (.ci/sdist.py runs it)."
    if not shutil.which('git') or not (ROOT/'.git').exists(): pytest.skip('no git, or no clone')
    ours = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')
    with tarfile.open(next(built.glob('*.tar.gz'))) as tar: names = {n.partition('/')[2] for n in tar.getnames()}
    missing = [n for n in ours if n and (ROOT/n).exists() and n not in names]
    assert not missing, f'{missing}: name them in MANIFEST.in'


@pytest.mark.slow
def test_unpacked_sdist_tests_itself():
    "Exports, README and three notebooks, where no clone is; .ci/sdist.py without arguments runs the whole quick part."
    command = [sys.executable, str(ROOT/'.ci'/'sdist.py'), '10_places', '39_edition', '45_cli']
    r = subprocess.run(command, capture_output=True, text=True)
    assert r.returncode == 0 and 'everything passed' in r.stdout, r.stdout[-3000:] + r.stderr[-3000:]


def test_start_refuses_an_old_python(tmp_path):
    code = f"import sys; sys.version_info = (3, 9, 1, 'final', 0); sys.argv = ['start.py', 'course']; import runpy; runpy.run_path({str(ROOT/'start.py')!r}, run_name='__main__')"
    r = python(code)
    assert r.returncode == 1 and 'Python 3.9 is too old; 3.11 or newer' in r.stderr and 'Traceback' not in r.stderr


# ------------------------------------------------------------------ the limits of the house

LESSONS = [p for p in NOTEBOOKS if re.match(r'0\d_', p.name) and p.parent.name == 'nbs' or p.parent.name == 'asides']
CHAPTERS = [p for p in LESSONS if re.match(r'0[0-4]_', p.name)]
MODULES = sorted(p for p in (ROOT/'ch5clf').glob('*.py') if not p.name.startswith('_'))
CELL_LINES, CELL_COLUMNS, CHAPTER_LINES = 20, 100, 165
LONG_LINE, LONG_SHARE = 120, .03
CHAPTER_WORDS, SENTENCE_WORDS = 2800, 35


def code_cells(nb):
    "(number in the notebook, directives, lines without them) of each code cell."
    for i, cell in enumerate(json.loads(nb.read_text(encoding='utf-8'))['cells']):
        if cell['cell_type'] != 'code': continue
        lines = ''.join(cell['source']).split('\n')
        marks = [line.strip()[2:].strip() for line in lines if line.startswith('#|')]
        yield i, marks, [line for line in lines if not line.startswith('#|')]


def tree_of(lines):
    "The syntax tree of a cell; magics are left out."
    source = '\n'.join(lines)
    if source.lstrip().startswith('%%'): return ast.parse('')
    return ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', source, flags=re.M))


def faults(found, remedy):
    found = list(found)
    assert not found, f'{len(found)} found:\n' + '\n'.join(found) + f'\nRemedy: {remedy}'


@pytest.mark.parametrize('nb', LESSONS, ids=lambda p: p.stem)
def test_cells_of_lessons_are_short(nb):
    def found():
        for i, _, lines in code_cells(nb):
            full = sum(bool(line.strip()) for line in lines)
            if full > CELL_LINES: yield f'{nb.name} cell {i}: {full} lines (limit {CELL_LINES}): {lines[0][:60]}'
            for line in lines:
                if len(line) > CELL_COLUMNS:
                    yield f'{nb.name} cell {i}: {len(line)} columns (limit {CELL_COLUMNS}): {line.strip()[:60]}'
    faults(found(), 'split the cell, name a step, or move what is not the lesson to a room of nbs/workshop')


def prose(nb):
    "The English words of a notebook's text, exercises and solutions included; no code, formulas, tables or addresses."
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    text = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    for gone in (r'```.*?```', r'\$\$.*?\$\$', r'(?m)^\|.*$', r'(?<=\])\([^)]*\)', r'<[^>]*>'): text = re.sub(gone, '', text, flags=re.S)
    return text


ANSWERS = re.compile(r"\.(check|choose|mark|hint|solution|disagree)\(|(?<![\w.'\"])(bet|settle)\(")


def test_rooms_leave_the_readers_progress_alone():
    def found():
        for nb in (p for p in NOTEBOOKS if p.parent.name == 'workshop'):
            tried = [line for _, marks, lines in code_cells(nb) if 'export' not in marks for line in lines]
            moved = next((i for i, line in enumerate(tried) if "os.environ['CH5CLF_PROGRESS'] =" in line), len(tried))
            for line in tried[:moved]:
                if ANSWERS.search(line): yield f'{nb.name}: {line.strip()[:80]}'
    faults(found(), "before it, move the progress: os.environ['CH5CLF_PROGRESS'] = tempfile.mkdtemp(prefix='ch5clf-')")


@pytest.mark.parametrize('nb', CHAPTERS, ids=lambda p: p.stem)
def test_chapters_are_read_in_an_evening(nb):
    text = prose(nb)
    words = len(re.findall(r"[A-Za-z][A-Za-z'’-]*|\d[\d.,]*", text))
    assert words <= CHAPTER_WORDS, (f'{nb.name} has {words} words (limit {CHAPTER_WORDS}). Remedy: leave out what its outputs show, '
                                    'and move what is not its story to nbs/asides')
    sentences = re.split(r'(?<=[.!?:])(?:\*\*)?\s+|\n\n|\n[-*#>]', text)
    faults([f'{nb.name}: {s.strip()[:80]}' for s in sentences if len(s.split()) > SENTENCE_WORDS],
           f'at most 25 words is the rule of a sentence, {SENTENCE_WORDS} its limit: make two of it')


@pytest.mark.parametrize('nb', CHAPTERS, ids=lambda p: p.stem)
def test_chapters_export_little(nb):
    full = [sum(bool(line.strip()) for line in lines) for _, marks, lines in code_cells(nb) if 'export' in marks]
    assert sum(full) <= CHAPTER_LINES, (f'{nb.name} exports {sum(full)} lines (limit {CHAPTER_LINES}). Remedy: move what '
                                        'the prose does not derive to a room of nbs/workshop, import it and name it in _all_')


@pytest.mark.parametrize('module', MODULES, ids=lambda p: p.stem)
def test_lines_are_no_longer_than_a_screen(module):
    lines = enumerate(module.read_text(encoding='utf-8').split('\n'), 1)
    lines = [(i, line) for i, line in lines if line.strip() and not line.startswith('__all__ = ')] # which nbdev wraps
    long = [f'{module.name}:{i}: {len(line)} columns: {line.strip()[:60]}' for i, line in lines if len(line) > LONG_LINE]
    if len(long) > LONG_SHARE*len(lines):
        share = f'{len(long)/len(lines):.0%} of its lines pass {LONG_LINE} columns, {LONG_SHARE:.0%} may'
        faults([f'{module.name}: {share}'] + long[:40], 'split into named steps, wrap tables of words; do not merely wrap a riddle')


def test_nothing_is_tangled_and_no_import_unused():
    "McCabe complexity at most 15 and no unused import, by the rules in pyproject.toml."
    rules = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['tool']['ruff']['lint']
    assert rules['mccabe']['max-complexity'] == 15 and {'C901', 'F401'} <= set(rules['select'])
    r = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format=concise', 'ch5clf'],
                       cwd=ROOT, capture_output=True, text=True)
    assert r.returncode == 0, (r.stdout or r.stderr) + 'Remedy: name the steps of a tangled function; drop the unused import'


def imports_of(module):
    "(line, name of our module) of each import in a module, those inside functions too."
    names = {p.stem for p in MODULES}
    for node in ast.walk(ast.parse(module.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level: base = 'ch5clf' + (f'.{base}' if base else '')
            targets = [f'{base}.{a.name}' for a in node.names] + [base]
        elif isinstance(node, ast.Import): targets = [a.name for a in node.names]
        else: continue
        for name in sorted({t.split('.')[1] for t in targets if t.startswith('ch5clf.')} & names): yield node.lineno, name


def room_numbers():
    "Module -> its place in the order of arrows: rooms by their number, then the chapters."
    found = {}
    for nb in NOTEBOOKS:
        for _, marks, _ in code_cells(nb):
            for m in marks:
                if m.startswith('default_exp '):
                    number = re.match(r'\d+', nb.name)
                    found[m.split()[1]] = (nb.parent.name != 'workshop', int(number[0]) if number else 99), nb.name
    return found


def test_every_module_has_its_notebook():
    faults((f'ch5clf/{p.name}: no notebook exports it' for p in MODULES if p.stem not in room_numbers()), 'delete it, or add its notebook')


def test_arrows_run_one_way():
    rooms = room_numbers()
    def found():
        for p in MODULES:
            for line, other in imports_of(p):
                if p.stem in rooms and other in rooms and rooms[other][0] >= rooms[p.stem][0]:
                    yield f'ch5clf/{p.name}:{line}: {rooms[p.stem][1]} imports {rooms[other][1]}'
    faults(found(), 'a room imports only rooms with a lower number; chapters import rooms and earlier chapters')


def test_imports_have_no_cycle():
    arrows = {p.stem: {other for _, other in imports_of(p)} for p in MODULES}
    while leaves := [m for m, to in arrows.items() if not to & set(arrows)]:
        for m in leaves: del arrows[m]
    faults((f'ch5clf/{m}.py -> {", ".join(sorted(to & set(arrows)))}' for m, to in arrows.items()), 'move what both need to a room below both')


def test_no_public_name_is_lost():
    "Every name that was public on the day the house was rebuilt is still there, and said to be public."
    code = '''
import importlib, json, sys
for module, names in json.load(open(sys.argv[1], encoding='utf-8')).items():
    try: m = importlib.import_module('ch5clf.' + module)
    except Exception as e: print(f'ch5clf.{module}: {type(e).__name__}: {e}'); continue
    for name in names:
        if not hasattr(m, name): print(f'ch5clf.{module}.{name}: gone')
        elif name not in m.__all__: print(f'ch5clf.{module}.{name}: not in __all__')
'''
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(ROOT/'tests'/'public_names.json')],
                       cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert r.returncode == 0, r.stderr
    faults(r.stdout.splitlines(), "import the name from its room in an exported cell and list it there: _all_ = ['name']")


@pytest.mark.parametrize('module', MODULES, ids=lambda p: p.stem)
def test_public_functions_say_what_they_do(module):
    tree, definitions = ast.parse(module.read_text(encoding='utf-8')), (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')
    faults((f'{module.name}:{n.lineno}: {n.name}' for n in tree.body
            if isinstance(n, definitions) and n.name in public and not ast.get_docstring(n)),
           'give it a docstring: what it returns, shapes, units, errors, source')


def only_imports(node):
    "An import, or a `with`, `try` or `if` that holds nothing else."
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)): return True
    parts = [n for n in ast.iter_child_nodes(node) if isinstance(n, (ast.stmt, ast.ExceptHandler))]
    return isinstance(node, (ast.With, ast.Try, ast.If, ast.ExceptHandler)) and all(map(only_imports, parts))


def names_itself(node):
    "`__doc__ = ...` or `_all_ = [...]`, which belong to an exported import cell."
    return isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id in ('__doc__', '_all_') for t in node.targets)


def mixes_import_with_code(marks, tree):
    "nbdev's docs processor executes each cell that imports, however deep: what else stands there would run without its chapter."
    def imports(nodes): return [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
    exported = {'export', 'exporti', 'exports'} & {m.split()[0] for m in marks if m}
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    if exported:
        if not any(only_imports(n) and imports(ast.walk(n)) for n in tree.body): return False
        return not all(only_imports(n) or names_itself(n) for n in tree.body)
    if not imports(ast.walk(tree)): return False
    kinds = {'import' if only_imports(n) else 'definition' if isinstance(n, definitions) else 'code' for n in tree.body}
    return len(kinds) > 1 or 'code' in kinds


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_no_cell_mixes_import_with_code(nb):
    faults((f'{nb.name} cell {i}: {next(filter(None, map(str.strip, lines)), "")[:70]}' for i, marks, lines in code_cells(nb)
            if mixes_import_with_code(marks, tree_of(lines))), 'give the imports a cell of their own')


@pytest.mark.parametrize('source, mixed', [
    ('import os', False), ('import os\nos.getcwd()', True), ('x = 1', False), ('def f():\n    import os\n    return os', False),
    ('def f():\n    import os\nf()', True), ('with quiet_imports():\n    import timm', False),
    ('with quiet_imports():\n    import timm\n    timm.x()', True), ('%matplotlib inline\nimport os', False)])
def test_the_test_of_mixed_cells(source, mixed):
    assert mixes_import_with_code([], tree_of(source.split('\n'))) is mixed


@pytest.mark.parametrize('nb', LESSONS, ids=lambda p: p.stem)
def test_cells_that_settle_are_marked(nb):
    "The learner's copy has no output of a cell that settles a bet; it knows the cell by its first line."
    def found():
        for i, cell in enumerate(json.loads(nb.read_text(encoding='utf-8'))['cells']):
            source = ''.join(cell['source'])
            marked = bool(re.match(r'#\|\s*settles\s*$', source.split('\n')[0]))
            if cell['cell_type'] != 'code': continue
            if re.search(r'^\s*#\|\s*settles\b', source, flags=re.M) and not marked: yield f'{nb.name} cell {i}: the mark is not the first line'
            calls = (n.func for n in ast.walk(tree_of(source.split('\n'))) if isinstance(n, ast.Call))
            if not marked and any(getattr(f, 'id', getattr(f, 'attr', '')) == 'settle' for f in calls):
                yield f'{nb.name} cell {i}: settles a bet without the mark: {source.strip()[:60]}'
    faults(found(), 'make `#| settles` the first line of the cell')


def test_front_page_names_every_notebook():
    "index.ipynb leads to each lesson, each aside and each room."
    linked = {(nb.parent/t.split('#')[0]).resolve() for nb, t in links() if nb.name == 'index.ipynb'}
    faults((f'nbs/{p.relative_to(ROOT/"nbs").as_posix()}' for p in NOTEBOOKS if p.name != 'index.ipynb' and p.resolve() not in linked),
           'add it to nbs/index.ipynb and run: python3 .ci/readme.py')


def test_readme_and_saved_name_the_same_install_line():
    "What a machine needs that only predicts; tests/test_saved.py proves the line."
    lines = [re.findall(r'pip install .+ --no-deps ch5clf', (ROOT/f).read_text(encoding='utf-8')) for f in ('README.md', 'ch5clf/saved.py')]
    assert lines[0] and set(lines[0]) <= set(lines[1]), lines


def test_settings_of_the_repository_can_be_read():
    "Workflows, templates, citation: YAML that parses; versions that agree; actions that exist as files here."
    yaml = pytest.importorskip('yaml')
    files = [*(ROOT/'.github').rglob('*.y*ml'), ROOT/'CITATION.cff', ROOT/'nbs'/'_quarto.yml']
    parsed = {f.name: yaml.safe_load(f.read_text(encoding='utf-8')) for f in files}
    version = re.search(r'^version = (.+)$', (ROOT/'settings.ini').read_text(encoding='utf-8'), flags=re.M)[1]
    assert parsed['CITATION.cff']['version'] == version and f"'{version}'" in (ROOT/'ch5clf'/'__init__.py').read_text().replace('"', "'")
    jobs = {job: j for f in ('test.yaml', 'docs.yaml', 'release.yaml') for job, j in parsed[f]['jobs'].items()}
    assert any(step.get('run', '').startswith('nbdev_test') for step in jobs['plain']['steps'])
    assert jobs['everything']['strategy']['matrix']['python'] == ['3.11', '3.12', '3.13']
    for workflow in ('test.yaml', 'docs.yaml', 'release.yaml'):
        for script in re.findall(r'(?:python3?|\./) ?([\w./-]+\.(?:py|yaml))', (ROOT/'.github'/'workflows'/workflow).read_text()):
            assert (ROOT/script).exists(), (workflow, script)


def test_slow_tests_have_a_registered_mark(pytestconfig):
    assert any(line.startswith('slow:') for line in pytestconfig.getini('markers'))
